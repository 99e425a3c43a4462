"""Nodes as the engine's steps: layers, views, additions and products, with what they need of other nodes."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from lpk.sparse.attending import Attending
from lpk.sparse.batches import has_batch
from lpk.sparse.calls import VIEWS, Call
from lpk.sparse.filters import convolution_of
from lpk.sparse.nodes import dim_of, image_of
from lpk.sparse.steps import (
    Concatenate,
    Convolve,
    Flatten,
    Layer,
    LayerNorm,
    PerChannel,
    Pick,
    Pool,
    Relayout,
    Seen,
    Value,
)

FEW = 3  # samples, for which views of values are tried


class Placing(Attending):
    """Adds the engine's step for a node, where it has one and the operands are there."""

    def _on_engine(self, call: Call, node: fx.Node) -> bool:
        if (layer := call.layer()) is not None:
            return self._layer(layer, call, node)
        if (found := call.concatenated()) is not None:
            return self._concatenate(*found, node)
        if (call.is_identity() or call.is_view() or call.function is operator.getitem) and node in self.changed:
            return False
        if call.function is operator.getitem:
            return self._pick(call, node)
        source = call.source
        if source is not None and source not in self.seen and call.layer_norm() is not None:
            self._packed_for_good(source)
        if source is None or source not in self.seen:
            return self._attended(node) or self._shuffle(node) if call.is_view() else self._operands(call, node)
        seen = self.seen[source]
        if call.is_identity():
            self.fused.view(node, source, seen)
        elif call.is_view():
            return self._view(node, source)
        elif (activation := call.activation()) is not None:
            self.fused.activation(node, source, activation)
        elif (normalisation := self._batchnorm(call)) is not None:
            if seen.last and len(seen.shape) > 1:
                return False
            self.fused.normalisation(node, source, normalisation)
        elif (norm := call.layer_norm()) is not None:
            if not seen.last and len(seen.shape) > 1:
                return False
            out = Value(seen.value.image)
            self.fused.append(node, LayerNorm([seen.value], out, *norm), seen.of(out))
        elif (dims := call.averaged()) is not None:
            return self._average(node, seen, dims)
        elif not seen.last and len(seen.shape) == 3 and (pool := call.pool(seen.value.image[1:])) is not None:
            return self._pool(node, seen, *pool)
        else:
            return self._operands(call, node)
        return True

    # --- layers ---

    def _pool(self, node: fx.Node, seen: Seen, kind: str, options: dict[str, Any]) -> bool:
        out = Value(image_of(node))
        found = Seen(out, out.image, False)
        if kind == "average" and options["count_padding"] and options["kernel"] != options["stride"]:
            # Windows that overlap are those of a convolution, whose patches need no whole images.
            kernel, padding, channels = options["kernel"], options["padding"], seen.value.channels
            share = torch.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=torch.float32, device="cpu")
            layer = Layer(share, None, options["stride"], padding, padding, groups=channels)
            if convolution_of(layer).output_size(*seen.value.image[1:]) == out.image[1:]:
                self.fused.append(node, Convolve([seen.value], out, layer), found)
                return True
        self.fused.append(node, Pool([seen.value], out, kind, options), found)
        return True

    def _layer(self, layer: Layer, call: Call, node: fx.Node) -> bool:
        dense = layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
        assert call.source is not None
        source, layer = self._unpadded(call.source, layer)
        seen = self._packed(source, last=layer.weight.dim() == 2) if dense else None
        if seen is None or (layer.weight.dim() == 4 and len(seen.shape) != 3):
            return False
        if layer.weight.dim() == 2:
            out = Value((len(layer.weight), *seen.value.image[1:]))
            found = Seen(out, (*seen.shape[:-1], len(layer.weight)), True, seen.times)
        else:
            out = Value(image_of(node))
            found = Seen(out, out.image, False)
        self.fused.append(node, Convolve([seen.value], out, layer), found)
        return True

    def _unpadded(self, node: fx.Node, layer: Layer) -> tuple[fx.Node, Layer]:
        """A convolution of zeros around images is one of the images, with more padding, unless those are others now."""
        found = self._call(node).padding()
        images = node.args[0] if found is not None else None
        if layer.weight.dim() != 4 or found is None or not isinstance(images, fx.Node):
            return node, layer
        if self.rewritten & {node, images}:
            return node, layer
        left, right, top, bottom = found
        before = layer.padding[0] + top, layer.padding[1] + left
        behind = layer.behind[0] + bottom, layer.behind[1] + right
        return self._unpadded(images, replace(layer, padding=before, behind=behind))

    def _batchnorm(self, call: Call) -> Any:
        """BatchNorm whose statistics are measured must be a module."""
        found = call.batchnorm()
        return None if self.changing and isinstance(found, PerChannel) else found

    # --- views ---

    def _view(self, node: fx.Node, source: fx.Node) -> bool:
        seen = self.seen[source]
        layout = self._viewed([node], lambda batch: batch.layout(node, source, seen))
        if layout is not None:
            shape, last, times = layout
            self.fused.view(node, source, Seen(seen.value, shape, last, times))
            return True
        shape = (math.prod(seen.shape),)
        if seen.last or self._shape(node) != (1, shape):
            return False
        self.assumed.shapes[node] = 1, shape
        out = Value((shape[0], 1, 1))
        self.fused.append(node, Flatten([seen.value], out), Seen(out, shape, True))
        return True

    def _shuffle(self, node: fx.Node) -> bool:
        """The last of several views, whose result has a value's channels in another order."""
        views, root = self._views(node)
        if root is None or root not in self.seen or self.changed.intersection(views):
            return False
        seen = self.seen[root]
        if seen.last or len(seen.shape) != 3 or self._shape(node) != (1, seen.shape):
            return False
        try:
            found = [batch.channels(views, root, seen.shape) for batch in self.batches if batch.size <= FEW]
        except Exception:  # whatever an operation raises
            return False
        if found[0] is None or any(channels != found[0] for channels in found):
            return False
        self.assumed.shapes[node] = 1, seen.shape
        out = Value(seen.value.image)
        self.fused.append(node, Pick([seen.value], out, found[0]), seen.of(out))
        return True

    def _pick(self, call: Call, node: fx.Node) -> bool:
        """Some of a value's channels: a slice, or one of the parts that it was split into."""
        source = call.source
        if source in self.seen:
            dim = self._channel_dim(self.seen[source])
            picked = call.channels(dim, self.seen[source].value.channels)
        else:
            source, picked = self._split(source, node.args[1])
        if source is None or not picked or self._shape(node) is None:
            return False
        if any(user.target in VIEWS for user in node.users):
            return False  # heads of attention, which need no place of their own
        seen, channels = self.seen[source], list(picked)
        out = Value((len(channels), *seen.value.image[1:]))
        shape = (*seen.shape[:-1], len(channels)) if seen.last else (len(channels), *seen.shape[1:])
        self.fused.append(node, Pick([seen.value], out, channels), Seen(out, shape, seen.last, seen.times))
        return True

    def _split(self, split: fx.Node | None, number: Any) -> tuple[fx.Node | None, range]:
        """What was split into parts along its channels, and the channels of one part."""
        known = (torch.chunk, torch.split, "chunk", "split", torch.functional.split)
        source = split.args[0] if split is not None and split.target in known and split.args else None
        if split is None or not isinstance(source, fx.Node) or source not in self.seen or not isinstance(number, int):
            return None, range(0)
        seen, parts = self.seen[source], split.meta["result"]
        dim = dim_of(split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0), 1 + len(seen.shape))
        if dim != self._channel_dim(seen):
            return None, range(0)
        sizes = [part.shape[dim] for part in parts]
        first = sum(sizes[: number % len(sizes)])
        return source, range(first, first + sizes[number])

    def _channel_dim(self, seen: Seen) -> int:
        return len(seen.shape) if seen.last else 1

    def _concatenate(self, nodes: list[fx.Node], dim: Any, node: fx.Node) -> bool:
        first = next((self.seen[n] for n in nodes if n in self.seen), None)
        if first is None or not isinstance(dim, int):
            return False
        if dim_of(dim, 1 + len(first.shape)) != self._channel_dim(first) or any(
            not has_batch(n.meta["result"]) for n in nodes
        ):
            return False
        found = [self._packed(n, last=first.last) for n in nodes]
        parts = [seen for seen in found if seen is not None and seen.value.image[1:] == first.value.image[1:]]
        if len(parts) < len(nodes):
            return False
        channels = sum(seen.value.channels for seen in parts)
        out = Value((channels, *first.value.image[1:]))
        shape = (*first.shape[:-1], channels) if first.last else (channels, *first.shape[1:])
        values = [seen.value for seen in parts]
        self.fused.append(node, Concatenate(values, out), Seen(out, shape, first.last, first.times))
        return True

    def _average(self, node: fx.Node, seen: Seen, dims: tuple[int, ...]) -> bool:
        """Over all pixels of a sample."""
        pixels = range(1, len(seen.shape)) if seen.last else range(2, 1 + len(seen.shape))
        if seen.times != 1 or sorted(dim_of(d, 1 + len(seen.shape)) for d in dims) != list(pixels) or not dims:
            return False
        out, shape = Value((seen.value.channels, 1, 1)), tuple(node.meta["result"].shape[1:])
        self.fused.append(node, Pool([seen.value], out, "global average"), Seen(out, shape, seen.last))
        return True

    # --- additions and products ---

    def _operands(self, call: Call, node: fx.Node) -> bool:
        """Of two operands, one of which may be a number, or one for each channel."""
        a, b = call.argument(0, "input", None), call.other
        if isinstance(a, fx.Node) and a in self.seen and (change := self._taken_off(call, self.seen[a], b)) is not None:
            self.fused.normalisation(node, a, change)
            return True
        if not call.is_add() and not call.is_multiply():
            return False
        for x, y in ((a, b), (b, a)):
            if isinstance(x, fx.Node) and x in self.seen and (found := self._per_channel(self.seen[x], y)) is not None:
                change = PerChannel(bias=found) if call.is_add() else PerChannel(weight=found)
                self.fused.normalisation(node, x, change)
                return True
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or not {a, b} & self.seen.keys():
            return False
        if not has_batch(a.meta["result"]) or not has_batch(b.meta["result"]):
            return False
        if a.meta["result"].shape == b.meta["result"].shape:
            return self._of_alike(call, node, a, b)
        if call.is_multiply():
            return self._of_one_pixel(node, a, b) or self._of_one_pixel(node, b, a)
        return False

    def _taken_off(self, call: Call, seen: Seen, operand: Any) -> PerChannel | None:
        """What is subtracted from a value, or what that is divided by: a number."""
        if not isinstance(operand, int | float):
            return None
        if call.is_subtract():
            return PerChannel(bias=self._per_channel(seen, -operand))
        return PerChannel(weight=self._per_channel(seen, 1 / operand)) if call.is_divide() and operand else None

    def _of_alike(self, call: Call, node: fx.Node, a: fx.Node, b: fx.Node) -> bool:
        main, other = (a, b) if a in self.seen else (b, a)
        seen = self.seen[main]
        if (added := self._packed(other, last=seen.last)) is None or added.times != seen.times:
            return False
        if added.value.image != seen.value.image:
            out = Value(seen.value.image)
            self.steps.append(Relayout([added.value], out))
            added = added.of(out)
        if call.is_multiply():
            self.fused.product(node, seen, added)
            return True
        self.fused.addition(node, main, other, added)
        return True

    def _of_one_pixel(self, node: fx.Node, a: fx.Node, b: fx.Node) -> bool:
        """Of all pixels with one that stands for each channel, as of squeeze-and-excitation."""
        if a not in self.seen or b not in self.seen:
            return False
        x, y = self.seen[a], self.seen[b]
        expected = (*[1] * (len(x.shape) - 1), x.shape[-1]) if x.last else (x.shape[0], *[1] * (len(x.shape) - 1))
        if y.shape != expected or y.value.pixels != 1 or x.times != 1:
            return False
        self.fused.product(node, x, y)
        return True

    def _per_channel(self, seen: Seen, operand: Any) -> Tensor | None:
        """A number, or a parameter of one for each channel, as a tensor [channels]."""
        channels = seen.value.channels
        if isinstance(operand, bool):
            return None
        if isinstance(operand, int | float):
            return torch.full((channels,), float(operand), dtype=torch.float32, device="cpu")
        constant = self._constant(operand) if isinstance(operand, fx.Node) else None
        if constant is None or constant.dtype != torch.float32 or constant.device.type != "cpu":
            return None
        dims = 1 + len(seen.shape)
        shape = (*[1] * (dims - constant.dim()), *constant.shape)
        wanted = [1] * dims
        wanted[-1 if seen.last else 1] = channels
        if constant.numel() == 1 and len(shape) == dims:
            return constant.reshape(1).expand(channels)
        return constant.reshape(channels) if list(shape) == wanted else None
