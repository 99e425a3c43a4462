"""What PyTorch wraps around a network: wrappers that rename its entries, and the masks of torch.nn.utils.prune."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from lpk.networks.copies import copied


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.nn.DataParallel, DistributedDataParallel, AveragedModel and torch.compile, whose names
    have no prefix."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of the network without wrappers, with pruning masks made permanent: torch.nn.utils.prune's own attributes
    can't be copied as they are."""
    model = copied(unwrapped(model))
    for module, name in pruned_tensors(model):
        prune.remove(module, name)
    return model


def is_pruned(model: nn.Module) -> bool:
    """Whether torch.nn.utils.prune acts on it."""
    return bool(pruned_tensors(model))


def pruned_tensors(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules that torch.nn.utils.prune acts on, and which of their tensors."""
    return [
        (module, hook._tensor_name)
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
