"""What bench.search_gpu measured, in words and as Markdown tables."""

from __future__ import annotations

from bench.results import Row


def line(part: str, row: Row) -> str:
    """One row in words."""
    about = ", ".join(
        f"target {row[key]}" if key == "target" else str(row[key]) for key in ("target", "dtype") if key in row
    )
    words = {"rows": _row, "all_targets": _all_targets, "profile": _profile, "references": _references}[part]
    return f"seed {row['seed']}, {about}: {words(row)}"


def _row(row: Row) -> str:
    ours, eager = row["lpk"], row["eager"]
    text = (
        f"{ours['seconds']:.3f} s (first call {ours['first']:.2f} s), {ours['forward_samples']:,} samples, "
        f"{ours['samples_per_second']:,.0f} a second; {settings(ours['settings'])}; eager {eager['seconds']:.2f} s, "
        f"{said(eager)}; test {row['ticket']['test']:.2%} and {ours['test']:.2%}"
    )
    return text if ours["same_every_time"] else text + "; NOT the same network every time"


def settings(chosen: Row) -> str:
    """What ran, in words; settings that a version of lpk does not record are left out."""
    words = [f"backend {chosen['backend']}"]
    if problem := chosen.get("graph_problem"):
        words.append(f"not captured: {problem}")
    words.append(f"batches of {chosen['batch_size']} and {chosen['calibration_batch_size']}")
    if chosen.get("tf32") is not None:
        words.append("TF32" if chosen["tf32"] else "no TF32")
    return ", ".join(words)


def said(eager: Row) -> str:
    """Whether the eager search found the same, in words."""
    if not eager["same_batch_sizes"]:
        return f"not comparable: batches of {' and '.join(map(str, eager['batches']))}"
    if eager["same"]:
        return f"the same {eager['steps']} steps and network"
    steps = [f"candidate {step['candidate']}: {step['ours']} and {step['theirs']}" for step in eager["differing"]]
    network = "same network"
    if not eager["same_network"]:
        network = f"ANOTHER network, by up to {eager['largest_difference']:.1g}"
    return f"{len(steps)} of {eager['steps']} steps DIFFER, {network}" + "".join(f"; {step}" for step in steps)


def _all_targets(row: Row) -> str:
    return (
        f"all {row['targets']} targets in one call {row['seconds']:.2f} s, {row['forward_samples']:,} samples, "
        f"{row['samples_per_second']:,.0f} a second"
    )


def _profile(row: Row) -> str:
    device = row["device"]
    if device is None:
        return "no GPU worked: nothing to profile"
    longest = (f"\n  {seconds * 1e3:9.2f} ms {count:7,} x {name[:100]}" for name, count, seconds in device["top"])
    return busy_of(row) + "".join(longest)


def busy_of(row: Row) -> str:
    """The share of the time in which the card was busy, and what was launched."""
    device = row["device"]
    return (
        f"the card was busy {device['busy']:.3f} s of {device['wall']:.3f} s under the profiler, {device['share']:.0%} "
        f"({device['busy'] / row['seconds']:.0%} of the {row['seconds']:.3f} s without it); {device['kernels']:,} "
        f"kernels ran, {device['kernel_launches']:,} launched one by one, {device['graph_launches']:,} graphs; the "
        f"host waited {device['synchronizations']:,} times"
    )


def _references(row: Row) -> str:
    every, some = row["training_samples"], row["calibration_samples"]
    return f"plain PyTorch {took(every)}; plain loop, {some['calibration_samples']:,} calibration samples: {took(some)}"


def took(found: Row) -> str:
    text = f"{found['seconds']:.3g} s"
    if found["extrapolated"]:
        return f"{text} (extrapolated to {found['networks']} networks, {found['measured']} measured)"
    return f"{text} (all of it measured)"


def table(result: Row) -> str:
    """The measurement as Markdown tables, with what else was asked in sentences."""
    parts = [part for part in (_rows_table(result["rows"]), _references_table(result)) if part]
    parts += [f"Seed {row['seed']}, {row['dtype']}: {_all_targets(row)}." for row in result["all_targets"]]
    parts += [
        f"Seed {row['seed']}, target {row['target']}, {row['dtype']}: {busy_of(row)}."
        for row in result["profile"]
        if row["device"] is not None
    ]
    return "\n\n".join(parts)


def _rows_table(rows: list[Row]) -> str:
    if not rows:
        return ""
    text = [
        "| seed | target | density | dtype | lpk, s | first call, s | samples a second | eager, s | times "
        "| against eager | test: ticket | lpk | what ran |",
        "|---:|---:|---:|---|---:|---:|---:|---:|---:|---|---:|---:|---|",
    ]
    for row in rows:
        ours, eager = row["lpk"], row["eager"]
        text.append(
            f"| {row['seed']} | {row['target']} | {row['density']:.1%} | {row['dtype']} | {ours['seconds']:.3f} | "
            f"{ours['first']:.2f} | {ours['samples_per_second']:,.0f} | {eager['seconds']:.2f} | "
            f"{eager['seconds'] / ours['seconds']:.1f} | {said(eager)} | {row['ticket']['test']:.2%} | "
            f"{ours['test']:.2%} | {settings(ours['settings'])} |"
        )
    return "\n".join(text)


def _references_table(result: Row) -> str:
    """The reference beside lpk in float32, where that was measured, too."""
    if not result["references"]:
        return ""
    ours = {(row["seed"], row["target"]): row["lpk"]["seconds"] for row in result["rows"] if row["dtype"] == "float32"}
    kinds = ("training_samples", "calibration_samples")
    every, some = (result["references"][0][kind]["calibration_samples"] for kind in kinds)
    text = [
        f"| seed | target | plain PyTorch, {every:,} calibration samples | times lpk's "
        f"| plain loop, {some:,} calibration samples | times lpk's |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["references"]:
        cells = [str(row["seed"]), str(row["target"])]
        for kind in kinds:
            seconds = ours.get((row["seed"], row["target"]))
            cells += [took(row[kind]), f"{row[kind]['seconds'] / seconds:.0f}" if seconds else ""]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)
