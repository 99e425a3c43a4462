"""Pruned weights stay zero: under every optimizer, through sparse gradients, in several threads."""

import threading

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook

import lpk
from lpk.pruning import masking
from tests.pruning.perceptron import OPTIMIZERS, OPTIONS, mlp, trains
from tests.same import same


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masks_are_exact_after_each_step(kind):
    seen = []
    tickets = lpk.imp(mlp(), trains(OPTIMIZERS[kind], seen=seen), **OPTIONS)
    assert all(zeros == still for zeros, still in seen)
    assert {zeros for zeros, _ in seen} == {96 - ticket.keep for ticket in tickets}


def test_one_hook_for_the_whole_process():
    hooks = _global_optimizer_post_hooks
    lpk.imp(mlp(), trains(OPTIMIZERS["sgd"]), **OPTIONS)
    before = list(hooks.values())
    lpk.imp(mlp(), trains(OPTIMIZERS["sgd"]), **OPTIONS)
    assert list(hooks.values()) == before and before.count(masking._after_step) == 1
    assert not masking._masked, "parameters are kept after training"


def test_networks_are_trained_in_several_threads():
    """Another hook that lets other threads run while PyTorch iterates over the hooks makes their changes fail."""
    expected = [lpk.imp(mlp(i), trains(OPTIMIZERS["sgd"]), **OPTIONS) for i in range(8)]
    models, found, failed = [mlp(i) for i in range(8)], {}, []
    together = threading.Barrier(8)

    def run(i):
        try:
            together.wait(30)
            found[i] = lpk.imp(models[i], trains(OPTIMIZERS["sgd"]), **OPTIONS)
        except BaseException as error:
            failed.append(error)

    pause = register_optimizer_step_post_hook(lambda *_: threading.Event().wait(0.002))
    try:
        workers = [threading.Thread(target=run, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        pause.remove()
    assert not failed
    assert all(same(found[i], expected[i]) for i in range(8))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "sparse-adam"])
def test_sparse_gradients_of_embeddings_are_masked(kind, bag):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            table = nn.EmbeddingBag(20, 6, mode="sum", sparse=True) if bag else nn.Embedding(20, 6, sparse=True)
            self.table, self.last = table, nn.Linear(6, 3)

        def forward(self, words):
            found = self.table(words)
            return self.last(found if bag else found.sum(1))

    words, seen = torch.randint(0, 20, (64, 3), generator=torch.Generator().manual_seed(1)), []

    def train(model, start, stop):
        make = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "sparse-adam": torch.optim.SparseAdam}[kind]
        optimizer = make(model.table.parameters(), lr=0.05)
        dense = torch.optim.SGD(model.last.parameters(), lr=0.05)
        zeros = model.table.weight == 0
        for i in range(4):
            nn.functional.cross_entropy(
                model(words[16 * i : 16 * i + 16]), words[16 * i : 16 * i + 16, 0] % 3
            ).backward()
            gradient = model.table.weight.grad
            assert gradient.is_sparse and not gradient.to_dense()[zeros].any()
            for each in (optimizer, dense):
                each.step()
                each.zero_grad()
            seen.append(bool((model.table.weight == 0)[zeros].all()))

    tickets = lpk.imp(Words(), train, prunable=["table.weight"], **OPTIONS)
    assert tickets[2].keep < tickets[0].keep == 120 and all(seen)
    assert not torch.equal(tickets[0].flat.weights, tickets[1].flat.weights)
