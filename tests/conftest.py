"""A small network with BatchNorm, two classes of images that it can learn, and tickets of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import lpk
from lpk.networks.flat import Layout
from lpk.reporting import latency
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets

# Four tickets within seconds.
TINY_PRESET = """
[data]
name = "digits"
validation = 200
train = 600
augment = false

[model]
name = "small-resnet"
widths = [8, 16]

[train]
epochs = 3
batch_size = 64
lr = 0.1
momentum = 0.9
weight_decay = 1e-4
milestones = [2]
gamma = 0.1
warmup = 0

[imp]
rounds = 3
fraction = 0.3
rewind = 1
prunable = "convolutions"

[pool]
calibration = 200
batch_size = 50
"""


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def _sizes_can_be_arguments() -> bool:
    try:
        fx.symbolic_trace(lambda x: nn.functional.avg_pool2d(x, x.size(3)))
    except TypeError:
        return False
    return True


sizes_as_arguments = pytest.mark.skipif(not _sizes_can_be_arguments(), reason="torch.fx of PyTorch 2.8 can't trace it")


def make_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images [count, 1, 6, 6] of three classes that differ in where they are bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator)
    for label in range(3):
        images[labels == label, :, 2 * label : 2 * label + 2] += 0.7
    return images, labels


def sgd(images: Tensor, labels: Tensor, *, lr: float = 0.05):
    """A user's own training function, in plain PyTorch."""

    def train(model: nn.Module, start: int, stop: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
        model.train()
        for _ in range(start, stop):
            for x, y in zip(images.split(32), labels.split(32), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        model.eval()

    return train


# They come first, so that no process waits for another one at the end.
LONGEST = (
    "tests/ops/test_kernels.py",
    "tests/test_kills.py",
    "tests/distributed/",
    "tests/experiments/",
    "tests/test_types.py",
    "tests/test_extras.py",
    "tests/cli/",
    "tests/test_docs.py",
    "tests/test_own.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: next((i for i, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))
    )


@pytest.fixture(scope="session", autouse=True)
def latencies():
    """Measured for a hundredth of a second, not for a third: no test asks how large they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "BUDGET", 0.01)
        yield


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def network() -> nn.Module:
    return make_network()


@pytest.fixture(scope="session")
def tickets() -> Tickets:
    """Five tickets of the network, trained by lpk.imp on 320 images."""
    return lpk.imp(make_network(), sgd(*make_images(320, seed=1)), epochs=3, rounds=4, rewind=1, seed=0, progress=False)


@pytest.fixture(scope="session")
def validation() -> tuple[Tensor, Tensor]:
    return make_images(203, seed=2)


@pytest.fixture(scope="session")
def calibration() -> tuple[Tensor, Tensor]:
    return make_images(160, seed=3)


def random_tickets(seed: int, *, rounds: int = 4) -> Tickets:
    """Untrained tickets of a tiny network: for tests of the search alone."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    layout = Layout.of_model(model)
    mask = torch.ones(layout.n, dtype=torch.bool)
    made = []
    for i in range(rounds):
        state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        made.append(Ticket.of(i, layout, state, mask))
        mask = mask & (torch.rand(layout.n) < 0.8)
    return Tickets(made)
