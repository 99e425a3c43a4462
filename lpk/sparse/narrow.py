"""Values are cut anew where they are narrow: before an expanding layer, not behind it."""

from __future__ import annotations

from collections import Counter

from lpk.sparse.steps import Affine, AnyStep, Convolve, LayerNorm, Multiply, Pair, Pick, Relayout, Step, Value

MOVED = 4  # a line of 16 numbers that is cut anew takes about as long as so many that are computed


def narrowed(steps: list[AnyStep]) -> list[AnyStep]:
    """The steps of a plan that was cut. What computes each pixel by itself does so in any cut: a Relayout of what it
    makes becomes one of what it reads, where that is less work."""
    for relayout in [step for step in steps if isinstance(step, Relayout)]:
        steps = _ahead(steps, relayout)
    return steps


def _ahead(steps: list[AnyStep], relayout: Relayout) -> list[AnyStep]:
    x, out = relayout.inputs[0], relayout.out
    chain = _chain(steps, x) if x.image == out.image and relayout.stride == (1, 1) else []
    all_pixels = (step for step in steps if isinstance(step, Relayout) and step.stride == (1, 1))
    copies = {step.inputs[0]: step for step in all_pixels if _cut(step.out) == _cut(out)}
    least, count, more = MOVED * x.channels * _area(x), 0, 0
    for i, step in enumerate(chain, 1):
        source = step.inputs[0]
        more += step.out.channels * (_area(out) - _area(step.out))
        work = more + (0 if source in copies else MOVED * source.channels * _area(source))
        if work < least:
            least, count = work, i
    if count == 0:
        return steps
    chain = chain[:count]
    source = chain[-1].inputs[0]
    copy = copies.get(source) or Relayout([source], Value(source.image, 0, out.patches, out.patch, source.outside))
    for step in chain[1:]:
        step.out.patches, step.out.patch = _cut(out)
    chain[0].out = out
    chain[-1].inputs[0] = copy.out
    left, first = [step for step in steps if step is not relayout], chain[-1]
    if copy not in left or left.index(copy) > left.index(first):
        left = [step for step in left if step is not copy]
        left.insert(left.index(first), copy)
    return left


def _chain(steps: list[AnyStep], value: Value) -> list[Step]:
    """The steps that a value comes from pixel by pixel, the last first; what they make nobody else reads."""
    makers = {step.out: step for step in steps}
    readers = Counter(read for step in steps for read in step.inputs)
    chain: list[Step] = []
    while readers[value] == 1 and isinstance(step := makers[value], Step) and _is_by_pixel(step):
        chain.append(step)
        value = step.inputs[0]
    return chain


def _is_by_pixel(step: Step) -> bool:
    """Whether a step computes each pixel of its output from that of its first input, and reads no others."""
    if isinstance(step, Convolve) and not step.layer.is_pointwise:
        return False
    kinds = Convolve | Affine | LayerNorm | Multiply | Pick
    return isinstance(step, kinds) and all(value.pixels == 1 for value in step.inputs[1:])


def _cut(value: Value) -> tuple[Pair, Pair | None]:
    return value.patches, value.patch


def _area(value: Value) -> int:
    """The lines that a channel of it takes in a block."""
    assert value.patch is not None
    return value.patch[0] * value.patch[1]
