"""State dicts: which of their entries are one tensor, and which parameter of the model each one is; its dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

INPUTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The entries of a state dict that share the tensor of an earlier one, each with the first of that tensor's names.

    Raises TypeError for an entry that is not a dense tensor of values, ValueError for one that a lazy module has not
    made yet.
    """
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        _check_entry(name, tensor)
        key = _memory(tensor)
        if tensor.numel() > 0 and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
    return aliases


def state_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """The parameters of a model that its state dict holds, each with the (first) name that it has there.

    `named_parameters` may call it otherwise: a wrapper can rename what it wraps by a hook of its state dict, as
    torch.distributed's checkpoint_wrapper does.
    """
    state = model.state_dict(keep_vars=True)
    tied(state)
    by_id = {id(tensor): name for name, tensor in reversed(state.items())}
    by_memory = {_memory(tensor): name for name, tensor in reversed(state.items()) if tensor.numel() > 0}
    names = {}
    for parameter in model.parameters():
        name = by_id.get(id(parameter)) or by_memory.get(_memory(parameter))  # a hook may have detached it
        if name is not None:
            names[parameter] = name
    return names


def owners(model: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Module, str]]:
    """Each parameter with each module that has it, and what it is called there."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield parameter, module, name


def input_dtype(model: nn.Module) -> torch.dtype:
    """What a model takes floating-point inputs in: the dtype of its first parameter that PyTorch computes with so, else
    float32. A parameter before it may be complex, an index, or packed in bytes."""
    return next((p.dtype for p in model.parameters() if p.dtype in INPUTS), torch.float32)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _check_entry(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        hint = "; let get_extra_state return one" if name.endswith("_extra_state") else ""
        raise TypeError(f"state dict entry {name!r} is a {type(tensor).__name__}, not a tensor{hint}")
    if is_lazy(tensor):
        raise ValueError(f"{name!r} is not initialized yet: send a batch through the model, so that lazy modules are")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"{name!r} is a tensor of the layout {kind}; dense ones are supported: call to_dense()")
    if tensor.is_meta:
        raise TypeError(f"{name!r} is on the device meta, where tensors have no values: load them first")
