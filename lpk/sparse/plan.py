"""What a network computes, as steps of the engine: its graph is walked once, and each node's place is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from lpk.networks import tracing
from lpk.networks.plain import is_plain
from lpk.sparse.batches import Assumptions, Batch
from lpk.sparse.calls import Call, is_convolution, pair
from lpk.sparse.endings import keep_types
from lpk.sparse.errors import Fails, NotSupported
from lpk.sparse.fusion import Fused
from lpk.sparse.results import BATCH, Results, described, is_sample, name_of, sample_shape, tensors
from lpk.sparse.steps import Affine, Convolve, Flatten, Foreign, Plan, Pool, Shape, Value

BATCHES = (BATCH, 3, 1000)  # what holds for these is taken to hold, until another size shows that it doesn't
POSSIBLE = "(C, H, W) or (F,) for each sample"


def trace(model: nn.Module, shape: Shape, batches: Sequence[int] = BATCHES, *, changing: bool = False) -> Plan:
    """The plan of a model in evaluation mode for float32 samples of this shape. It holds for batches of these sizes,
    and says which others it holds for. changing: whether buffers will have other values.

    Raises NotSupported for a model that torch.fx can't trace, and one with forward hooks.
    """
    for path, hook in tracing.hooks(model):
        raise NotSupported(f"{path or type(model).__name__} has the forward hook {hook}, which the engine can't run")
    problem = f"{type(model).__name__} can't be traced for inputs {shape}"
    try:
        graph = tracing.trace(model, changing=changing)
    except ValueError as error:
        raise NotSupported(f"{problem}: {error}") from error
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode(False), torch.no_grad():  # inference tensors do not tell that they were changed
        inputs = torch.zeros(BATCH, *shape, dtype=torch.float32, device=device)
        try:
            Results(graph).run(inputs)
        except Fails as error:
            raise Fails(f"{problem}: {error}") from error.__cause__
        plan = _Planner(graph, batches).run()
        if plan.ending is not None:
            keep_types(plan, model, inputs)
    for step in plan.steps:
        if isinstance(step, Convolve) and isinstance(step.layer, nn.Conv2d):
            step.inputs[0].border = max(step.inputs[0].border, *pair(step.layer.padding))
    return plan


class _Planner:
    """Walks the graph once.

    Only what is one float32 tensor for a batch, of features or images, is a value. The rest (numbers, tuples, what is
    made of weights alone) is left to those that read it: they compute it in PyTorch.
    """

    def __init__(self, graph: fx.GraphModule, batches: Sequence[int]) -> None:
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.values: dict[fx.Node, Value] = {}
        self.batches = [Batch(graph, self.values, size) for size in batches]
        self.assumed = Assumptions(graph, self.values)
        self.constants = self.assumed.numbers  # and tuples of them, that are the same for every batch
        self.left: set[fx.Node] = set()  # to their readers, as far as they depend on the input
        self.fused = Fused(self.values)

    def run(self) -> Plan:
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        used = [node for node in inputs if node.users]
        if len(used) != 1:
            raise NotSupported(f"the model reads {len(used)} inputs; one is needed")
        output = None
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if node.users:
                    if not is_sample(node):
                        raise NotSupported(f"samples have the shape {sample_shape(node)}; {POSSIBLE} is possible")
                    self.values[node] = Value(sample_shape(node))
            elif node.op == "output":
                output = node
            elif any(n in self.values or n in self.left for n in node.all_input_nodes):
                self._add(node)
            else:
                self._for_batches(node)
        assert output is not None
        outputs, ending = self._ending(output)
        return Plan(self.values[used[0]], outputs, self.fused.steps, ending, self.assumed.hold)

    def _add(self, node: fx.Node) -> None:
        node.args = fx.map_arg(node.args, lambda n: self.constants.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: self.constants.get(n, n))
        call = Call(node, self.modules)
        source = call.source
        if not is_sample(node):
            self._leave(node)
        elif source is None or source not in self.values or not self._known(call, node, source):
            if self._for_batches(node) and not self._has_shape(node, sample_shape(node)):
                self._leave(node)  # as many samples as there are channels, or the like
            else:
                self._foreign(node)
        for changed, is_same in node.meta["changes"]:
            self._change(changed, node, is_same)

    def _leave(self, node: fx.Node) -> None:
        """Leaves a node to its readers, unless it is a number that is known."""
        self.left.add(node)
        if not tensors(node.meta["result"]):
            results = self._for_batches(node)
            if results and _is_numbers(results) and all(result == results[0] for result in results):
                self.constants[node] = results[0]

    def _change(self, changed: fx.Node, node: fx.Node, is_same: bool) -> None:
        """A node changes the result of another in place: who reads that from now on reads the node, if both are one."""
        waiting = any(n in self.left and tensors(n.meta["result"]) for n in changed.users)
        if not is_same or waiting or changed not in self.values or node not in self.values:
            raise NotSupported(f"{name_of(node)} changes in place what others read, too")
        self.values[changed] = self.values[node]

    def _known(self, call: Call, node: fx.Node, source: fx.Node) -> bool:
        """Adds the engine's step for a call, if it has one."""
        module = call.module
        if call.is_view() and self._flattens(node, source):
            self.assumed.views.add(node)
            self.fused.append(node, Flatten([self.values[source]], Value(sample_shape(node))))
        elif any(n not in self.values for n in node.all_input_nodes):
            return False
        elif call.is_identity():
            if len(source.users) == 1:
                self.values[node] = self.values[source]
            else:
                self.fused.append(node, Affine([self.values[source]], Value(sample_shape(node))))
        elif is_convolution(module) or (is_plain(module, nn.Linear) and len(sample_shape(source)) == 1):
            self.fused.append(node, Convolve([self.values[source]], Value(sample_shape(node)), module))
        elif is_plain(module, nn.BatchNorm2d, nn.BatchNorm1d) and module.running_mean is not None:
            self.fused.batchnorm(node, source, module)
        elif (activation := call.activation()) is not None:
            self.fused.activation(node, source, activation)
        elif call.is_add() and (other := call.other) is not None:
            if sample_shape(source) != sample_shape(other):
                return False
            self.fused.addition(node, source, other)
        elif (pool := call.pool(sample_shape(source))) is not None:
            self.fused.append(node, Pool([self.values[source]], Value(sample_shape(node)), *pool))
        else:
            return False
        return True

    def _foreign(self, node: fx.Node) -> None:
        """PyTorch runs it, after what was left to it."""
        nodes = self._needed(node)
        values = [self.values[n] for n in nodes if n in self.values]
        counts = any(self._counts(n) for n in nodes if n not in self.values)
        self.fused.append(node, Foreign(values, Value(sample_shape(node)), part=self._part(nodes), counts=counts))

    def _ending(self, output: fx.Node) -> tuple[list[Value], fx.GraphModule | None]:
        """The values that what the model returns is computed from, and that computation, if there is any."""
        returned = output.args[0]
        if isinstance(returned, fx.Node) and returned in self.values:
            return [self.values[returned]], None
        nodes = self._needed(output)
        values = [self.values[n] for n in nodes if n in self.values]
        if not values:
            raise NotSupported(f"what the model returns, {described(returned)}, is not computed from its input")
        return values, self._part(nodes)

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        """The node last, before it what was left to it, and the values that those read."""
        needed = {node}
        for n in reversed(self.graph.graph.nodes):
            if n in needed and n not in self.values:
                needed.update(n.all_input_nodes)
        return [n for n in self.graph.graph.nodes if n in needed]

    def _part(self, nodes: list[fx.Node]) -> fx.GraphModule:
        """What computes the last of these nodes, or what that returns, from those that are values."""
        graph = fx.Graph()
        copies = {n: graph.placeholder(n.name) for n in nodes if n in self.values}
        for n in nodes:
            if n not in copies and n.op != "output":
                copies[n] = graph.node_copy(n, copies.__getitem__)
        result = nodes[-1].args[0] if nodes[-1].op == "output" else nodes[-1]
        graph.output(fx.map_arg(result, copies.__getitem__))
        return fx.GraphModule(self.graph, graph)

    def _counts(self, node: fx.Node) -> bool:
        """Whether a node that is left to others returns what depends on how many samples there are."""
        if node not in self.left or tensors(node.meta["result"]):
            return False
        results = self._for_batches(node)
        return not results or any(result != results[0] for result in results)

    def _for_batches(self, node: fx.Node) -> list[Any]:
        """What a node returns for each of the batches, tensors without their values; [] if not known."""
        try:
            return [batch.evaluate(node) for batch in self.batches]
        except Exception:  # whatever an operation raises that needs values
            return []

    def _flattens(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a view joins all dimensions but the batch's, however large that is."""
        return self._has_shape(node, (math.prod(sample_shape(source)),))

    def _has_shape(self, node: fx.Node, shape: Shape) -> bool:
        """Whether a node is known to return samples of this shape, as many as it is given."""
        found = [tuple(result.shape) for result in self._for_batches(node)]
        return found == [(batch.size, *shape) for batch in self.batches]


def _is_numbers(result: Any) -> bool:
    return all(map(_is_numbers, result)) if isinstance(result, tuple | list) else isinstance(result, int | float)
