"""What PyTorch runs of a graph: its nodes wait until the engine reads what they return, and then run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from lpk.networks.known import is_shape_query
from lpk.sparse.results import name_of, tensors
from lpk.sparse.steps import AnyStep, Foreign, Seen, Slot, Unpack


class Regions:
    """The nodes that PyTorch runs, and where the results lie.

    Nodes that change others in place run in the graph's order with all that waits before them.

    Args:
        graph: the traced model.
        steps: of the plan, to which it adds.
        seen: the nodes that are values on the engine.
        inputs: what the model is given.
        counts: whether a node returns what depends on how many samples there are.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        steps: list[AnyStep],
        seen: dict[fx.Node, Seen],
        inputs: dict[fx.Node, Slot],
        counts: Callable[[fx.Node], bool],
    ) -> None:
        self.graph = graph
        self.steps = steps
        self.seen = seen
        self.counts = counts
        self.order = {node: i for i, node in enumerate(graph.graph.nodes)}
        self.slots = dict(inputs)  # of what was computed
        self.waiting: set[fx.Node] = set()
        self.unpacked: dict[Seen, Slot] = {}

    def wait(self, node: fx.Node) -> None:
        self.waiting.add(node)

    def reads(self, node: fx.Node) -> bool:
        """Whether something that waits, or was unpacked, reads a value."""
        return self.seen[node] in self.unpacked or any(n in self.waiting and not is_shape_query(n) for n in node.users)

    def slot(self, node: fx.Node) -> Slot:
        """Where a node's result lies, from here on."""
        if node in self.seen and node not in self.slots:
            return self.unpack(node)
        if node not in self.slots:
            self._run([node])
        elif any(n.meta["changes"] for n in self.waiting):
            self._run([])
        return self.slots[node]

    def _run(self, wanted: Sequence[fx.Node]) -> None:
        """Adds a step that computes these nodes."""
        part, reads, computed = self._part(wanted)
        inside = set(computed)
        written = [n for n in computed if n in wanted or any(user not in inside for user in n.users)]
        part.output([self.copies[n] for n in written])
        counts = any(map(self.counts, computed))
        for node in written:
            self.slots[node] = Slot(node.name, node.meta["result"])
        module = fx.GraphModule(self.graph, part)
        slots = [self.slots[n] for n in written]
        self.steps.append(Foreign(list(reads), slots, module, counts, name=name_of(computed[-1])))

    def ending(self, output: fx.Node) -> tuple[fx.GraphModule, list[Slot]]:
        """What computes what the model returns, and from what."""
        part, reads, _ = self._part(output.all_input_nodes)
        part.output(fx.map_arg(output.args[0], self.copies.__getitem__))
        return fx.GraphModule(self.graph, part), list(reads)

    def unpack(self, node: fx.Node, values: bool = True) -> Slot:
        """A value as a tensor; values: False: one that has its shape."""
        seen = self.seen[node]
        if not values:
            slot = Slot(node.name, node.meta["result"])
            self.steps.append(Unpack(seen, slot, False, name=name_of(node)))
            return slot
        if seen not in self.unpacked:
            self.unpacked[seen] = Slot(node.name, node.meta["result"])
            self.steps.append(Unpack(seen, self.unpacked[seen], name=name_of(node)))
        return self.unpacked[seen]

    def change(self, node: fx.Node) -> None:
        """A waiting node changes a value in place, as a tensor: that is what others read from now on."""
        self.slots[node] = self.unpack(node)
        del self.unpacked[self.seen.pop(node)]

    def _part(self, wanted: Sequence[fx.Node]) -> tuple[fx.Graph, dict[Slot, None], list[fx.Node]]:
        """A graph of what these nodes need, without its output; the slots that it reads; the nodes in it that waited.
        `copies` are the nodes in it."""
        needed, changing = set(wanted), [n for n in self.waiting if n.meta["changes"]]
        if changing:
            last = max(self.order[n] for n in changing)
            needed |= {
                n for n in self.waiting if self.order[n] <= last and (tensors(n.meta["result"]) or n in changing)
            }
        todo = list(needed)
        while todo:
            node = todo.pop()
            if node in self.waiting:
                new = [n for n in node.all_input_nodes if n not in needed]
                needed.update(new)
                todo += new
        nodes = sorted(needed, key=self.order.__getitem__)
        inside = {n for n in nodes if n in self.waiting or n.op == "get_attr"}
        part, reads, places = fx.Graph(), dict[Slot, None](), dict[Slot, fx.Node]()
        self.copies: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            if node not in inside:
                slot = self._read(node, inside, node in wanted)
                if slot not in places:
                    places[slot] = part.placeholder(node.name)
                    places[slot].meta["result"] = node.meta["result"]
                reads[slot], self.copies[node] = None, places[slot]
        for node in nodes:
            if node in inside:
                self.copies[node] = part.node_copy(node, self.copies.__getitem__)
        computed = [n for n in nodes if n in self.waiting]
        self.waiting.difference_update(computed)
        return part, reads, computed

    def _read(self, node: fx.Node, inside: set[fx.Node], wanted: bool) -> Slot:
        if node in self.slots:
            return self.slots[node]
        readers = [n for n in node.users if n in inside]
        shape_alone = not wanted and all(is_shape_query(n) for n in readers)
        return self.unpack(node, values=not shape_alone)
