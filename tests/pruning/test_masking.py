"""Pruned weights stay zero: under every optimizer, through sparse gradients, in several threads."""

import threading
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

import lpk
from lpk.pruning import masking
from tests.pruning.perceptron import OPTIMIZERS, OPTIONS, X, mlp, trains
from tests.pruning.pruned import half_pruned
from tests.same import same


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masks_are_exact_after_each_step(kind):
    seen = []
    tickets = lpk.imp(mlp(), trains(OPTIMIZERS[kind], seen=seen), **OPTIONS)
    assert all(zeros == still for zeros, still in seen)
    assert {zeros for zeros, _ in seen} == {96 - ticket.keep for ticket in tickets}


def test_two_hooks_for_the_whole_process():
    def hooks():
        return [*_global_optimizer_pre_hooks.values(), *_global_optimizer_post_hooks.values()]

    lpk.imp(mlp(), trains(OPTIMIZERS["sgd"]), **OPTIONS)
    before = hooks()
    lpk.imp(mlp(), trains(OPTIMIZERS["sgd"]), **OPTIONS)
    assert hooks() == before and before.count(masking._before_step) == before.count(masking._after_step) == 1
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


# --- what a step costs ------------------------------------------------------------------------------------------------


MASKING = torch.ops.aten._foreach_mul_.List
VIEWS = (torch.ops.aten.view.dtype, torch.ops.aten.detach.default)  # they launch nothing


class Calls(TorchDispatchMode):
    """Counts PyTorch's operations, and looks whether calls for several tensors are of one launch on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function] += 1
        if function is MASKING:
            kinds = {(tensor.device, tensor.dtype) for tensors in args[:2] for tensor in tensors}
            assert len(kinds) == 1, "tensors of several kinds take a launch each"
            for tensor, mask in zip(*args[:2], strict=True):
                assert tensor.shape == mask.shape and tensor.stride() == mask.stride(), "this one takes a launch"
        return function(*args, **(kwargs or {}))


def calls_of_a_step(model, changed):
    changed(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = changed(torch.randn(2, 6, 5, 5))
    for _ in range(2):  # masks are made in the first
        optimizer.zero_grad()
        with Calls() as calls:
            model(x).sum().backward()
            optimizer.step()
    return calls.count


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize(
    "changed",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.to(torch.bfloat16, memory_format=torch.channels_last),
    ],
    ids=["as-it-was", "channels-last", "bfloat16"],
)
def test_masking_takes_two_calls_for_any_number_of_weights(changed, keep):
    """In round 0, where nothing is pruned, it takes none."""
    for layers in (2, 20):
        model = nn.Sequential(*(nn.Conv2d(6, 6, 1 + 2 * (i % 2), padding=i % 2) for i in range(layers)))
        names = [f"{i}.weight" for i in range(layers)]
        with half_pruned(model, *names, keep=keep) as pruned:
            counted = calls_of_a_step(model, changed)
            assert not any(parameter[where].any() for parameter, where in pruned.items())
        counted.subtract(calls_of_a_step(model, changed))
        added = {function: count for function, count in counted.items() if count and function not in VIEWS}
        assert added == ({MASKING: 2} if keep < 1.0 else {})


def test_each_kind_of_weights_takes_a_call():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    with half_pruned(model, *(f"{i}.weight" for i in range(4))):
        model[2:].bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Calls() as calls:
            (model[:2](X).sum() + model[2:](X.bfloat16()).sum()).backward()
            optimizer.step()
    assert calls.count[MASKING] == 4


# --- the masks --------------------------------------------------------------------------------------------------------


def test_masks_are_found_by_the_network_and_stay_where_they_are():
    model, other = mlp(), mlp(1)
    step = trains(OPTIMIZERS["sgd"])
    assert masking.masks_of(model) is None
    with half_pruned(model, "0.weight", "2.weight") as pruned:
        masks = masking.masks_of(model)
        assert masks is masking.masks_of(nn.DataParallel(model)) and masking.masks_of(other) is None
        step(model, 0, 1)
        before = [(mask, mask.data_ptr()) for mask in masks.tensors()]
        assert [torch.equal(mask == 0, where) for (mask, _), where in zip(before, pruned.values(), strict=True)]
        step(model, 1, 2)
        assert [id(mask) for mask in masks.tensors()] == [id(mask) for mask, _ in before]
        model.to(torch.bfloat16)
        model(X.bfloat16()).sum().backward()
        model.to(torch.float32)
        step(model, 2, 3)
        assert masking.masks_of(model) is masks and len(masks.tensors()) == 4
        assert {mask.data_ptr() for mask in masks.tensors()} > {address for _, address in before}
    assert masking.masks_of(model) is None
    mask = weakref.ref(before[0][0])
    del before
    assert mask() is not None
    with half_pruned(model, "0.weight", keep=0.3):
        assert masking.masks_of(model) is not masks
        del masks
        assert mask() is None, "memory of a network that is no longer kept pruned"
    with half_pruned(model, "0.weight", keep=1.0):
        assert masking.masks_of(model).tensors() == []
