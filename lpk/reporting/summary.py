"""What pooling did, in words: how much is gained and lost on average and on how many targets, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lpk import page
from lpk.reporting.numbers import Scale, name

Results = Mapping[str, Any]


def summary(results: Results) -> str:
    """One or two sentences on the first method: mean gain; how many targets are better, how many worse; best and worst.

    Beyond its interval is a target whose 95% interval does not reach 0.
    """
    method, scale = first(results), Scale.of(results)
    rows = [row for row in results["rows"] if method in row["pools"]]
    gains = [row["pools"][method]["gain"] for row in rows]
    if not gains:
        return "No ticket was pooled."
    subject = f"The {name(method)}" if name(method).startswith("pool") else name(method)
    if len(gains) == 1:
        return f"{subject} {_effect(gains[0], scale, _where(rows[0]))}."
    better = _beyond([gain["gain"] > 0 for gain in gains], [_known(gain, "low") > 0 for gain in gains], results)
    worse = _beyond([gain["gain"] < 0 for gain in gains], [_known(gain, "high") < 0 for gain in gains], results)
    rows.sort(key=lambda row: row["pools"][method]["gain"]["gain"])
    worst, *_, best = (
        f"{scale.gain(row['pools'][method]['gain']['gain'])}{scale.points} {_where(row)}" for row in rows
    )
    counted = f"is better on {better[0]} of the {len(gains)} targets{better[1]} and worse on {''.join(worse)}; "
    counted += f"best {best}, worst {worst}."
    if method not in results["mean"]["pools"]:
        return f"{subject} {counted}"
    return f"{subject} {_effect(results['mean']['pools'][method]['gain'], scale, 'on average')}. It {counted}"


def _beyond(targets: list[bool], clear: list[bool], results: Results) -> tuple[str, str]:
    """How many targets, and of how many of them the interval does not reach 0."""
    if not any(targets) or not has_intervals(results):
        return str(sum(targets)), ""
    return str(sum(targets)), f" ({sum(clear) or 'none'} beyond {'its' if sum(targets) == 1 else 'their'} interval)"


def _where(row: Mapping[str, Any]) -> str:
    return f"at density {page.percent(row['density'])}%"


def _known(gain: Mapping[str, Any], end: str) -> float:
    return 0.0 if gain[end] is None else float(gain[end])


def _effect(gain: Mapping[str, Any], scale: Scale, where: str) -> str:
    """What may be said about a gain with this interval."""
    value = scale.gain(gain["gain"])
    if gain["low"] is None:
        return (
            f"changes test {scale.metric} by {value}{scale.points} {where} (one number for each network: no interval)"
        )
    interval = f"(95% interval {scale.interval(gain, ' to ')}, paired over test samples; one seed)"
    if gain["low"] <= 0 <= gain["high"]:
        of = f"{scale.points} of" if scale.points else " of"
        return f"makes no clear difference: {value}{of} test {scale.metric} {where} {interval}"
    verb = "raises" if gain["low"] > 0 else "lowers"
    return f"{verb} test {scale.metric} by {value.lstrip('+-')}{scale.points} {where} {interval}"


def has_intervals(results: Results) -> bool:
    return all(pool["gain"]["low"] is not None for row in results["rows"] for pool in row["pools"].values())


def first(results: Results) -> str:
    """The method that sentences and steps are about."""
    return next(iter(results["methods"]), "")
