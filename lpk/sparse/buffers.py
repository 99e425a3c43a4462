"""Memory for a plan's values, which those that are not alive together share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Hashable, Iterator, Mapping

from torch import Tensor

from lpk.sparse import arena
from lpk.sparse.blocks import IMAGES, Blocks, block_count, in_rows
from lpk.sparse.steps import Affine, Convolve, LayerNorm, Multiply, Plan, Step, Value

# Of all values of a plan: whether their memory is by thread, and the shapes of their data.
Shapes = tuple[tuple[int, ...], ...]


def buffers_of(
    plan: Plan, batch: int, threads: int | None, memory: dict[Shapes, Tensor]
) -> tuple[Shapes, dict[Value, Blocks]]:
    """A buffer for each value, all in one arena, and their shapes. memory: arenas by the shapes of what is in them; a
    new one is added. threads: how many run it; None: any number, each step by itself, and nothing in place.

    A thread takes a block of images through a whole stretch while others are at other steps of it. So each thread has a
    part of the arena for itself, for what is alive in one stretch alone. Of other values each block has a part, which
    those of as many blocks share: what has another number of them is computed before, or after.
    """
    local = set() if threads is None else _local(plan, batch, threads)
    shapes = {v: _shape(v, threads if threads and v in local else block_count(batch, v.patches)) for v in plan.values}
    key = tuple((value in local, *shape) for value, shape in shapes.items())
    groups = sorted({(is_local, places) for is_local, places, *_ in key})
    places: dict[Value, int] = {}
    sizes = []
    for group in groups:
        alike = {v: math.prod(shape[1:]) for v, shape in shapes.items() if (v in local, shape[0]) == group}
        some, size = _places(plan, alike, {} if threads is None else _in_place(plan, alike))
        places |= some
        sizes.append(group[1] * size)
    if key not in memory:
        memory[key] = arena.zeros(sum(sizes))
    parts = dict(zip(groups, memory[key].split(sizes), strict=True))
    found = {}
    for value, shape in shapes.items():
        size = math.prod(shape[1:])
        own = parts[value in local, shape[0]].view(shape[0], -1)[:, places[value] : places[value] + size]
        data, image = in_rows(own, shape), value.image[1:]
        found[value] = Blocks(data, batch, value.border, value.patches, image, value.outside, value in local)
    return key, found


def _shape(value: Value, places: int) -> tuple[int, ...]:
    """Of its data, with memory for so many blocks."""
    high, wide = value.patch or value.image[1:]
    return places, value.channels, high + 2 * value.border, wide + 2 * value.border, IMAGES


def _local(plan: Plan, batch: int, threads: int) -> set[Value]:
    """Values of more blocks than there are threads that are made and read within one stretch."""
    stretches = [*_stretches(plan, batch)]
    made = {step.out: i for i, step in zip(stretches, plan.steps, strict=True) if isinstance(step, Step)}
    across = {v for i, step in zip(stretches, plan.steps, strict=True) for v in step.inputs if made.get(v) != i}
    return {value for value in made if value not in across and block_count(batch, value.patches) > threads}


def _stretches(plan: Plan, batch: int) -> Iterator[int]:
    """Of each step the number of its stretch: operations that follow each other on as many blocks."""
    number, last = 0, None
    for step in plan.steps:
        blocks = block_count(batch, step.out.patches) if isinstance(step, Step) else None
        if blocks is None or blocks != last:
            number += 1
        last = blocks
        yield number


def _in_place(plan: Plan, values: Container[Value]) -> dict[Value, Value]:
    """Of these values those that are made in the place of one that nobody needs any more: of what is added to them or,
    where each number is computed from one, of what they are computed from."""
    last = {value: i for i, step in enumerate(plan.steps) for value in step.inputs}
    found = {}
    for i, step in enumerate(plan.steps):
        if not isinstance(step, Convolve | Affine | Multiply | LayerNorm):
            continue
        given = step.residual if isinstance(step, Convolve | Affine) else None
        if given is None and not isinstance(step, Convolve):
            given = step.inputs[0]
        if given is None or given not in values or step.out not in values:
            continue
        if last[given] == i and step.inputs.count(given) == 1 and _form(given) == _form(step.out):
            found[step.out] = given
    return found


def _places(plan: Plan, sizes: Mapping[Value, int], in_place: Mapping[Value, Value]) -> tuple[dict[Value, int], int]:
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
            if given := in_place.get(value):
                if given in kept:
                    kept[value] = kept[given]
                else:
                    shared[value] = alive[value] = alive.pop(given)
            elif not _keeps_border(value):
                taken = [(place, sizes[other]) for other, place in alive.items()]
                shared[value] = alive[value] = _first_room(sizes[value], taken)
            elif places := free[_kind(value)]:
                kept[value] = places.pop()
            else:
                kept[value] = end
                end += sizes[value]
        for value in done:
            if value in [in_place.get(other) for other in made]:
                continue
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


def _form(value: Value) -> Hashable:
    """What two values must have in common of which one takes the other's place."""
    return *value.image, value.border, value.patches, value.patch, value.outside


def _first_room(size: int, taken: list[tuple[int, int]]) -> int:
    """The first place where `size` fits between what is taken: (place, size)."""
    place = 0
    for start, length in sorted(taken):
        if place + size <= start:
            break
        place = max(place, start + length)
    return place
