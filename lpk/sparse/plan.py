"""What a network computes, as steps of the engine: its graph is walked once, and each node's place is found."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from lpk.networks import tracing
from lpk.sparse.batches import Assumptions, Batch, has_batch
from lpk.sparse.calls import VIEWS, Call, Unknown
from lpk.sparse.endings import keep_types
from lpk.sparse.errors import Fails, NotSupported
from lpk.sparse.filters import convolution_of
from lpk.sparse.fusion import Fused
from lpk.sparse.inputs import Inputs
from lpk.sparse.regions import Regions
from lpk.sparse.results import BATCH, Results, described, name_of, tensors
from lpk.sparse.steps import (
    Concatenate,
    Convolve,
    Flatten,
    Layer,
    LayerNorm,
    Pack,
    PerChannel,
    Pick,
    Plan,
    Pool,
    Relayout,
    Seen,
    Shape,
    Slot,
    Value,
)
from lpk.sparse.views import packed_image

LONGEST_SHUFFLE = 6  # views, one after the other
FEW = 3  # samples, for which views of values are tried
BATCHES = (BATCH, 3, 1000)  # what holds for these is taken to hold, until another size shows that it doesn't


def trace(model: nn.Module, given: Inputs | Shape, batches: Sequence[int] = BATCHES, *, changing: bool = False) -> Plan:
    """The plan of a model in evaluation mode for such inputs; a shape stands for float32 samples of it. It holds for
    batches of these sizes, and says which others it holds for. changing: whether buffers will have other values.

    Raises NotSupported for a model that torch.fx can't trace, and one with forward hooks.
    """
    inputs = given if isinstance(given, Inputs) else Inputs.of_shape(given)
    for path, hook in tracing.hooks(model):
        raise NotSupported(f"{path or type(model).__name__} has the forward hook {hook}, which the engine can't run")
    problem = f"{type(model).__name__} can't be traced for inputs {inputs}"
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        graph = _graph(model, inputs, device, changing)
    except ValueError as error:
        raise NotSupported(f"{problem}: {error}") from error
    with torch.inference_mode(False), torch.no_grad():  # inference tensors do not tell that they were changed
        examples = inputs.examples(BATCH, device)
        try:
            Results(graph).run(*examples)
        except Fails as error:
            raise Fails(f"{problem}: {error}") from error.__cause__
        plan = _Planner(graph, inputs, batches, changing).run()
        if plan.ending is not None:
            keep_types(plan, model, inputs)
    for step in plan.layers:
        step.inputs[0].border = max(step.inputs[0].border, *step.layer.padding, *step.layer.behind)
    return plan


def _graph(model: nn.Module, inputs: Inputs, device: torch.device, changing: bool) -> fx.GraphModule:
    """Where the model decides by shapes, it is traced with inputs that have some."""
    try:
        return tracing.trace(model, inputs.arguments, changing=changing, apart=not changing)
    except ValueError:
        examples = inputs.examples(BATCH, device)
        return tracing.trace(model, inputs.arguments, changing=changing, apart=not changing, examples=examples)


class _Planner:
    """Walks the graph once.

    A node is on the engine where that has a step for it and its operands are there; a layer, too, where they are
    tensors that can be packed. All else is left to PyTorch.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Inputs, batches: Sequence[int], changing: bool) -> None:
        self.graph = graph
        self.changing = changing
        self.modules = dict(graph.named_modules())
        self.seen: dict[fx.Node, Seen] = {}
        self.inputs = {
            node: Slot(node.name, node.meta["result"]) for node in graph.graph.nodes if node.op == "placeholder"
        }
        batched = dict(zip(self.inputs, inputs.batched, strict=True))
        self.batches = [Batch(graph, self.seen, batched, size) for size in batches]
        self.assumed = Assumptions(graph, self.seen, batched)
        self.constants = self.assumed.numbers  # and tuples of them, that are the same for every batch
        self.fused = Fused(self.seen)
        self.steps = self.fused.steps
        self.pytorch = Regions(graph, self.steps, self.seen, self.inputs, self._counts)
        self.packed: dict[tuple[fx.Node, bool], Seen] = {}
        self.changed: set[fx.Node] = set()  # in place by who has another view of the same, and those views
        for node in graph.graph.nodes:
            behind = [changed for changed, is_same in node.meta.get("changes", ()) if not is_same]
            self.changed.update(behind, node.all_input_nodes if behind else ())

    def run(self) -> Plan:
        output = None
        for node in self.graph.graph.nodes:
            if node.op == "output":
                output = node
            elif node.op not in ("placeholder", "get_attr"):
                self._add(node)
        assert output is not None
        outputs, ending = self._ending(output)
        return Plan(list(self.inputs.values()), outputs, self.steps, ending, self.assumed.hold, self.graph)

    def _add(self, node: fx.Node) -> None:
        node.args = fx.map_arg(node.args, lambda n: self.constants.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: self.constants.get(n, n))
        if self._can_change(node) and self._known(node):
            for changed, _ in node.meta["changes"]:
                self.seen[changed] = self.seen[node]
                self.pytorch.slots.pop(changed, None)
                self.fused.shared.add(self.seen[node].value)
        else:
            self._leave(node)

    def _known(self, node: fx.Node) -> bool:
        """Adds the engine's step for a node, if it has one."""
        if not has_batch(node.meta["result"]):
            return False
        try:
            return self._on_engine(Call(node, self.modules, self._constant), node)
        except Unknown:
            return False

    def _leave(self, node: fx.Node) -> None:
        """To PyTorch, unless it is a number that is known."""
        results = self._for_batches(node)
        if "assumed" in node.meta:
            if not results:
                raise NotSupported(f"the model decides by {name_of(node)}, which may be another for other values")
            self.constants[node] = node.meta["assumed"]
            return
        is_number = not tensors(node.meta["result"]) and bool(results) and _is_numbers(results)
        if is_number and all(result == results[0] for result in results):
            self.constants[node] = results[0]
            return
        self.pytorch.wait(node)
        for changed, _ in node.meta["changes"]:
            for key in [(changed, False), (changed, True)]:
                self.packed.pop(key, None)
        on_engine = [changed for changed, _ in node.meta["changes"] if changed in self.seen]
        if len(on_engine) > 1 or any(not self.pytorch.reads(changed) for changed in on_engine):
            raise NotSupported(f"{name_of(node)} changes in place what others read, too")
        for changed in on_engine:
            self.pytorch.change(changed)

    def _can_change(self, node: fx.Node) -> bool:
        """Whether what a node changes in place is on the engine alone, where its own value takes that place."""
        return all(
            is_same and changed in self.seen and not self.pytorch.reads(changed)
            for changed, is_same in node.meta["changes"]
        )

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
            return self._shuffle(node) if call.is_view() else self._operands(call, node)
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
        out = Value(_image(node))
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
            out = Value(_image(node))
            found = Seen(out, out.image, False)
        self.fused.append(node, Convolve([seen.value], out, layer), found)
        return True

    def _unpadded(self, node: fx.Node, layer: Layer) -> tuple[fx.Node, Layer]:
        """A convolution of zeros around images is one of the images, with more padding."""
        found = None if node in self.changed else Call(node, self.modules, self._constant).padding()
        if layer.weight.dim() != 4 or found is None or not isinstance(node.args[0], fx.Node):
            return node, layer
        left, right, top, bottom = found
        before = layer.padding[0] + top, layer.padding[1] + left
        behind = layer.behind[0] + bottom, layer.behind[1] + right
        return node.args[0], replace(layer, padding=before, behind=behind)

    def _batchnorm(self, call: Call) -> Any:
        """BatchNorm whose statistics are measured must be a module."""
        found = call.batchnorm()
        return None if self.changing and isinstance(found, PerChannel) else found

    # --- views ---

    def _view(self, node: fx.Node, source: fx.Node) -> bool:
        seen = self.seen[source]
        layout = self._same_for_batches(lambda batch: batch.layout(node, source, seen))
        if layout is not None:
            self.assumed.views[node] = source, seen, layout
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
        views, root = [node], node.args[0]
        while isinstance(root, fx.Node) and root not in self.seen and len(views) < LONGEST_SHUFFLE:
            call = Call(root, self.modules, self._constant)
            if not (call.is_view() or call.is_identity()):
                return False
            views.append(root)
            root = root.args[0]
        if not isinstance(root, fx.Node) or root not in self.seen or self.changed.intersection(views):
            return False
        seen = self.seen[root]
        if seen.last or len(seen.shape) != 3 or self._shape(node) != (1, seen.shape):
            return False
        try:
            found = [batch.channels(views[::-1], root, seen.shape) for batch in self.batches if batch.size <= FEW]
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
            return False  # heads of attention, which PyTorch computes
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
        dim = _dim(split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0), 1 + len(seen.shape))
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
        if _dim(dim, 1 + len(first.shape)) != self._channel_dim(first) or any(
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
        if seen.times != 1 or sorted(_dim(d, 1 + len(seen.shape)) for d in dims) != list(pixels) or not dims:
            return False
        out, shape = Value((seen.value.channels, 1, 1)), tuple(node.meta["result"].shape[1:])
        self.fused.append(node, Pool([seen.value], out, "global average"), Seen(out, shape, seen.last))
        return True

    # --- additions and products ---

    def _operands(self, call: Call, node: fx.Node) -> bool:
        """Of two operands, one of which may be a number, or one for each channel."""
        if not call.is_add() and not call.is_multiply():
            return False
        a, b = call.argument(0, "input", None), call.other
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
        known = self.seen.get(other)
        self.seen[other] = added
        self.fused.addition(node, main, other)
        if known is None:
            del self.seen[other]
        else:
            self.seen[other] = known
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

    # --- what is known of nodes ---

    def _packed(self, node: fx.Node, *, last: bool) -> Seen | None:
        """A node on the engine, in this order; a tensor of PyTorch's is packed."""
        seen = self.seen.get(node)
        if seen is not None and (seen.last == last or (seen.value.pixels == 1 and len(seen.shape) == 1)):
            return seen
        if (node, last) in self.packed:
            return self.packed[node, last]
        found = self._shape(node) if has_batch(node.meta["result"]) else None
        image = None if found is None else packed_image(found[1], last, found[0])
        if found is None or image is None or not self._is_computed(node):
            return None
        times, shape = found
        self.assumed.shapes[node] = times, shape
        slot = self.pytorch.slot(node)
        made = self.packed[node, last] = Seen(Value(image), shape, last, times)
        self.steps.append(Pack(slot, made, name_of(node)))
        return made

    def _packed_for_good(self, node: fx.Node) -> None:
        """Tokens of PyTorch's, to be normalised: layers follow, and they are added to what those make of them."""
        if len(node.meta["result"].shape) > 2 and node not in self.changed:
            seen = self._packed(node, last=True)
            if seen is not None:
                self.seen[node] = seen

    def _is_computed(self, node: fx.Node) -> bool:
        return node in self.seen or node in self.pytorch.slots or node in self.pytorch.waiting

    def _shape(self, node: fx.Node) -> tuple[int, tuple[int, ...]] | None:
        """How many rows there are for each sample, and their shape, whatever the batch."""

        def shape(batch: Batch) -> tuple[int, tuple[int, ...]] | None:
            result = batch.evaluate(node)
            rows, rest = result.shape[0], tuple(result.shape[1:])
            return None if rows % batch.size or rows == 0 else (rows // batch.size, rest)

        return self._same_for_batches(shape)

    def _same_for_batches(self, of: Any) -> Any:
        try:
            found = [of(batch) for batch in self.batches]
        except Exception:  # whatever an operation raises that needs values
            return None
        return found[0] if all(each == found[0] for each in found) else None

    def _constant(self, node: fx.Node) -> Tensor | None:
        """The parameter or buffer that a node is, or views. Views of weights, whose values may be kept elsewhere, are
        none."""
        call = Call(node, self.modules, self._constant) if node.op in ("call_function", "call_method") else None
        if call is not None and call.is_view() and call.source is not None and len(node.all_input_nodes) == 1:
            base = self._constant(call.source)
            if base is None or base.dim() > 1:
                return None
            view = getattr(base, node.target) if isinstance(node.target, str) else partial(node.target, base)
            return view(*node.args[1:], **node.kwargs)
        if node.op != "get_attr":
            return None
        found: Any = self.graph
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found if isinstance(found, Tensor) else None

    def _counts(self, node: fx.Node) -> bool:
        """Whether a node returns a number that depends on how many samples there are."""
        if node.op in ("placeholder", "get_attr") or tensors(node.meta["result"]):
            return False
        results = self._for_batches(node)
        return not results or any(result != results[0] for result in results)

    def _for_batches(self, node: fx.Node) -> list[Any]:
        """What a node returns for each of the batches, tensors without their values; [] if not known."""
        try:
            return [batch.evaluate(node) for batch in self.batches]
        except Exception:  # whatever an operation raises that needs values
            return []

    def _ending(self, output: fx.Node) -> tuple[list[Slot], fx.GraphModule | None]:
        """The slots that what the model returns is computed from, and that computation, if there is any."""
        returned = output.args[0]
        if isinstance(returned, fx.Node) and returned in self.seen:
            return [self.pytorch.unpack(returned)], None
        ending, reads = self.pytorch.ending(output)
        if not reads:
            raise NotSupported(f"what the model returns, {described(returned)}, is not computed from its input")
        return reads, ending


def _image(node: fx.Node) -> tuple[int, int, int]:
    _, channels, height, width = node.meta["result"].shape
    return channels, height, width


def _dim(dim: Any, dims: int) -> int:
    """Counted from the first."""
    return int(dim) % dims


def _is_numbers(result: Any) -> bool:
    return all(map(_is_numbers, result)) if isinstance(result, tuple | list) else isinstance(result, int | float)
