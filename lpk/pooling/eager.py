"""PyTorch as the backend of an evaluation, with BatchNorm folded into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.batchnorm import batchnorms, check_batch
from lpk.networks.folding import Folded, alike
from lpk.networks.replay import Recorder, Replayed, is_gpu
from lpk.networks.states import input_dtype
from lpk.networks.tracing import hooks
from lpk.pooling.convolutions import LaidOut, fuse, laid_out

COUNTLESS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # train without a counter; others may ask for theirs


class Eager:
    """Computes what a model in evaluation mode computes, in PyTorch; the same interface as lpk.sparse.network.Network.

    On a GPU its layers are as lpk.pooling.convolutions says.

    Args:
        model: its values are read when `prepare` or a call comes after `changed`.
        autocast: the dtype that PyTorch computes in where that is safe (torch.autocast); None: the model's own.
        recorder: what may record the writing of the weights that it computes with; None: nothing does.
    """

    name = "torch"

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None, recorder: Recorder | None = None) -> None:
        self.model = model
        self.autocast = autocast
        self.parameter = next(model.parameters())
        self.dtype = input_dtype(model)
        self.batchnorms = {module: path for path, module in batchnorms(model)}
        self.on_gpu = is_gpu(self.parameter.device)
        self.laid_out: LaidOut | None = None
        self.folded: Folded | None = None
        self._recorder = recorder or Recorder(self.parameter.device, "nothing is to be recorded")
        self._write: Replayed | None = None
        self._update: Replayed | None = None
        self._tried = False
        self._weights_stale = self._folded_stale = True

    def changed(self, *, weights: bool = True) -> None:
        """To be called after the model's values changed. weights: False: only BatchNorm's statistics did."""
        self._weights_stale |= weights
        self._folded_stale = True

    def prepare(self, inputs: Tensor, *, measuring: bool) -> None:
        """Does what has to be done once for a network, before it is called with inputs [B, ...], or measured."""
        with torch.inference_mode():
            if not self._tried:
                self._tried = True
                self._choose(inputs)
            if self.folded is not None and not measuring:
                assert self._update is not None
                if self._folded_stale:
                    self._update()
                self._folded_stale = False
            elif self._weights_stale:
                if self._write is not None:
                    self._write()
                self._weights_stale = False

    def measure(self, inputs: Tensor) -> dict[_BatchNorm, int]:
        """Writes the statistics of one batch into the BatchNorm layers: the mean and the unbiased variance of what each
        of them reads, the others before it normalising by theirs. Nothing else trains.

        Returns how often each layer was called. Where that is more than once, its statistics are the calls' mean.

        Raises ValueError where a layer reads one value for each channel.
        """
        self.prepare(inputs, measuring=True)
        with _training(self.batchnorms, len(inputs)) as calls, torch.inference_mode(), _used(self.laid_out):
            self._forward(self.model, inputs)
        self.changed(weights=False)
        return calls

    def __call__(self, inputs: Tensor) -> Tensor:
        """The model's output for inputs [B, ...]."""
        self.prepare(inputs, measuring=False)
        with torch.inference_mode():
            if self.folded is not None:
                with _used(_laid_out(self.folded)):
                    return self._forward(self.folded.network, inputs)
            with _used(self.laid_out):
                return self._forward(self.model, inputs)

    def plainly(self, inputs: Tensor) -> Tensor:
        """As a call, but unfolded, and so that what runs can be watched."""
        return self._forward(self.model, inputs)

    def _forward(self, network: nn.Module, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.parameter.device, self.dtype if inputs.is_floating_point() else inputs.dtype)
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with autocast, _no_stopwatch() if self.on_gpu else nullcontext():
            output: Tensor = network(inputs)
        return output

    def _choose(self, inputs: Tensor) -> None:
        """How the model is computed: by what computes the same for these inputs."""
        copies = LaidOut(self.model, self.autocast) if self.on_gpu else None
        if copies and self._computes_with(copies, inputs):
            self.laid_out = copies
            self._write = self._recorder.replayed(copies.write, lambda: copies.copies)
        self.folded = self._fold(inputs) if self.batchnorms else None
        if self.folded is not None:
            self._update = self._recorder.replayed(self.folded.update, self.folded.tensors)

    def _computes_with(self, copies: LaidOut, inputs: Tensor) -> bool:
        """Whether the model computes the same with copies of its weights."""
        expected = self._forward(self.model, inputs)
        copies.write()
        try:
            with copies.used():
                return alike(self._forward(self.model, inputs), expected)
        except RuntimeError:  # a forward that turns autocast off does not take weights of its dtype
            return False

    def _fold(self, inputs: Tensor) -> Folded | None:
        """The folded model; None where the model can't be traced, or not so that it computes the same."""
        if any(not path for path, _ in hooks(self.model)):  # the graph has no hooks of the model itself
            return None
        for kind in (FoldedOnGpu, Folded) if self.on_gpu else (Folded,):
            try:
                folded = FoldedOnGpu(self.model, self.autocast) if kind is FoldedOnGpu else Folded(self.model)
                if not len(folded):
                    return None
                with _used(_laid_out(folded)):
                    made = self._forward(folded.network, inputs)
            except Exception:  # whatever a stranger's forward raises when it is given a proxy
                continue
            if alike(made, self._forward(self.model, inputs)):
                return folded
        return None


def _used(copies: LaidOut | None) -> AbstractContextManager[None]:
    return nullcontext() if copies is None else copies.used()


def _laid_out(folded: Folded) -> LaidOut | None:
    return folded.laid_out if isinstance(folded, FoldedOnGpu) else None


@contextmanager
def _no_stopwatch() -> Iterator[None]:
    """cuDNN chooses its algorithms by rule, not by timing them: numbers would be others from run to run."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _training(layers: dict[_BatchNorm, str], samples: int) -> Iterator[dict[_BatchNorm, int]]:
    """BatchNorm layers that train and hold the mean of the statistics of all calls, which are counted; momentum and
    counters are put back."""
    saved = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    calls = dict.fromkeys(layers, 0)

    def called(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        assert isinstance(layer, _BatchNorm)
        x = next(iter((*args, *kwargs.values())))
        check_batch(layers[layer] or type(layer).__name__, samples, x.numel() // max(1, layer.num_features))
        calls[layer] += 1
        layer.momentum = 1.0 / calls[layer]  # of the first call 1: nothing remains of what was there before

    handles = [layer.register_forward_pre_hook(called, with_kwargs=True) for layer in layers]
    for layer, (_, tracked) in zip(layers, saved, strict=True):
        counter = None if tracked is None or type(layer) in COUNTLESS else tracked.clone()
        layer.momentum, layer.num_batches_tracked, layer.training = 1.0, counter, True
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for layer, (momentum, tracked) in zip(layers, saved, strict=True):
            layer.momentum, layer.num_batches_tracked, layer.training = momentum, tracked, False


class FoldedOnGpu(Folded):
    """As Folded; its convolutions are as lpk.pooling.convolutions says, computing in `autocast`.

    Attributes:
        laid_out: copies of the weights that are not folded, which it is to be called with.
    """

    laid_out: LaidOut | None = None

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__(model)
        for layer, _, folded in self.pairs:
            weight = laid_out(layer.weight, autocast)
            folded.weight = nn.Parameter(weight, requires_grad=False)
            folded.bias = nn.Parameter(weight.new_empty(len(weight)), requires_grad=False)
        fuse(self.network, [pair.folded for pair in self.pairs])
        self.network = fx.GraphModule(self.network, self.network.graph)  # without the weights that are not needed
        self.laid_out = LaidOut(self.network, autocast)
        self.update()

    def tensors(self) -> list[Tensor]:
        return super().tensors() + ([] if self.laid_out is None else self.laid_out.copies)

    def update(self) -> None:
        if self.laid_out is not None:
            self.laid_out.write()
        super().update()
