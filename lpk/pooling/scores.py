"""What to doubt about the scores that a search picked by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

Values = Sequence[Sequence[float]]  # the target's, and those of each step, as far as they are known


def undone(changed: Sequence[str]) -> str | None:
    """What to say of an `evaluate` that gave these entries of the candidates other values; None where it did not."""
    if not changed:
        return None
    return (
        f"evaluate changed {changed[0]!r} of the candidates, which was undone: the pool does not consist of the "
        "networks that it scored; BatchNorm's statistics alone stay as it leaves them"
    )


def alike(searches: Mapping[int, Values], *, by_evaluate: bool) -> str | None:
    """What to say where scores do not tell networks apart; None where they do.

    That is where all values of a search are equal, or, with `evaluate`, which scores all coefficients, those of a step.

    Args:
        searches: the values of each target's search, by its round.
    """
    blind = {t: values for t, values in searches.items() if _all_equal(list(chain.from_iterable(values)))}
    which = f"every network that was offered to target {', '.join(map(str, blind))}"
    steps = [step for values in searches.values() for step in values[1:]]
    equal = [step for step in steps if by_evaluate and _all_equal(step)]
    if not blind and not equal:
        return None
    if not by_evaluate:
        return (
            f"validation scores {which} alike: the first coefficients were taken; more or harder samples, or "
            "criterion='loss', may tell them apart, unless the tickets are all the same"
        )
    if not blind:
        which = f"all coefficients in {len(equal)} of {len(steps)} steps"
    value = next(iter(blind.values()))[0][0] if blind else equal[0][0]
    return (
        f"evaluate returned {value} for {which}: it did not choose; does it ignore its argument, is the metric "
        "constant, or are the tickets all the same?"
    )


def _all_equal(values: Sequence[float]) -> bool:
    """Also of nan. Two may be equal by chance."""
    return len(values) > 2 and len({str(value) for value in values}) == 1
