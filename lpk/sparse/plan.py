"""What a network computes, as steps of the engine: traced once, with what follows a convolution fused into it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from lpk import tracing

Shape = tuple[int, ...]  # of one sample: (channels, height, width), or (features,)


class NotSupported(ValueError):
    """A network that the engine can't run."""


@dataclass(eq=False)
class Value:
    """An activation. `border`: the pixels around each image or patch that its readers need; `patches` and `patch`: how
    many an image is cut into, and their size, see lpk.sparse.blocks.Blocks."""

    shape: Shape
    border: int = 0
    patches: tuple[int, int] = (1, 1)
    patch: tuple[int, int] | None = None

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width); features are channels of one pixel."""
        channels, *size = self.shape
        height, width = size or (1, 1)
        return channels, height, width


@dataclass(eq=False)
class Step:
    """One operation of the engine, from values to a value."""

    inputs: list[Value]
    out: Value


@dataclass(eq=False)
class Convolve(Step):
    """A convolution or a linear layer, and what follows it: BatchNorm, the addition of a value, an activation."""

    layer: nn.Conv2d | nn.Linear
    batchnorm: nn.BatchNorm2d | nn.BatchNorm1d | None = None
    residual: Value | None = None
    activation: str = "identity"


@dataclass(eq=False)
class Affine(Step):
    """BatchNorm, addition or activation that stand for themselves."""

    batchnorm: nn.BatchNorm2d | nn.BatchNorm1d | None = None
    residual: Value | None = None
    activation: str = "identity"


@dataclass(eq=False)
class Pool(Step):
    """kind: "max", "average" or "global average"; options as of torch.nn.functional's function."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Flatten(Step):
    """[channels, height, width] as [channels · height · width]."""


@dataclass(eq=False)
class Relayout(Step):
    """The same activation, cut into other patches."""


@dataclass(eq=False)
class Foreign(Step):
    """An operation that the engine doesn't know: PyTorch runs it on ordinary tensors. `reads`: those of the model."""

    run: Callable[..., Tensor] = field(kw_only=True)
    reads: tuple[Tensor, ...] = field(kw_only=True)


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which they run; `input` and `output` are values."""

    input: Value
    output: Value
    steps: list[Step]

    @property
    def foreign(self) -> list[Tensor]:
        """The model's tensors that PyTorch reads."""
        return [tensor for step in self.steps if isinstance(step, Foreign) for tensor in step.reads]


def trace(model: nn.Module, shape: Shape) -> Plan:
    """The plan of a model in evaluation mode for float32 samples of this shape.

    Raises NotSupported for a model that torch.fx can't trace, and for one that does not return a tensor for each batch.
    """
    try:
        graph = tracing.trace(model)
        device = next((parameter.device for parameter in model.parameters()), None)
        ShapeProp(graph).propagate(torch.zeros(2, *shape, device=device))
    except Exception as error:  # whatever a stranger's forward raises when it is given a proxy
        raise NotSupported(f"{type(model).__name__} can't be traced for inputs {shape}: {error}") from error
    plan = _Planner(graph).run()
    for step in plan.steps:
        if isinstance(step, Convolve) and isinstance(step.layer, nn.Conv2d):
            step.inputs[0].border = max(step.inputs[0].border, *pair(step.layer.padding))
    return plan


class _Planner:
    """Walks the graph once; BatchNorm, additions and activations extend the step before them where that is possible."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.values: dict[fx.Node, Value] = {}
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
                    self.values[node] = Value(_shape(node))
            elif node.op == "output":
                output = node.args[0]
            elif node.op != "get_attr":
                self._add(node)
        if not isinstance(output, fx.Node) or output not in self.values:
            raise NotSupported("the model does not return one tensor")
        return Plan(self.values[used[0]], self.values[output], self.steps)

    def _add(self, node: fx.Node) -> None:
        call = _Call(node, self.modules)
        source = call.source
        if source is not None and source in self.values and self._known(call, node, source):
            return
        self._foreign(node)

    def _known(self, call: _Call, node: fx.Node, source: fx.Node) -> bool:
        """Adds the engine's step for a call, if it has one."""
        module, function = call.module, call.function
        if isinstance(module, nn.Dropout | nn.Identity | nn.Dropout2d) or function in (F.dropout, "contiguous"):
            if len(source.users) == 1:
                self.values[node] = self.values[source]
            else:
                self._append(node, Affine([self.values[source]], Value(_shape(node))))
        elif _is_convolution(module) or (isinstance(module, nn.Linear) and len(_shape(source)) == 1):
            self._append(node, Convolve([self.values[source]], Value(_shape(node)), module))
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
            self._batchnorm(node, source, module)
        elif (activation := call.activation()) is not None:
            self._activation(node, source, activation, call.inplace)
        elif call.is_add() and (other := call.other) is not None and other in self.values:
            if _shape(source) != _shape(other):
                return False
            self._addition(node, source, other)
            if call.inplace:
                self.values[source] = self.values[node]
        elif (pool := call.pool(_shape(source))) is not None:
            self._append(node, Pool([self.values[source]], Value(_shape(node)), *pool))
        elif call.is_flatten():
            self._append(node, Flatten([self.values[source]], Value(_shape(node))))
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

    def _batchnorm(self, node: fx.Node, source: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
        step = self._extendable(source)
        if isinstance(step, Convolve) and step.batchnorm is None and step.residual is None:
            step.batchnorm = module
            self.values[node] = step.out
        else:
            self._append(node, Affine([self.values[source]], Value(_shape(node)), module))

    def _activation(self, node: fx.Node, source: fx.Node, activation: str, inplace: bool) -> None:
        if (step := self._extendable(source)) is not None:
            step.activation = activation
            self.values[node] = step.out
        else:
            self._append(node, Affine([self.values[source]], Value(_shape(node)), activation=activation))
        if inplace:
            self.values[source] = self.values[node]

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
        """PyTorch runs it; its arguments may be values, attributes of the model and numbers."""
        readers = [n for n in node.all_input_nodes if n in self.values]
        attributes = {n: operator.attrgetter(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"}
        if len(readers) + len(attributes) != len(node.all_input_nodes):
            raise NotSupported(f"{node.format_node()} can't be run: it reads what is not a tensor")
        shape = _shape(node)
        if len(shape) not in (1, 3):
            raise NotSupported(f"{node.format_node()} returns samples of shape {shape}; (C, H, W) or (F,) is possible")
        graph = self.graph

        def run(*tensors: Tensor) -> Tensor:
            found = dict(zip(readers, tensors, strict=True)) | {n: get(graph) for n, get in attributes.items()}
            args = fx.map_arg(node.args, lambda n: found[n])
            kwargs = fx.map_arg(node.kwargs, lambda n: found[n])
            if node.op == "call_module":
                result = self.modules[str(node.target)](*args, **kwargs)
            elif node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
            assert isinstance(result, Tensor)
            return result

        module = self.modules[str(node.target)] if node.op == "call_module" else None
        reads = *(get(graph) for get in attributes.values()), *(() if module is None else module.parameters())
        self._append(node, Foreign([self.values[n] for n in readers], Value(shape), run=run, reads=reads))


def _is_convolution(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the engine has it: padded with zeros, as many as numbers say."""
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class _Call:
    """What a node of the graph calls, whether as a module, a function or a method."""

    def __init__(self, node: fx.Node, modules: dict[str, nn.Module]) -> None:
        self.node = node
        self.module = modules[str(node.target)] if node.op == "call_module" else None
        self.function: Any = None if self.module is not None else node.target
        self.source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None

    def argument(self, position: int, name: str, default: Any) -> Any:
        return self.node.args[position] if len(self.node.args) > position else self.node.kwargs.get(name, default)

    @property
    def other(self) -> fx.Node | None:
        other = self.argument(1, "other", None)
        return other if isinstance(other, fx.Node) and self.node.kwargs.get("alpha", 1) == 1 else None

    @property
    def inplace(self) -> bool:
        inplace = getattr(self.module, "inplace", False) or self.node.kwargs.get("inplace", False)
        return bool(inplace) or self.function in (operator.iadd, "relu_", "add_", F.relu_, torch.relu_)

    def activation(self) -> str | None:
        if isinstance(self.module, nn.ReLU6) or self.function is F.relu6:
            return "relu6"
        known = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
        return "relu" if isinstance(self.module, nn.ReLU) or self.function in known else None

    def is_add(self) -> bool:
        return self.function in (operator.add, operator.iadd, torch.add, "add", "add_")

    def is_flatten(self) -> bool:
        if isinstance(self.module, nn.Flatten):
            return (self.module.start_dim, self.module.end_dim) == (1, -1)
        return self.function in (torch.flatten, "flatten") and (
            self.argument(1, "start_dim", 0),
            self.argument(2, "end_dim", -1),
        ) == (1, -1)

    def pool(self, shape: Shape) -> tuple[str, dict[str, Any]] | None:
        """The kind of pooling and its options; None if it is none that the engine has."""
        module = self.module
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            window = _window(module.kernel_size, module.stride, module.padding)
            return "max", window | {"dilation": pair(module.dilation)}
        if isinstance(module, nn.AvgPool2d) and module.divisor_override is None:
            window = _window(module.kernel_size, module.stride, module.padding)
            return "average", window | {"count_padding": module.count_include_pad}
        if self.function is F.max_pool2d and not self.argument(6, "return_indices", False):
            return "max", self._window() | {"dilation": pair(self.argument(4, "dilation", 1))}
        if self.function is F.avg_pool2d and self.argument(6, "divisor_override", None) is None:
            return "average", self._window() | {"count_padding": self.argument(5, "count_include_pad", True)}
        if isinstance(module, nn.AdaptiveAvgPool2d) or self.function is F.adaptive_avg_pool2d:
            size = module.output_size if module is not None else self.argument(1, "output_size", None)
            return _adaptive(shape, size)
        return None

    def _window(self) -> dict[str, tuple[int, int]]:
        """What the functions for pooling begin with."""
        kernel = self.argument(1, "kernel_size", None)
        return _window(kernel, self.argument(2, "stride", None) or kernel, self.argument(3, "padding", 0))


def _adaptive(shape: Shape, size: Any) -> tuple[str, dict[str, Any]] | None:
    """Adaptive average pooling as an ordinary one, where the windows are all alike."""
    wanted = pair(size)
    if len(shape) != 3 or None in wanted:
        return None
    if wanted == (1, 1):
        return "global average", {}
    if any(n % m for n, m in zip(shape[1:], wanted, strict=True)):
        return None
    kernel = (shape[1] // wanted[0], shape[2] // wanted[1])
    return "average", {**_window(kernel, kernel, 0), "count_padding": True}


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, tuple[int, int]]:
    kernel = pair(kernel)
    return {"kernel": kernel, "stride": pair(stride) if stride is not None else kernel, "padding": pair(padding)}


def pair(size: Any) -> tuple[int, int]:
    a, b = size if isinstance(size, tuple | list) else (size, size)
    return a, b


def _shape(node: fx.Node) -> Shape:
    meta: Any = node.meta.get("tensor_meta")
    if not hasattr(meta, "shape") or len(meta.shape) < 2 or meta.shape[0] != 2 or meta.dtype != torch.float32:
        raise NotSupported(f"{node.format_node()} does not return one float32 tensor for a batch")
    return tuple(meta.shape[1:])
