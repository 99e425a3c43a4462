"""What a network computes, as steps of the engine: its graph is walked once, and each node's place is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from lpk.networks import tracing
from lpk.sparse.batches import has_batch
from lpk.sparse.calls import Unknown
from lpk.sparse.endings import keep_types
from lpk.sparse.errors import Fails, NotSupported
from lpk.sparse.inputs import Inputs
from lpk.sparse.placing import Placing
from lpk.sparse.results import BATCH, Results, described, name_of, tensors
from lpk.sparse.steps import Plan, Shape, Slot

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


class _Planner(Placing):
    """Walks the graph once.

    A node is on the engine where that has a step for it and its operands are there; a layer, too, where they are
    tensors that can be packed. All else is left to PyTorch.
    """

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
            return self._on_engine(self._call(node), node)
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

    def _ending(self, output: fx.Node) -> tuple[list[Slot], fx.GraphModule | None]:
        """The slots that what the model returns is computed from, and that computation, if there is any."""
        returned = output.args[0]
        if isinstance(returned, fx.Node) and returned in self.seen:
            return [self.pytorch.unpack(returned)], None
        ending, reads = self.pytorch.ending(output)
        if not reads:
            raise NotSupported(f"what the model returns, {described(returned)}, is not computed from its input")
        return reads, ending


def _is_numbers(result: Any) -> bool:
    return all(map(_is_numbers, result)) if isinstance(result, tuple | list) else isinstance(result, int | float)
