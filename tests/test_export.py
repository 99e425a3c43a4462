"""What other programs read computes what the model computes."""

import copy
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import lpk
from lpk import export, models
from tests.conftest import make_network
from tests.networks.random_statistics import with_random_statistics
from tests.sparse.networks import Dynamic, pruned


@pytest.fixture(params=["small-resnet", "mlp"])
def model(request):
    torch.manual_seed(0)
    network = pruned(models.build(request.param, classes=10, shape=(1, 12, 10)), 0.3)
    return network.to(memory_format=torch.channels_last)


def expected(network, inputs):
    with torch.no_grad():
        return copy.deepcopy(network).eval()(inputs)


def test_onnx(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "net.onnx"
    model.train()
    export.onnx(model, path, (1, 12, 10))
    assert model.training
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert b".py" not in path.read_bytes(), "it names files of this machine"
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    (given,), (returned,) = proto.graph.input, proto.graph.output
    assert (given.name, returned.name) == ("input", "output")
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 1, 12, 10]
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 17):
        inputs = torch.randn(batch, 1, 12, 10)
        (got,) = session.run(None, {"input": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), expected(model, inputs), rtol=1e-4, atol=1e-5)


def test_program(model, tmp_path):
    path = tmp_path / "net.pt2"
    export.program(model, path, (1, 12, 10))
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    program = torch.export.load(path).module()
    for batch in (1, 2, 17):
        inputs = torch.randn(batch, 1, 12, 10)
        torch.testing.assert_close(program(inputs), expected(model, inputs), rtol=1e-5, atol=1e-6)


def test_state_dict(tmp_path):
    network = with_random_statistics(make_network()).to(memory_format=torch.channels_last)
    network.add_module("9", nn.Linear(8, 3, bias=False))
    network[9].weight = network[8].weight
    export.state_dict(network.state_dict(), tmp_path / "net.safetensors")
    read = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert set(read) == set(network.state_dict())
    assert all(torch.equal(read[name], tensor) for name, tensor in network.state_dict().items())


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"an ONNX file needs onnxscript: pip install 'lpk\[export\]'"):
        export.onnx(make_network(), tmp_path / "net.onnx", (1, 6, 6))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [export.onnx, export.program])
def test_what_can_not_be_exported_is_one_error(write, tmp_path):
    if write is export.onnx:
        pytest.importorskip("onnxscript")
    for network, shape in ((Dynamic(), (1, 6, 6)), (make_network(), (2, 6, 6))):
        with pytest.raises(
            ValueError, match=f"{type(network).__name__} can't be exported for inputs .batch, "
        ) as raised:
            write(network, tmp_path / "net", shape)
        assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_documentation(tickets, network, validation, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    (code,) = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "export.md").read_text(), re.DOTALL
    )
    pooled = lpk.pool(tickets, 3, model=network, validation=validation, statistics="leave", progress=False)
    network.load_state_dict(pooled.state_dict)
    monkeypatch.chdir(tmp_path)
    names = {"model": network, "pooled": pooled, "images": validation[0]}
    exec(compile(code, "docs/export.md", "exec"), names)
    assert all(torch.equal(names["state_dict"][name], tensor) for name, tensor in pooled.state_dict.items())
    assert all(torch.equal(names["masks"][name], mask) for name, mask in pooled.masks.items())
    assert {p.name for p in tmp_path.iterdir()} == {"net.safetensors", "net.onnx", "net.pt2", "dense.safetensors"}
