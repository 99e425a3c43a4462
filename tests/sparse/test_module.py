"""A sparse network in PyTorch's hands: conversions, state dicts, compilers, exports."""

import copy
import io
import pickle

import pytest
import torch
from torch import fx, nn

import lpk
from lpk import models, sparse
from tests.sparse.networks import Zoo, pruned
from tests.sparse.small_network import IMAGES, check, expected, network, sparsened


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


def test_shapes_and_batches_that_come_later():
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made = sparse.sparsify(network)
    for shape in ((4, 3, 16, 16), (2, 3, 16, 16), (4, 3, 20, 12), (4, 3, 16, 16), (30, 3, 20, 12)):
        inputs = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)


def test_what_a_module_keeps_of_its_forward_is_no_proxy():
    def forward(m, x):
        m.features = m.conv(x)
        return m.features.relu()

    made, inputs = lpk.sparsify(Zoo(forward)), torch.randn(3, 3, 6, 6)
    expected = made(inputs)
    assert not hasattr(made._model[0], "features")
    assert torch.equal(copy.deepcopy(made)(inputs), expected)
