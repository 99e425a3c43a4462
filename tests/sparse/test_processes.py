"""A sparse network in several processes and threads."""

import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import lpk
from lpk import models, sparse
from lpk.sparse.network import Network
from tests.sparse.networks import Shared, pruned
from tests.sparse.small_network import IMAGES, check, expected, network


def dirty():
    """Writes over memory that was freed."""
    return [torch.full((n,), 1e30) for n in (4, 16, 32, 64, 480) for _ in range(1000)]


@pytest.mark.parametrize(
    "move",
    [
        ForkingPickler.dumps,
        lambda made: made._model[0].share_memory(),
        lambda made: [setattr(x, "data", x.data.clone()) for x in made._model[0].state_dict(keep_vars=True).values()],
    ],
)
def test_a_module_that_moves_computes_the_same(move):
    """Pickled for another process, for instance, which moves its tensors into memory that both see."""
    model = network()
    made = lpk.sparsify(model)
    check(made, model)
    move(made)
    junk = dirty()
    check(made, model)
    check(made, model, IMAGES[:2])
    assert len(junk) == 5000


class Outputs(Dataset):
    """A network's outputs, computed where it is loaded."""

    def __init__(self, made):
        self.made = made

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.made(IMAGES[i][None])[0]


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_in_a_loaders_workers(context, tmp_path):
    model = network()
    made = lpk.sparsify(model)
    check(made, model)
    (batch,) = DataLoader(Outputs(made), batch_size=2, num_workers=1, multiprocessing_context=context)
    torch.testing.assert_close(batch, expected(model, IMAGES[:2]), rtol=1e-4, atol=1e-5)
    junk = dirty()
    check(made, model)
    made.save(tmp_path / "network")
    assert torch.equal(lpk.sparsify(network(1), tmp_path / "network")(IMAGES), made(IMAGES)) and junk


def in_a_fork(check_there):
    """Whether it holds in a forked process, which has ten seconds."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        torch.set_num_threads(1)  # PyTorch's own threads do not survive, either
        try:
            check_there()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@forks
def test_forked_while_another_thread_is_inside(monkeypatch):
    model = network()
    made, entered, leave, ordinary = lpk.sparsify(model), threading.Event(), threading.Event(), Network.__call__
    check(made, model)

    def waits(self, inputs):
        entered.set()
        leave.wait()
        return ordinary(self, inputs)

    def there():
        monkeypatch.undo()
        check(made, model)
        check(pickle.loads(pickle.dumps(made)), model)

    monkeypatch.setattr(Network, "__call__", waits)
    thread = threading.Thread(target=made, args=(IMAGES,))
    thread.start()
    entered.wait()
    works = in_a_fork(there)
    leave.set()
    thread.join()
    monkeypatch.undo()
    assert works
    check(made, model)


entered = threading.Event()


class Slow(nn.Conv2d):
    """Waits while it is traced."""

    def forward(self, x):
        entered.set()
        time.sleep(0.2)
        return super().forward(x)


@forks
def test_forked_while_another_thread_traces():
    model = network()
    thread = threading.Thread(target=lpk.sparsify(Slow(3, 4, 3)), args=(IMAGES,))
    thread.start()
    entered.wait()
    assert in_a_fork(lambda: check(lpk.sparsify(model), model))
    thread.join()


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 12, 20)])
def test_called_from_several_threads(shape):
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made, inputs = sparse.sparsify(network), torch.randn(8, 2, *shape)
    with torch.no_grad():
        expected = [network(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(made, inputs.repeat(25, 1, 1, 1, 1)))
    for i, output in enumerate(outputs):
        torch.testing.assert_close(output, expected[i % 8], rtol=1e-4, atol=1e-4)


def test_networks_are_traced_in_several_threads():
    """torch.fx replaces nn.Module.__call__ meanwhile, in the whole process."""
    inputs = torch.randn(2, 3, 6, 5)
    networks = [Shared().eval() for _ in range(24)]
    with torch.no_grad(), ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda network: lpk.sparsify(network)(inputs), networks))
        for network, output in zip(networks, outputs, strict=True):
            torch.testing.assert_close(output, network(inputs), rtol=1e-4, atol=1e-5)
