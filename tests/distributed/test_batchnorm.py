"""BatchNorm over the samples of several processes, against one process's."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lpk.distributed import Part
from lpk.networks.synchronised import SynchronisedBatchNorm, synchronised
from tests.distributed.processes import in_ranks

SAMPLES = 7  # 3, 2 and 2 of them


def make(momentum):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.Flatten(), nn.Linear(12, 5)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(5, affine=False)).double()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.uniform_(-1, 1)
    return model


def train(rank, count, momentum):
    """Two steps; the state, the outputs of training and of evaluation, and the gradient of the inputs."""
    torch.manual_seed(1)
    samples, wanted = (torch.randn(SAMPLES, *size, dtype=torch.float64) for size in ((2, 4, 4), (5,)))
    part = Part(rank, count)
    model = make(momentum)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    trained = DistributedDataParallel(synchronised(model)) if count > 1 else model
    assert before == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    (x, y) = part.of((samples, wanted))
    x = x.clone().requires_grad_()
    for _ in range(2):
        optimizer.zero_grad()
        output = trained(x)
        ((output - y).square().mean() * part.weight(SAMPLES)).backward()
        optimizer.step()
    trained.eval()
    return model.state_dict(), output.detach(), trained(x).detach(), x.grad / count


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_and_gradients_are_those_of_the_whole_batch(momentum, tmp_path):
    state, *values = train(0, 1, momentum)
    returned = in_ranks(3, train, tmp_path, 3, momentum)
    for own, *_ in returned:
        for name, tensor in state.items():
            torch.testing.assert_close(own[name], tensor, rtol=0, atol=1e-12)
            assert torch.equal(own[name], returned[0][0][name])
    for i, value in enumerate(values, 1):
        torch.testing.assert_close(torch.cat([found[i] for found in returned]), value, rtol=0, atol=1e-12)


def test_a_network_that_is_a_batchnorm():
    model = synchronised(nn.BatchNorm1d(3))
    assert isinstance(model, SynchronisedBatchNorm) and list(model.state_dict()) == list(nn.BatchNorm1d(3).state_dict())
    with pytest.raises(ValueError, match="at least 2 dimensions, not 1"):
        model(torch.ones(3))
