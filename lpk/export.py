"""Networks for other software: ONNX, a program of torch.export, a plain state dict.

lpk.sparse.save_sparse writes the format that is small; docs/export.md says which is for what.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lpk import extras
from lpk.networks.states import input_dtype
from lpk.networks.wrappers import plain_copy
from lpk.sparse.steps import Shape
from lpk.tickets import files

ONNX_LIMIT = 2**31 - 1  # bytes of one ONNX file


def onnx(model: nn.Module, path: str | Path, shape: Shape) -> None:
    """Writes the network in evaluation mode as a dense ONNX file, BatchNorm folded into the layers before it.

    Its input is `input` [batch, *shape], of the first floating-point parameter's dtype, and its output is `output`, for
    any batch.

    Args:
        shape: of one sample, such as (channels, height, width).

    Raises ImportError where onnx or onnxscript is missing, ValueError where the network can't be exported.
    """
    extras.need("an ONNX file", "onnx", "onnxscript")
    import onnx as onnx_package

    model, inputs, dynamic = _prepared(model, shape)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > ONNX_LIMIT:
        raise ValueError(f"the network has {size:,} bytes; an ONNX file has at most {ONNX_LIMIT:,}")
    try:
        # Given a model, PyTorch 2.8 would also export what it can't trace soundly.
        exported = torch.onnx.export(
            torch.export.export(model, inputs, dynamic_shapes=dynamic),
            dynamo=True,
            dynamic_shapes=dynamic,  # for the dimension's name
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
        assert exported is not None
    except Exception as error:  # whatever a stranger's forward raises while it is traced
        raise _not_exported(model, shape, error) from error
    proto = exported.model_proto
    _forget_origins(proto.graph)
    onnx_package.checker.check_model(proto, full_check=True)
    _write(path, proto.SerializeToString())


def program(model: nn.Module, path: str | Path, shape: Shape) -> None:
    """Writes the network in evaluation mode as a program of torch.export (.pt2), for any batch.

    `torch.export.load(path).module()` computes what the model computes; so do AOTInductor and ExecuTorch.

    Raises ValueError where the network can't be exported.
    """
    model, inputs, dynamic = _prepared(model, shape)
    content = io.BytesIO()
    try:
        torch.export.save(torch.export.export(model, inputs, dynamic_shapes=dynamic), content)
    except Exception as error:  # whatever a stranger's forward raises while it is traced
        raise _not_exported(model, shape, error) from error
    _write(path, content.getvalue())


def state_dict(values: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a dense state dict as plain safetensors; tied entries are written once for each name."""
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in values.items()}
    _write(path, safetensors.torch.save(own))


def _write(path: str | Path, content: bytes) -> None:
    path = files.absolute(path)
    files.make_directory(path.parent)
    files.write_bytes(path, content)


def _prepared(model: nn.Module, shape: Shape) -> tuple[nn.Module, tuple[Tensor], tuple[dict[int, Any]]]:
    """A copy to export, inputs to trace it with, and which of their dimensions may vary."""
    model = plain_copy(model).to("cpu").to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return model, (torch.zeros(2, *shape, dtype=input_dtype(model), device="cpu"),), ({0: torch.export.Dim("batch")},)


def _not_exported(model: nn.Module, shape: Shape, error: Exception) -> ValueError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ValueError(
        f"{type(model).__name__} can't be exported for inputs [batch, {', '.join(map(str, shape))}]: {reason}"
    )


def _forget_origins(graph: Any) -> None:
    """Drops the notes on where in Python each node came from: they name files of this machine."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
