"""What lpk.sparsify makes in other hands: processes, modes, inputs of every kind, conversions, compilers, exports."""

import io
import os
import pickle
import signal
import threading
import time
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.data import DataLoader, Dataset

import lpk
from lpk.sparse.network import Network

IMAGES = torch.randn(3, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    """With a convolution, a linear layer and a matrix product that PyTorch computes."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(480, 16), nn.Softplus())
    return sparsened(layers.append(nn.Linear(16, 4)))


def sparsened(model):
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand(parameter.shape) < 0.3
    return model.eval().requires_grad_(False)


def expected(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def check(made, model, inputs=IMAGES):
    torch.testing.assert_close(made(inputs), expected(model, inputs), rtol=1e-4, atol=1e-5)


# --- Processes ---


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


# --- Inputs ---


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(7, 6), nn.Linear(6, 2)

    def forward(self, tokens, mask=None, *, scale=1.0, other=None):
        x = self.embedding(tokens.long()).mean(1) if not tokens.is_floating_point() else tokens
        x = x if mask is None else x * mask["keep"]
        return self.linear(x) * scale + (0 if other is None else other[0])


TOKENS = torch.randint(0, 7, (3, 5))
MASK = {"keep": torch.rand(3, 6)}
ARGUMENTS = [
    ((TOKENS,), {}),
    ((TOKENS.to(torch.uint8),), {}),
    ((TOKENS, MASK), {}),
    ((TOKENS,), {"scale": 2.0, "other": (torch.ones(2),)}),
    ((), {"tokens": TOKENS, "mask": MASK}),
    ((MASK["keep"],), {"mask": MASK}),
    ((torch.rand(3, 6), {"keep": torch.rand(3, 6, dtype=torch.float32)}), {"other": torch.ones(1, 2)}),
]


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_pytorch_takes_what_the_engine_does_not(args, kwargs):
    model = sparsened(Tokens())
    made = lpk.sparsify(model, fallback="torch")
    for _ in range(2):
        assert torch.equal(made(*args, **kwargs), expected(model, *args, **kwargs))
    with pytest.raises(TypeError, match='with fallback="torch", sparsify leaves it to PyTorch'):
        lpk.sparsify(model)(*args, **kwargs)


def test_inputs_by_their_name():
    model = network()
    made = lpk.sparsify(model)
    torch.testing.assert_close(made(input=IMAGES), expected(model, IMAGES))
    with pytest.raises(TypeError, match="'images' is not the model's first"):
        made(images=IMAGES)
    with pytest.raises(TypeError, match="0 arguments were given"):
        made()


@pytest.mark.parametrize("fallback", ["error", "torch"])
def test_gradients_are_an_error_wherever_they_are(fallback):
    made = lpk.sparsify(sparsened(Tokens()), fallback=fallback)
    wanted = torch.rand(3, 6, requires_grad=True)
    for args, kwargs in (((wanted,), {}), ((TOKENS, {"keep": wanted}), {}), ((TOKENS,), {"other": [wanted]})):
        with pytest.raises(RuntimeError, match="require a gradient"):
            made(*args, **kwargs)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="require a gradient"):
        made(forward_ad.make_dual(wanted.detach(), torch.ones(3, 6)))


def test_a_lazy_view():
    model = network()
    lazy = torch.complex(torch.zeros_like(IMAGES), -IMAGES).conj().imag
    assert lazy.is_neg()
    check(lpk.sparsify(model), model, lazy)
    state = {name: torch._neg_view(-value) for name, value in model.state_dict().items()}
    check(lpk.sparsify(network(1), state), model)
    for parameter in model.parameters():
        parameter.data = torch._neg_view(-parameter.data)
    check(lpk.sparsify(model), model)


class Named(torch.Tensor):
    pass


def test_a_subclass_with_values_is_a_tensor():
    model = network()
    made = lpk.sparsify(model)
    assert type(made(IMAGES.as_subclass(Named))) is torch.Tensor
    check(made, model, IMAGES.as_subclass(Named))
    check(made, model, nn.Parameter(IMAGES, requires_grad=False))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: FakeTensorMode().from_tensor(x), "a FakeTensor"),
        (lambda x: x.to("meta"), "on meta"),
        (lambda x: x.to_sparse(), "stored as torch.sparse_coo"),
        (lambda x: x.to_mkldnn(), "stored as torch._mkldnn"),
        (lambda x: torch.nested.nested_tensor(list(x)), "a nested tensor"),
        (lambda x: torch._efficientzerotensor(x.shape), "a lazy view"),
    ],
)
def test_inputs_without_values(make, kind):
    made = lpk.sparsify(network())
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"inputs are .*{kind}.* is needed; with fallback"):
            made(make(IMAGES))
        made(IMAGES)


def test_inputs_whose_memory_was_freed():
    inputs = IMAGES.clone()
    inputs.untyped_storage().resize_(16)
    with pytest.raises(TypeError, match="its storage was resized to 16 bytes"):
        lpk.sparsify(network(), fallback="error")(inputs)


def test_torch_func():
    model = network()
    with pytest.raises(TypeError, match=r"inside torch\.func"):
        torch.vmap(lpk.sparsify(model))(IMAGES[:, None])
    outputs = torch.vmap(lpk.sparsify(model, fallback="torch"))(IMAGES[:, None])
    torch.testing.assert_close(outputs[:, 0], expected(model, IMAGES), rtol=1e-4, atol=1e-5)


# --- Modes ---

ORDERS = [(True, False, True), (False, True, False)]


@pytest.mark.parametrize("fallback", ["error", "torch"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_call_by_its_own_autocast(order, fallback):
    model = network()
    made = lpk.sparsify(model, fallback=fallback)
    for autocast in order:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            outputs, wanted = made(IMAGES), expected(model, IMAGES)
        assert outputs.dtype == wanted.dtype == (torch.bfloat16 if autocast else torch.float32)
        torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-5)
    (kept,) = made._networks.values()
    assert kept is not None and len(kept.plan.foreign) == 1  # the engine runs all but softplus


# --- What PyTorch does with modules ---


def test_no_state_dict():
    made = lpk.sparsify(network())
    both = nn.Sequential(made, nn.Linear(4, 2))
    for module, name in ((made, "the network"), (both, "the part '0'"), (nn.ModuleDict({"a": both}), "the part 'a.0'")):
        for call in (module.state_dict, lambda m=module: m.load_state_dict({}, strict=False)):
            with pytest.raises(RuntimeError, match=rf"{name} is sparse and has no state dict: its save\(\)"):
                call()


def test_saved_as_a_whole():
    model, file = network(), io.BytesIO()
    torch.save(nn.Sequential(lpk.sparsify(model), nn.Identity()), file)
    file.seek(0)
    check(torch.load(file, weights_only=False), model)


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("meta"),
        lambda m: m.to_empty(device="meta"),
        lambda m: nn.Sequential(m, nn.Linear(4, 2)).half(),
    ],
)
def test_conversions_that_it_can_not_follow(convert):
    with pytest.raises(TypeError, match=r"a sparse network is float32 on the CPU and can't become torch\.\w+ on \w+;"):
        convert(lpk.sparsify(network()))


def test_conversions_that_change_nothing():
    model = network()
    made = lpk.sparsify(model)
    for same in (made.cpu(), made.float(), made.to("cpu"), made.to(memory_format=torch.channels_last), made.eval()):
        assert same is made
    made.share_memory(), made.requires_grad_(False), made.train()
    assert not made.training and nn.Sequential(made).train()[0].training is False
    check(made, model)


class Mixed(nn.Module):
    """With tensors that the engine does not read."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 4, 3), nn.Linear(4, 4).double()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5, dtype=torch.float64))
        self.table = nn.Parameter(torch.tensor([[0, 1], [2, 3]]), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor([[0.0, 2.0]], dtype=torch.float64))

    def forward(self, x):
        x = self.conv((x - self.mean).float()).relu().mean((2, 3))
        return (self.wide(x.double())[:, self.table[1]] * self.scale).float()


def test_what_the_engine_does_not_read_may_be_of_any_type(tmp_path):
    model = sparsened(Mixed())
    made = lpk.sparsify(model)
    check(made, model)
    made.save(tmp_path / "network")
    check(lpk.sparsify(Mixed(), tmp_path / "network"), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_of_another_type(dtype):
    model = network().to(dtype)
    with pytest.raises(TypeError, match=rf"0\.weight is {dtype}; the engine computes in float32"):
        lpk.sparsify(model)
    made = lpk.sparsify(model, fallback="torch")
    assert torch.equal(made(IMAGES.to(dtype)), expected(model, IMAGES.to(dtype)))


def test_only_modules_that_are_dense():
    made = lpk.sparsify(network())
    for model, name in ((made, "the model"), (nn.Sequential(nn.ReLU(), nn.Sequential(made)), "the part '1.0'")):
        with pytest.raises(ValueError, match=f"{name}.* is a sparse network already"):
            lpk.sparsify(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_only_modules_in_python():
    model = network()
    program = torch.export.export(model, (IMAGES,))
    exported = program, program.module(), torch.export.unflatten(program)
    for other in (torch.jit.script(model), torch.jit.trace(model, IMAGES), *exported, len):
        with pytest.raises(TypeError, match=r"model is a \S+; a torch\.nn\.Module is needed, before torch\.jit"):
            lpk.sparsify(other)


def test_a_graph_of_torch_fx_calls_it():
    model = network()
    made = lpk.sparsify(model)
    graph = fx.symbolic_trace(nn.Sequential(made, nn.Softplus()))
    assert graph.get_submodule("0") is made
    torch.testing.assert_close(graph(IMAGES), expected(model, IMAGES).exp().add(1).log(), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="a sparse network has no graph"):
        fx.symbolic_trace(made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compilers_and_exports():
    model = network()
    made = lpk.sparsify(model, fallback="torch")
    with pytest.raises(TypeError, match=r"torch\.jit\.script can't compile"):
        torch.jit.script(nn.Sequential(made))
    for export in (torch.jit.trace, torch.export.export):
        with pytest.raises(TypeError, match="can't see into a sparse network"):
            export(made, (IMAGES,))
    check(torch.compile(made, backend="eager"), model)
    made.compile(backend="eager")
    check(pickle.loads(pickle.dumps(made)), model)
    compiled = torch.compile(nn.Sequential(made, nn.Identity()), backend="eager")
    check(compiled, model)
    check(compiled, model, IMAGES[:2])
