"""Gradients are 0 where a network is pruned, in whatever way a backward pass goes, and elsewhere what they were."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from tests.pruning.perceptron import X, Y, mlp
from tests.pruning.pruned import half_pruned

NAMES = ("0.weight", "2.weight")


def loss_of(model):
    return nn.functional.cross_entropy(model(X), Y)


def check(model, pruned, *, passes=1, loss=loss_of):
    """Holds the gradients against those of the same network without lpk, masked afterwards."""
    twin = copy.deepcopy(model)
    for _ in range(passes):
        loss(twin).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        expected = theirs.grad.masked_fill(pruned.get(ours, torch.tensor(False)), 0.0)
        assert expected.any() and torch.equal(ours.grad, expected)


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_are_masked_when_backward_returns(passes):
    model = mlp()
    with half_pruned(model, *NAMES) as pruned:
        for _ in range(passes):
            loss_of(model).backward()
        check(model, pruned, passes=passes)


SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1.5, -2.0)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_masking_is_exact_to_the_bit(dtype):
    """NaN, infinity and -0.0 become +0 where a weight is pruned, and stay elsewhere, in gradients as in weights."""
    values = torch.tensor(SPECIAL).repeat(6).view(6, 7)

    class Writing(torch.optim.SGD):
        @torch.no_grad()
        def step(self):
            self.param_groups[0]["params"][0].copy_(values)

    def bits(tensor):
        return tensor.detach().contiguous().view(torch.uint8)

    model = nn.Linear(7, 6, bias=False)
    with half_pruned(model, "weight") as pruned:
        model.to(dtype)
        expected = values.to(dtype).masked_fill(pruned[model.weight], 0.0)
        model.weight.register_hook(lambda gradient: values.to(dtype))
        model.weight.sum().abs().backward()
        assert model.weight.grad.dtype == dtype and torch.equal(bits(model.weight.grad), bits(expected))
        Writing(model.parameters(), lr=0.1).step()
        assert torch.equal(bits(model.weight), bits(expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_passes_within_passes(reentrant):
    """Reentrant checkpoints run a backward pass within one; a layer that is outside, too, has gradients of both."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)])

    def loss(model):
        shared, inner, last = model
        x = shared(X).relu()
        for _ in range(2):
            x = checkpoint(lambda x: inner(shared(x).relu()).relu(), x, use_reentrant=reentrant)
        return nn.functional.cross_entropy(last(shared(x)), Y)

    with half_pruned(model, "0.weight", "1.weight") as pruned:
        loss(model).backward()
        check(model, pruned, loss=loss)


@pytest.fixture
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Checkpointed(nn.Module):
    """Its pruned weights' gradients arrive in a pass within the pass in which the last gradient does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner = nn.Linear(8, 12), nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x):
        return checkpoint(self.inner, self.first(x), use_reentrant=True)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("make", "names"), [(mlp, NAMES), (Checkpointed, ("inner.0.weight", "inner.2.weight"))])
def test_distributed_data_parallel(make, names, static, view, group):
    model = make()
    with half_pruned(model, *names) as pruned:
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view, static_graph=static)
        for _ in range(3):
            wrapped.zero_grad()
            loss_of(wrapped).backward()
            check(model, pruned)


def test_compiled_autograd():
    model = mlp()
    with half_pruned(model, *NAMES) as pruned, torch._dynamo.config.patch(compiled_autograd=True):

        @torch.compile(backend="eager")
        def run():
            loss_of(model).backward()

        run()
        check(model, pruned)
    torch._dynamo.reset()


def test_an_optimizer_that_steps_within_the_pass():
    model, buffers = mlp(), {}
    with half_pruned(model, *NAMES) as pruned:
        before = copy.deepcopy(model)
        optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

        def use_up(parameter):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()
            buffers[parameter] = optimizers[parameter].state[parameter]["momentum_buffer"]

        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(use_up)
        loss_of(model).backward()
        loss_of(before).backward()
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        where = pruned.get(ours, torch.tensor(False))
        assert torch.equal(buffers[ours], theirs.grad.masked_fill(where, 0.0)) and not ours[where].any()


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("a pass fails")


@pytest.mark.parametrize("again", [False, True])
def test_what_a_pass_that_failed_has_left(again):
    """Its gradients are masked before a step, and those of the next pass as ever."""
    model, weight = mlp(), nn.Parameter(torch.ones(()))
    with half_pruned(model, *NAMES) as pruned:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with pytest.raises(ArithmeticError, match="a pass fails"):
            (Fails.apply(weight * 1.0) + loss_of(model)).backward()  # what was computed first is gone through last
        assert all(parameter.grad is not None for parameter in pruned)
        if again:
            optimizer.zero_grad()
            loss_of(model).backward()
            check(model, pruned)
        optimizer.step()
        for parameter, where in pruned.items():
            assert not optimizer.state[parameter]["momentum_buffer"][where].any()


def test_gradients_that_are_differentiated_again():
    model, twin = mlp(), mlp()
    with half_pruned(model, *NAMES) as pruned:
        twin.load_state_dict(model.state_dict())
        where = [pruned.get(p, torch.tensor(False)) for p in model.parameters()]
        with pytest.warns(UserWarning, match="create_graph"):
            loss_of(model).backward(create_graph=True)
        ours = torch.autograd.grad(sum(p.grad.exp().sum() for p in model.parameters()), list(model.parameters()))
        first = torch.autograd.grad(loss_of(twin), list(twin.parameters()), create_graph=True)
        masked = [g.masked_fill(w, 0.0) for g, w in zip(first, where, strict=True)]
        theirs = torch.autograd.grad(sum(g.exp().sum() for g in masked), list(twin.parameters()))
        model.zero_grad()  # or parameter and gradient would keep each other
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_gradient_that_overflows_where_a_weight_is_pruned_skips_no_step():
    model = nn.Linear(4, 1, bias=False)
    with half_pruned(model, "weight") as pruned:
        (where,) = pruned.values()
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0)
        before = model.weight.detach().clone()
        scaler.scale((model.weight * torch.where(where, float("inf"), 1.0)).sum()).backward()
        scaler.step(optimizer)
        assert torch.allclose(before - model.weight, torch.where(where, 0.0, 0.1))
