"""What the commands of `lpk` have in common: arguments, options, how help shows them, and what the shell completes.

Needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from lpk import functions, presets
from lpk.pruning.recipe import AUTOCASTS

FORMATS = ("sparse", "onnx", "torch", "state-dict")
DTYPES = (*AUTOCASTS, "float32")  # what a preset can be told to train in

EXPERIMENTS = (  # lpk.experiments has them, and PyTorch with them, which completion does not wait for
    "all", "averages", "interpolation", "comparison", "candidates", "coefficients", "prune", "ensemble", "disagreement",
    "dense", "robustness", "conditions", "compute",
)  # fmt: skip


class Command(typer.core.TyperCommand):
    """A command whose flags are shown without a value."""

    def get_params(self, ctx: Any) -> Any:
        return _flags(super().get_params(ctx))


class Group(typer.core.TyperGroup):
    """Several commands; its own flags are shown so, too."""

    def get_params(self, ctx: Any) -> Any:
        return _flags(super().get_params(ctx))


def _flags(params: Any) -> Any:
    for each in params:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return params


def user_path(text: str | Path) -> Path:
    """A path of the command line; the shell does not expand every `~`."""
    if not str(text):
        raise typer.BadParameter("a path is empty; `.` is the present directory")
    return Path(text).expanduser()


def named(help: str, *names: str) -> Any:
    """An option whose value is a name; the shell completes these."""
    return typer.Option(metavar="NAME", help=help, autocompletion=completion(names))


def completion(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What the shell may put in the place of the beginning of a name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


RunPath = Annotated[Path, typer.Argument(metavar="RUN", parser=user_path, help="The run directory.")]
SubjectPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        parser=user_path,
        help="A run directory; or, with --model and --data, a store of lpk.imp or a folder of checkpoints.",
    ),
]
ModelFunction = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FUNCTION",
        help="Makes the network, where no run's preset names it; as MODULE:NAME or FILE.py:NAME.",
        autocompletion=functions.completions,
    ),
]
SubjectData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FUNCTION",
        help="Makes validation, calibration and test samples, likewise; of a run: the folder where its data set lies.",
        autocompletion=functions.completions,
    ),
]
PresetName = Annotated[str, named(f"One of {', '.join(presets.names())}; or a TOML file.", *presets.names())]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        parser=user_path,
        help="Where the data set lies; else LPK_DATA, the cache, the system, a download.",
    ),
]
OwnSeed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Of initialization, data split and order of the samples.")
]
RunSeed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Checked against the run's own seed, where given.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="How many threads to use; default: PyTorch's.")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, …; default: a GPU where there is one.")
]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Don't measure how long networks take on this CPU.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
