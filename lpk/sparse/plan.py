"""What a network computes, as steps of the engine: traced once, with what follows a convolution fused into it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks import tracing
from lpk.networks.plain import is_plain
from lpk.sparse.batches import Assumptions, Batch
from lpk.sparse.calls import Call, is_convolution, pair
from lpk.sparse.steps import Affine, Convolve, Flatten, Foreign, Plan, Pool, Shape, Step, Value

BATCH = 2  # samples that a model is traced with
BATCHES = (BATCH, 3, 1000)  # what holds for these is taken to hold, until another size shows that it doesn't
POSSIBLE = "(C, H, W) or (F,) for each sample"


class NotSupported(ValueError):
    """A network that the engine can't run."""


class Fails(NotSupported):
    """A network that fails in PyTorch, too, for two samples of the inputs' shape."""


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
            _Results(graph).run(inputs)
        except Fails as error:
            raise Fails(f"{problem}: {error}") from error.__cause__
        plan = _Planner(graph, batches).run()
        if plan.ending is not None:
            _keep_types(plan, model, inputs)
    for step in plan.steps:
        if isinstance(step, Convolve) and isinstance(step.layer, nn.Conv2d):
            step.inputs[0].border = max(step.inputs[0].border, *pair(step.layer.padding))
    return plan


class _Results(fx.Interpreter):
    """Notes in the meta of each node its `result` for a batch, tensors without their values; and as `changes` the nodes
    whose results it changes in place before they are read again, each with whether that is its own result.

    Raises Fails.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # no nodes as torch.fx writes them in errors

    def run_node(self, n: fx.Node) -> Any:
        before = {(m, i): _version(t) for m, result in self.env.items() for i, t in enumerate(_tensors(result))}
        try:
            result = super().run_node(n)
        except Exception as error:  # whatever an operation raises
            raise Fails(f"{_name(n)} fails: {error}") from error
        n.meta["result"] = fx.node.map_aggregate(result, lambda x: x.to("meta") if isinstance(x, Tensor) else x)
        n.meta["changes"] = [
            (m, t is result)
            for m, found in self.env.items()
            for i, t in enumerate(_tensors(found))
            if _version(t) != before[m, i] and m not in self.user_to_last_uses.get(n, ())
        ]
        return result


class _Planner:
    """Walks the graph once; BatchNorm, additions and activations extend the step before them where that is possible.

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
        self.steps: list[Step] = []

    def run(self) -> Plan:
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        used = [node for node in inputs if node.users]
        if len(used) != 1:
            raise NotSupported(f"the model reads {len(used)} inputs; one is needed")
        output = None
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if node.users:
                    if not _is_sample(node):
                        raise NotSupported(f"samples have the shape {_shape(node)}; {POSSIBLE} is possible")
                    self.values[node] = Value(_shape(node))
            elif node.op == "output":
                output = node
            elif any(n in self.values or n in self.left for n in node.all_input_nodes):
                self._add(node)
            else:
                self._for_batches(node)
        assert output is not None
        outputs, ending = self._ending(output)
        return Plan(self.values[used[0]], outputs, self.steps, ending, self.assumed.hold)

    def _add(self, node: fx.Node) -> None:
        node.args = fx.map_arg(node.args, lambda n: self.constants.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: self.constants.get(n, n))
        call = Call(node, self.modules)
        source = call.source
        if not _is_sample(node):
            self._leave(node)
        elif source is None or source not in self.values or not self._known(call, node, source):
            if self._for_batches(node) and not self._has_shape(node, _shape(node)):
                self._leave(node)  # as many samples as there are channels, or the like
            else:
                self._foreign(node)
        for changed, is_same in node.meta["changes"]:
            self._change(changed, node, is_same)

    def _leave(self, node: fx.Node) -> None:
        """Leaves a node to its readers, unless it is a number that is known."""
        self.left.add(node)
        if not _tensors(node.meta["result"]):
            results = self._for_batches(node)
            if results and _is_numbers(results) and all(result == results[0] for result in results):
                self.constants[node] = results[0]

    def _change(self, changed: fx.Node, node: fx.Node, is_same: bool) -> None:
        """A node changes the result of another in place: who reads that from now on reads the node, if both are one."""
        waiting = any(n in self.left and _tensors(n.meta["result"]) for n in changed.users)
        if not is_same or waiting or changed not in self.values or node not in self.values:
            raise NotSupported(f"{_name(node)} changes in place what others read, too")
        self.values[changed] = self.values[node]

    def _known(self, call: Call, node: fx.Node, source: fx.Node) -> bool:
        """Adds the engine's step for a call, if it has one."""
        module = call.module
        if call.is_view() and self._flattens(node, source):
            self.assumed.views.add(node)
            self._append(node, Flatten([self.values[source]], Value(_shape(node))))
        elif any(n not in self.values for n in node.all_input_nodes):
            return False
        elif call.is_identity():
            if len(source.users) == 1:
                self.values[node] = self.values[source]
            else:
                self._append(node, Affine([self.values[source]], Value(_shape(node))))
        elif is_convolution(module) or (is_plain(module, nn.Linear) and len(_shape(source)) == 1):
            self._append(node, Convolve([self.values[source]], Value(_shape(node)), module))
        elif is_plain(module, nn.BatchNorm2d, nn.BatchNorm1d) and module.running_mean is not None:
            self._batchnorm(node, source, module)
        elif (activation := call.activation()) is not None:
            self._activation(node, source, activation)
        elif call.is_add() and (other := call.other) is not None:
            if _shape(source) != _shape(other):
                return False
            self._addition(node, source, other)
        elif (pool := call.pool(_shape(source))) is not None:
            self._append(node, Pool([self.values[source]], Value(_shape(node)), *pool))
        else:
            return False
        return True

    def _append(self, node: fx.Node, step: Step) -> None:
        self.steps.append(step)
        self.values[node] = step.out

    def _extendable(self, node: fx.Node) -> Convolve | Affine | None:
        """The step that computes this value, if nothing else reads it and no activation was applied to it."""
        value = self.values[node]
        step = next((s for s in reversed(self.steps) if s.out is value), None)
        if isinstance(step, Convolve | Affine) and step.activation == "identity" and len(node.users) == 1:
            return step
        return None

    def _batchnorm(self, node: fx.Node, source: fx.Node, module: _BatchNorm) -> None:
        step = self._extendable(source)
        if isinstance(step, Convolve) and step.batchnorm is None and step.residual is None:
            step.batchnorm = module
            self.values[node] = step.out
        else:
            self._append(node, Affine([self.values[source]], Value(_shape(node)), module))

    def _activation(self, node: fx.Node, source: fx.Node, activation: str) -> None:
        if (step := self._extendable(source)) is not None:
            step.activation = activation
            self.values[node] = step.out
        else:
            self._append(node, Affine([self.values[source]], Value(_shape(node)), activation=activation))

    def _addition(self, node: fx.Node, a: fx.Node, b: fx.Node) -> None:
        for source, other in ((a, b), (b, a)):
            step = self._extendable(source)
            if step is not None and step.residual is None and source is not other:
                # It runs now, when the other value is there: nobody has read its own so far.
                self.steps.remove(step)
                step.residual = self.values[other]
                step.inputs.append(step.residual)
                self._append(node, step)
                return
        x, residual = self.values[a], self.values[b]
        self._append(node, Affine([x, residual], Value(_shape(node)), residual=residual))

    def _foreign(self, node: fx.Node) -> None:
        """PyTorch runs it, after what was left to it."""
        nodes = self._needed(node)
        values = [self.values[n] for n in nodes if n in self.values]
        mixes = any(self._mixes(n) for n in nodes if n not in self.values)
        self._append(node, Foreign(values, Value(_shape(node)), part=self._part(nodes), mixes=mixes))

    def _ending(self, output: fx.Node) -> tuple[list[Value], fx.GraphModule | None]:
        """The values that what the model returns is computed from, and that computation, if there is any."""
        returned = output.args[0]
        if isinstance(returned, fx.Node) and returned in self.values:
            return [self.values[returned]], None
        nodes = self._needed(output)
        values = [self.values[n] for n in nodes if n in self.values]
        if not values:
            raise NotSupported(f"what the model returns, {_described(returned)}, is not computed from its input")
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

    def _mixes(self, node: fx.Node) -> bool:
        """Whether a node that is left to others returns what depends on how many samples there are."""
        if node not in self.left or _tensors(node.meta["result"]):
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
        return self._has_shape(node, (math.prod(_shape(source)),))

    def _has_shape(self, node: fx.Node, shape: Shape) -> bool:
        """Whether a node is known to return samples of this shape, as many as it is given."""
        found = [tuple(result.shape) for result in self._for_batches(node)]
        return found == [(batch.size, *shape) for batch in self.batches]


def _keep_types(plan: Plan, model: nn.Module, inputs: Tensor) -> None:
    """A graph knows no dicts but the plain one: the ending makes of them what the model returns. Raises NotSupported
    where it can't."""
    assert plan.ending is not None
    returned = model(inputs)
    graph = plan.ending.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (_as_types(graph, output.args[0], returned),)
    plan.ending.recompile()
    if not _same_types(returned, plan.ending.forward(*(inputs.new_zeros(len(inputs), *v.shape) for v in plan.outputs))):
        raise NotSupported(f"the model returns a value of type {type(returned).__name__}, which torch.fx does not keep")


def _as_types(graph: fx.Graph, result: Any, returned: Any) -> Any:
    """What a graph returns, with its dicts made an OrderedDict, or a dict that is a dataclass (transformers' outputs),
    where they are that in what the model returned."""
    if isinstance(result, dict) and isinstance(returned, dict) and list(result) == list(returned):
        items = {key: _as_types(graph, value, returned[key]) for key, value in result.items()}
        if type(returned) is OrderedDict:
            return graph.call_function(OrderedDict, (items,))
        return graph.call_function(type(returned), (), items) if is_dataclass(returned) else items
    plain = type(returned) in (tuple, list) and isinstance(result, type(returned)) and len(result) == len(returned)
    if plain and not hasattr(result, "_fields"):
        return type(result)(_as_types(graph, *both) for both in zip(result, returned, strict=True))
    return result


def _same_types(a: Any, b: Any) -> bool:
    """Whether two results are made of the same types."""
    if isinstance(a, dict) and isinstance(b, dict):
        return type(a) is type(b) and list(a) == list(b) and all(_same_types(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same_types, a, b))
    return type(a) is type(b)


def _is_sample(node: fx.Node) -> bool:
    """Whether a node returns features or an image for each sample, as the engine stores them."""
    result = node.meta["result"]
    if not isinstance(result, Tensor) or result.dtype != torch.float32:
        return False
    return result.dim() in (2, 4) and len(result) == BATCH


def _shape(node: fx.Node) -> Shape:
    """Of one sample."""
    return tuple(node.meta["result"].shape[1:])


def _name(node: fx.Node) -> str:
    """An operation as whoever wrote the model knows it: the path of a module, or a function and where it is called."""
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    line = node.meta.get("line")
    return f"{name} ({line})" if line else name


def _described(output: Any) -> str:
    """What a model returns."""
    result = output.meta["result"] if isinstance(output, fx.Node) else output
    if not isinstance(result, Tensor):
        return f"a value of type {type(result).__name__}"
    return f"{result.dtype} of the shape {list(result.shape)} for {BATCH} samples"


def _tensors(result: Any) -> list[Tensor]:
    """What a node returns, as far as it is tensors."""
    found: list[Tensor] = []
    fx.node.map_aggregate(result, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return found


def _version(tensor: Tensor) -> int:
    """How often it was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def _is_numbers(result: Any) -> bool:
    return all(map(_is_numbers, result)) if isinstance(result, tuple | list) else isinstance(result, int | float)
