"""One network as a file, and what a file is: `lpk export`, `lpk info`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lpk import choices, functions
from lpk.cli.output import say
from lpk.options import FORMATS, ModelFunction, SubjectData, SubjectPath, named, user_path
from lpk.pooling.methods import METHODS


def export_network(
    run: SubjectPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=user_path, help="The file to write.")],
    target: Annotated[int, typer.Option(metavar="N", help="The round of the network.")],
    method: Annotated[
        str, named(f"Of the pool: one of {', '.join(METHODS)}; or ticket.", *METHODS, "ticket")
    ] = "interpolation",
    format: Annotated[str, named(f"One of {', '.join(FORMATS)}.", *FORMATS)] = "sparse",
    model: ModelFunction = None,
    data: SubjectData = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT; make the directories that lead to it.")] = False,
) -> None:
    """Writes one network to a file for other programs: small, or as ONNX, a program of torch.export or a state dict."""
    from lpk import export, own, sparse

    choices.check("method", method, (*METHODS, "ticket"))
    choices.check("format", format, FORMATS)
    if not force:
        check_new(out)
    state, masks = own.network(run, target, method, model)
    if format == "sparse":
        sparse.save_sparse(out, state, masks)
    elif format == "state-dict":
        export.state_dict(state, out)
    else:
        with own.opened(run, model=model, data=data, device="cpu") as opened:
            network = opened.model()
            network.load_state_dict(state)
            write = export.onnx if format == "onnx" else export.program
            write(network, out, opened.sample_shape())
    size, dense = out.stat().st_size, sum(tensor.nbytes for tensor in state.values())
    say(f"wrote {out}: {size:,} bytes, {size / dense:.1%} of the dense network's {dense:,}")


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", parser=user_path, help="A file or a directory of lpk, or a checkpoint.")
    ],
    model: ModelFunction = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FUNCTION",
            help="Makes samples of it, likewise, which say what an input is.",
            autocompletion=functions.completions,
        ),
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="N,N,N", help="Of one input, in the place of --data.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every layer of every network.")] = False,
) -> None:
    """Says what a file or a directory is: its networks, their densities, bytes and multiply-adds, where they come from.

    Multiply-adds need the network: a run's preset names it, --model that of others.
    """
    import json

    from lpk.info import about, text

    found = about(path, model=model, data=data, shape=None if shape is None else sizes(shape))
    say(json.dumps(found, indent=2) if as_json else text(found))


def sizes(text: str) -> list[int]:
    """Of an input's dimensions. Raises ValueError."""
    found = text.replace("x", ",").split(",")
    if not all(each.strip().isdecimal() and int(each) for each in found):
        raise ValueError(f"--shape is {text!r}; whole numbers above 0 with commas between them are needed, as 3,32,32")
    return [int(each) for each in found]


def check_new(path: Path) -> None:
    """Raises OSError where a file is there, or its directory is not."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; --force replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no directory; --force makes it")
