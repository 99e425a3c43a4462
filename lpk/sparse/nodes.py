"""What is known of a graph's nodes while a plan is made of them: where they are, and their shapes for any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx

from lpk.sparse.batches import Assumptions, Batch, View, has_batch
from lpk.sparse.calls import Call
from lpk.sparse.fusion import Fused
from lpk.sparse.inputs import Inputs
from lpk.sparse.regions import Regions
from lpk.sparse.results import name_of, tensors
from lpk.sparse.steps import Pack, Seen, Slot, Value
from lpk.sparse.views import packed_image

LONGEST = 8  # views, one after the other


class Nodes:
    """The nodes of a graph that ran once (lpk.sparse.results): those that are seen on the engine, and those of PyTorch.

    batches: sizes, for which what is known of a node is to be the same.
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
        self.rewritten: set[fx.Node] = set()  # what is changed in place, and read again
        self.changed: set[fx.Node] = set()  # of it what others change that have another view, and those views
        for node in graph.graph.nodes:
            changes = node.meta.get("changes", ())
            behind = [changed for changed, is_same in changes if not is_same]
            self.rewritten.update(changed for changed, _ in changes)
            self.changed.update(behind, node.all_input_nodes if behind else ())

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

    def _viewed(self, nodes: Sequence[fx.Node], seen: Callable[[Batch], Any]) -> Any:
        """What views are seen as, which is taken for granted then; None where it is not the same for all batches."""
        found = self._same_for_batches(seen)
        if found is not None:
            self.assumed.views.append(View(nodes, seen, found))
        return found

    def _views(self, node: fx.Node, *, parts: bool = False) -> tuple[list[fx.Node], fx.Node | None]:
        """The views, one after the other, of which a node is the last, and what they are views of: a value, or what is
        no view. parts: whether one of the parts that something was split into counts as one."""
        views = [node]
        while (root := self._call(views[0]).source) is not None and root not in self.seen and len(views) < LONGEST:
            call = self._call(root)
            if not (call.is_view() or call.is_identity() or (parts and call.is_part())):
                break
            views.insert(0, root)
        return views, root

    def _call(self, node: fx.Node) -> Call:
        return Call(node, self.modules, self._constant)

    def _constant(self, node: fx.Node) -> Tensor | None:
        """The parameter or buffer that a node is, or views. Views of weights, whose values may be kept elsewhere, are
        none."""
        call = self._call(node) if node.op in ("call_function", "call_method") else None
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


def image_of(node: fx.Node) -> tuple[int, int, int]:
    _, channels, height, width = node.meta["result"].shape
    return channels, height, width


def dim_of(dim: Any, dims: int) -> int:
    """Counted from the first."""
    return int(dim) % dims
