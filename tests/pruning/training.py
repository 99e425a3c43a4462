"""A small network trained under every kind of optimizer."""

import torch
from torch import nn

OPTIONS = {"epochs": 2, "rounds": 2, "rewind": 1, "progress": False}
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def trains(make, *, steps=3, seen=None):
    """A train that makes an optimizer anew in each call and looks at the pruned weights after each of its steps."""

    def train(model, start, stop):
        optimizer, zeros = make(model.parameters()), model[0].weight == 0

        def loss():
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(X), Y)
            value.backward()
            return value

        for _ in range(steps * (stop - start)):
            optimizer.step(loss)
            if seen is not None:
                seen.append((int(zeros.sum()), int((model[0].weight == 0)[zeros].sum())))

    return train


class Noisy(torch.optim.SGD):
    """Moves weights without a gradient, as Langevin dynamics does."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        for parameter in self.param_groups[0]["params"]:
            parameter += 0.01 - 0.1 * parameter.grad


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "closure": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "sign": lambda p: torch.optim.Rprop(p, lr=0.01),
    "noisy": lambda p: Noisy(p, lr=0.1),
    "averaging": lambda p: torch.optim.ASGD(p, lr=0.01, weight_decay=0.1),
}
