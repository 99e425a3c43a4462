"""Memory for a plan's values: one buffer serves several that are not alive together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable

from torch import Tensor

from lpk.sparse import arena
from lpk.sparse.blocks import Blocks, stored_shape
from lpk.sparse.steps import Plan, Value

Shapes = tuple[tuple[int, ...], ...]  # of all buffers of a plan


def buffers_of(plan: Plan, batch: int, memory: dict[Shapes, Tensor]) -> tuple[Shapes, dict[Value, Blocks]]:
    """A buffer for each value, all in one arena, and their shapes. memory: arenas by the shapes of the buffers in them;
    a new one is added."""
    slots = _slots(plan)
    kinds = {slot: value for value, slot in slots.items()}
    shapes = tuple(
        stored_shape(batch, value.image[0], value.border, value.patches, value.patch or value.image[1:])
        for value in kinds.values()
    )
    sizes = [math.prod(shape) for shape in shapes]
    if shapes not in memory:
        memory[shapes] = arena.zeros(sum(sizes))
    blocks = {
        slot: Blocks(part.view(shape), batch, value.border, value.patches, value.image[1:], value.outside)
        for (slot, value), shape, part in zip(kinds.items(), shapes, memory[shapes].split(sizes), strict=True)
    }
    return shapes, {value: blocks[slot] for value, slot in slots.items()}


def _slots(plan: Plan) -> dict[Value, int]:
    """The number of each value's buffer. One whose last reader has run is used again by a later value of the same kind:
    the border stays zero, since nothing writes there."""
    last = {value: i for i, step in enumerate(plan.steps) for value in step.inputs}
    free: dict[Hashable, list[int]] = {}
    slots: dict[Value, int] = {}
    count = itertools.count()

    def add(value: Value) -> None:
        slots[value] = free[kind].pop() if free.get(kind := _kind(value)) else next(count)

    alive: set[Value] = set()
    for i, step in enumerate(plan.steps):
        made = [] if step.out is None else [step.out]
        for value in made:
            add(value)
            alive.add(value)
        for value in (*step.inputs, *made):
            if last.get(value, i) == i and value in alive:
                free.setdefault(_kind(value), []).append(slots[value])
                alive.remove(value)
    return slots


def _kind(value: Value) -> Hashable:
    """What two values must have in common to lie in the same memory, one after the other."""
    return value.image, value.border, value.patches, value.patch, value.outside
