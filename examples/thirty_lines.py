import torch
from sklearn.datasets import load_digits
from torch import nn

import lpk

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
parts = torch.randperm(len(y), generator=torch.manual_seed(0)).split((897, 400, 500))
training, validation, test = ((x[part].float() / 16, y[part]) for part in parts)


class LeNet(nn.Sequential):  # any nn.Module
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def train(model: nn.Module, start: int, stop: int) -> None:  # your loop, from epoch `start` to epoch `stop`
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for epoch in range(start, stop):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - epoch / 8)
        for batch in torch.randperm(len(training[1])).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(training[0][batch]), training[1][batch]).backward()
            optimizer.step()


tickets = lpk.imp(model := LeNet(), train, epochs=8, rounds=9, rewind=1, store="run", seed=0)
pools = lpk.pool(tickets, model=model, validation=validation)  # of each ticket, with the nine others
print(lpk.report("report", tickets, pools, model=model, test=test))  # scores, costs, and which network to ship
lpk.sparsify(model, pools[9]).save("net.safetensors")  # 13% of the weights
