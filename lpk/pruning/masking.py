"""Pruned weights stay at exactly zero while somebody trains the network.

Gradients are masked at the end of the backward pass that they arrive in, so that momentum and a norm over all gradients
never see them; after each step of any torch.optim optimizer the weights are masked too, for those that move weights
without a gradient. Either is one launch on a GPU for all weights, since the host's time is what a step takes there.

Whose optimizer it is, or when it is made, is not known. PyTorch tells of the steps of all of them by hooks of the
whole process, and iterates over such hooks without a lock. So there are two, before a step and after it, which are
registered once, stay, and find what they mask by parameter: networks may be trained in several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lpk.networks.flat import Layout
from lpk.networks.states import state_names

# Bits times 0 are the bits of +0, and times 1 what they were, for NaN, infinity and -0.0 as well. So integers of the
# same size mask what floating-point numbers would not, and torch._foreach_mul_ takes all tensors of a device and a
# dtype at once, if each mask has its tensor's dtype and strides. That is a mask as large as the weights.
_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

_Form = tuple[torch.dtype, int, tuple[int, ...]]  # what a mask has of its tensor: its device and strides, too

_masked: dict[int, _Masked] = {}  # by the id of a parameter that is in training, and so is alive
_pending: set[Masks] = set()  # those that gradients may have arrived for that are not masked yet
_hooks: list[object] = []  # their handles, once they are registered
_hooks_lock = threading.Lock()


class Masks:
    """The masks of a network that is kept pruned: another object for each time that it is.

    What was recorded with the masks in a CUDA graph can be replayed as long as somebody holds this object: it never
    drops a mask. They are made on a device when the first gradient or step needs them there, which can't be recorded:
    take a step before.
    """

    def __init__(self, at_first_step: Callable[[], None]) -> None:
        self.at_first_step = [at_first_step]  # until it is called
        self.masks: list[dict[_Form, Tensor]] = []  # of each parameter
        self.arrived: dict[_Masked, None] = {}  # the parameters whose gradients are not masked yet
        self.running = -1  # the backward pass at whose end they will be
        self.at_once = False  # or as soon as they arrive

    def tensors(self) -> list[Tensor]:
        """All masks there are by now, on whatever device: 0 where a weight is pruned, 1 elsewhere."""
        return [mask for masks in self.masks for mask in masks.values()]

    def begin(self, running: int) -> None:
        """Is told of each backward pass, by its number."""
        self.running = running
        # Compiled autograd tells of no end. DistributedDataParallel takes a gradient along at once and brings it back
        # at the end of a pass, which need not be the one that it arrived in.
        self.at_once = torch.compiler.is_compiling() or _is_distributed()
        if not self.at_once:
            _pending.add(self)
            torch.autograd.Variable._execution_engine.queue_callback(self._mask_arrived)

    def take(self, each: _Masked) -> bool:
        """Whether a parameter's gradient is not masked yet; who asks is going to do it."""
        return bool(self.arrived) and self.arrived.pop(each, self) is None

    def take_all(self) -> list[_Masked]:
        found = []
        while self.arrived:  # several threads of a backward pass may add to it
            found.append(self.arrived.popitem()[0])
        _pending.discard(self)
        return found

    def _mask_arrived(self) -> None:
        _mask_gradients(self.take_all())


class _Masked:
    """A parameter that is trained, and where its weights remain."""

    def __init__(self, parameter: nn.Parameter, remains: Tensor, network: Masks) -> None:
        self.parameter = parameter
        self.remains = remains  # bool, on the CPU, of the parameter's shape
        self.is_pruned = not bool(remains.all())  # nothing is in round 0, which is as long as the others
        self.network = network
        self._weights: tuple[int, torch.dtype, Tensor, Tensor] | None = None
        self.masks: dict[_Form, Tensor] = {}
        network.masks.append(self.masks)  # not self, or they would be garbage that takes memory until it is collected

    def mask(self, tensor: Tensor) -> Tensor:
        """Whether each weight remains, laid out as a tensor is, in the integers that mask it: the others are 0."""
        key = tensor.dtype, tensor.get_device(), tensor.stride()
        found = self.masks.get(key)
        if found is None:  # a network is moved or converted in train, and a gradient may have other strides
            found = torch.empty_like(tensor, dtype=_INTEGERS.get(tensor.dtype, torch.bool)).copy_(self.remains)
            self.masks[key] = found
        return found

    def has_moved(self) -> bool:
        """Whether a pruned weight is not 0."""
        return self.is_pruned and bool(self.parameter.detach()[self.mask(self.parameter) == 0].any())

    def bits(self) -> tuple[Tensor, Tensor]:
        """The weights in the integers that mask them, and the mask: the last ones, unless the weights lie elsewhere."""
        weights, known = self.parameter, self._weights
        address = weights.data_ptr()
        if known is None or known[0] != address or known[1] is not weights.dtype:
            mask = self.mask(weights)
            view = weights.detach()
            self._weights = known = (
                address,
                weights.dtype,
                view if mask.dtype == torch.bool else view.view(mask.dtype),
                mask,
            )
        return known[2:]

    def gradient_arrived(self, parameter: Tensor) -> None:
        """The more often something is called in a step, the less it should do: this is, for each weight."""
        network = self.network
        running = torch._C._current_graph_task_id()  # a pass within a pass has a number of its own
        if running != network.running or running < 0:
            network.begin(running)
        if network.at_once:
            _mask_gradients([self])
        else:
            network.arrived[self] = None

    def mask_sparse(self, gradient: Tensor) -> None:
        """Masks an embedding's gradient: some rows, and their values."""
        gradient = gradient.coalesce()
        pruned = self.mask(self.parameter)[tuple(gradient.indices())] == 0
        gradient.values().masked_fill_(pruned, 0.0)
        self.parameter.grad = gradient


@contextmanager
def kept_pruned(
    model: nn.Module, layout: Layout, mask: Tensor, at_first_step: Callable[[], None]
) -> Iterator[Callable[[], bool]]:
    """Keeps the pruned weights of a model at exactly 0 while somebody trains it.

    Args:
        mask: bool [n], which weights remain.
        at_first_step: is called after the first step of an optimizer that has one of the prunable weights.

    Yields a function that sets the pruned weights of the model to 0 and returns whether one was not: after training.
    """
    entries = {entry.name: entry for entry in layout.weights}
    network = Masks(at_first_step)
    masked: dict[int, _Masked] = {}

    def find() -> list[_Masked]:
        return [
            masked.get(id(parameter)) or _Masked(parameter, mask[entries[name].span].view(parameter.shape), network)
            for parameter, name in state_names(model).items()
            if name in entries
        ]

    def mask_all() -> bool:
        found = find()  # those that are there now
        moved = any([each.has_moved() for each in found])
        _mask_weights(found)
        return moved

    masked.update({id(each.parameter): each for each in find()})
    mask_all()
    _register()
    handles = [
        each.parameter.register_post_accumulate_grad_hook(each.gradient_arrived)
        for each in masked.values()
        if each.is_pruned
    ]
    _masked.update(masked)
    try:
        yield mask_all
    finally:
        for key in masked:
            _masked.pop(key, None)
        network.take_all()
        for handle in handles:
            handle.remove()


def masks_of(model: nn.Module) -> Masks | None:
    """What keeps a network pruned at present, None where nothing does."""
    return next((_masked[id(p)].network for p in model.parameters() if id(p) in _masked), None)


def _register() -> None:
    with _hooks_lock:
        if not _hooks:
            _hooks.append(register_optimizer_step_pre_hook(_before_step))
            _hooks.append(register_optimizer_step_post_hook(_after_step))


def _before_step(optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """A step within a backward pass, as each gradient arrives, and one after a pass that failed."""
    if _pending:
        _mask_gradients([each for each in _masked_of(optimizer) if each.network.take(each)])


def _after_step(optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    found = _masked_of(optimizer)
    for each in found:
        while each.network.at_first_step:
            each.network.at_first_step.pop()()
    _mask_weights(found)


def _masked_of(optimizer: Optimizer) -> list[_Masked]:
    if not _masked:
        return []
    find = _masked.get
    found = [find(id(parameter)) for group in optimizer.param_groups for parameter in group["params"]]
    return [each for each in found if each is not None]


def _mask_weights(found: Iterable[_Masked]) -> None:
    bits, masks = [], []
    for each in found:
        if each.is_pruned:
            some, mask = each.bits()
            bits.append(some)
            masks.append(mask)
    _mask(bits, masks)


def _mask_gradients(found: Iterable[_Masked]) -> None:
    bits, masks = [], []
    for each in found:
        gradient = each.parameter.grad
        if gradient is None:  # a hook of the user's has used it up
            continue
        if gradient.is_sparse:
            each.mask_sparse(gradient)
            continue
        mask = each.mask(gradient)
        if gradient.requires_grad:  # of create_graph=True: what is differentiated again is what was masked
            with torch.enable_grad():
                gradient.masked_fill_(mask == 0, 0.0)
            continue
        kind = mask.dtype
        bits.append(gradient if kind is torch.bool else gradient.view(kind))
        masks.append(mask)
    _mask(bits, masks)


def _mask(bits: list[Tensor], masks: list[Tensor]) -> None:
    """Sets what is pruned to +0, whatever is there: in parameters or their gradients, as bits that need no gradient."""
    if not masks:
        return
    first, place = masks[0].dtype, masks[0].get_device()
    others = [i for i, mask in enumerate(masks) if mask.dtype is not first or mask.get_device() != place]
    if others:
        _mask([bits[i] for i in others], [masks[i] for i in others])
        same = sorted(set(range(len(masks))).difference(others))
        bits, masks = [bits[i] for i in same], [masks[i] for i in same]
    if first is torch.bool:  # complex numbers, for instance
        for some, mask in zip(bits, masks, strict=True):
            some.masked_fill_(~mask, 0.0)
    else:
        torch._foreach_mul_(bits, masks)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
