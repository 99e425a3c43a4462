"""Memory for a plan's values, which those that are not alive together share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Hashable, Iterator, Mapping

from torch import Tensor

from lpk.sparse import arena
from lpk.sparse.blocks import Blocks, in_rows, stored_shape
from lpk.sparse.steps import Plan, Value

Shapes = tuple[tuple[int, ...], ...]  # of all values of a plan


def buffers_of(plan: Plan, batch: int, memory: dict[Shapes, Tensor]) -> tuple[Shapes, dict[Value, Blocks]]:
    """A buffer for each value, all in one arena, and their shapes. memory: arenas by the shapes of what is in them; a
    new one is added.

    A thread may take a block of images through many steps while others are still at the first of them. So each block
    has a part of the arena for itself, which values of as many blocks share: what has another number of them is
    computed before, or after.
    """
    shapes = {
        value: stored_shape(batch, value.image[0], value.border, value.patches, value.patch or value.image[1:])
        for value in plan.values
    }
    key, counts = tuple(shapes.values()), sorted({shape[0] for shape in shapes.values()})  # of blocks
    places: dict[Value, int] = {}
    sizes = []
    for count in counts:
        some, size = _places(plan, {v: math.prod(shape[1:]) for v, shape in shapes.items() if shape[0] == count})
        places |= some
        sizes.append(count * size)
    if key not in memory:
        memory[key] = arena.zeros(sum(sizes))
    parts = dict(zip(counts, memory[key].split(sizes), strict=True))
    found = {}
    for value, shape in shapes.items():
        blocks, *rest = shape
        own = parts[blocks].view(blocks, -1)[:, places[value] : places[value] + math.prod(rest)]
        data = in_rows(own, shape)
        found[value] = Blocks(data, batch, value.border, value.patches, value.image[1:], value.outside)
    return key, found


def _places(plan: Plan, sizes: Mapping[Value, int]) -> tuple[dict[Value, int], int]:
    """Where in a block's part of the arena each value lies, and the size of that part.

    A border that operations leave alone must stay zero: such a value's memory is used again by others of its kind only.
    Behind these, every value lies as far to the front as there is room: in what was used last, which caches still hold.
    """
    kept: dict[Value, int] = {}
    shared: dict[Value, int] = {}
    free: dict[Hashable, list[int]] = defaultdict(list)  # places of values that keep their border
    alive: dict[Value, int] = {}  # places of the others
    end = 0
    for made, done in _lives(plan, sizes):
        for value in made:
            if not _keeps_border(value):
                taken = [(place, sizes[other]) for other, place in alive.items()]
                shared[value] = alive[value] = _first_room(sizes[value], taken)
            elif places := free[_kind(value)]:
                kept[value] = places.pop()
            else:
                kept[value] = end
                end += sizes[value]
        for value in done:
            if value in kept:
                free[_kind(value)].append(kept[value])
            else:
                del alive[value]
    last = max((place + sizes[value] for value, place in shared.items()), default=0)
    return kept | {value: end + place for value, place in shared.items()}, end + last


def _lives(plan: Plan, values: Container[Value]) -> Iterator[tuple[list[Value], list[Value]]]:
    """Which of these values each step makes, and which nobody needs after it."""
    last = {value: i for i, step in enumerate(plan.steps) for value in step.inputs}
    for i, step in enumerate(plan.steps):
        made = [value for value in [step.out] if value is not None and value in values]
        touched = [value for value in dict.fromkeys([*step.inputs, *made]) if value in values]
        yield made, [value for value in touched if last.get(value, i) == i]


def _keeps_border(value: Value) -> bool:
    """Of patches it is written anew with each value."""
    return value.border > 0 and value.patches == (1, 1)


def _kind(value: Value) -> Hashable:
    """What two values must have in common whose borders are the same memory."""
    return value.image, value.border, value.patch, value.outside


def _first_room(size: int, taken: list[tuple[int, int]]) -> int:
    """The first place where `size` fits between what is taken: (place, size)."""
    place = 0
    for start, length in sorted(taken):
        if place + size <= start:
            break
        place = max(place, start + length)
    return place
