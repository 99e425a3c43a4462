"""What a file or a directory of lpk is, or a checkpoint of others: its networks and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lpk import schema
from lpk.directory import MANIFEST, Directory
from lpk.own import check_tickets, store_directory
from lpk.reporting.page import flattened, percent
from lpk.reporting.results import RESULTS, Results
from lpk.run import read_manifest
from lpk.sparse import load_sparse
from lpk.sparse.compact import KIND
from lpk.tickets import files, state_dicts
from lpk.tickets.conventions import masks_from_zeros, network
from lpk.tickets.pooled import Pooled
from lpk.tickets.store import MANIFEST as TICKETS
from lpk.tickets.store import MASK, TicketStore
from lpk.tickets.tickets import Tickets

State = Mapping[str, Tensor]
About = dict[str, Any]


def about(path: Path, *, model: str | None = None, data: str | None = None) -> About:
    """What `path` is, as JSON takes it.

    `kind`; `origin`, how it was made, as far as it says; and `networks`, for each: `round`, `density`, `weights` (the
    prunable ones), `remaining`, `layers` (the density of each pruned tensor), `bytes` (of its tensors, dense) and,
    where it is known, `digest`; and of a directory `pooled`, the rounds by method.

    Args:
        model, data: functions that make the network and its data, where no run's preset says so.

    Raises FileNotFoundError, ValueError, lpk.FileDamaged.
    """
    path = files.absolute(path)
    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    found = _directory(path) if path.is_dir() else _file(path)
    return {"path": str(path), **found}


def _directory(path: Path) -> About:
    experiments = [each.parent.name for each in sorted(path.glob(f"*/{RESULTS}")) if _is_findings(each)]
    if experiments:
        return {"kind": "experiments", "origin": {}, "experiments": experiments}
    is_run = files.exists(path / MANIFEST)
    if not is_run:
        check_tickets(path)
    found: About = {"kind": "run", "origin": read_manifest(path)} if is_run else {"kind": "tickets", "origin": {}}
    store = store_directory(path)
    if store is not None:
        found["networks"] = TicketStore.reading(store, _of_store)
        found["origin"] |= TicketStore.open(store).metadata
    elif is_run:
        found["networks"] = []
    else:
        found["kind"] = "checkpoints"
        tickets = Tickets.from_checkpoints(path)
        found["networks"] = [_network(each.state_dict, each.masks, round=each.round) for each in tickets]
    found["pooled"] = {method: [each.round for each in some] for method, some in Directory(path).pooled().items()}
    return found


def _is_findings(path: Path) -> bool:
    try:
        return "experiment" in files.read_json(path)
    except (OSError, files.FileDamaged):
        return False


def _of_store(store: TicketStore) -> list[About]:
    found = []
    for i, listed in enumerate(store.listed):
        ticket = store.read(i)
        found.append(_network(ticket.state_dict, ticket.masks, round=i, digest=listed["digest"]))
    return found


def _file(path: Path) -> About:
    if path.suffix == ".json":
        return _json(path)
    if path.suffix != ".safetensors" and not _is_sealed(path):
        return {"kind": "checkpoint", "origin": {}, "networks": [_of_zeros(state_dicts.load(path))]}
    if not _is_sealed(path):
        return {"kind": "safetensors", "origin": {}, "networks": [_of_zeros(files.load_plain_tensors(path))]}
    metadata, digest = files.load_seal(path)
    if metadata.get("kind") == KIND:
        state, masks = load_sparse(path)
        return {"kind": KIND, "origin": {}, "networks": [_network(state, masks, digest=digest)]}
    if "layout" in metadata:
        pooled = Pooled.load(path)
        scores = {"validation score": pooled.accuracy, "of its ticket": pooled.baseline_accuracy}
        candidates = {"candidates": len(pooled.steps), "accepted": sum(step.accepted for step in pooled.steps)}
        return {
            "kind": "pooled network",
            "origin": {**scores, **candidates, "seconds": pooled.seconds, **pooled.settings},
            "networks": [_network(pooled.state_dict, pooled.masks, round=pooled.round, digest=digest)],
        }
    if "keep" in metadata:
        return _ticket(path, metadata, digest)
    tensors, metadata = files.load_tensors(path)
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    if "epoch" in metadata and state:
        origin = {key: metadata[key] for key in ("round", "epoch") if key in metadata}
        return {
            "kind": "training state of lpk.imp",
            "origin": origin,
            "networks": [_of_zeros(state) | {"digest": digest}],
        }
    raise files.FileDamaged(f"{path} is a file of lpk of a kind that this version does not know")


def _is_sealed(path: Path) -> bool:
    """Whether lpk wrote it, under whatever name."""
    try:
        files.load_metadata(path)
    except files.FileDamaged as error:
        if "was altered" in str(error):
            raise
        return False
    return True


def _json(path: Path) -> About:
    if path.name in (MANIFEST, TICKETS):
        raise ValueError(f"{path} is of the directory {path.parent}: name that")
    results = Results.read(path)
    origin = {"title": results["title"], **results["manifest"]}
    return {"kind": "results", "origin": origin, "methods": results["methods"], "rounds": len(results["rows"])}


def _ticket(path: Path, metadata: Mapping[str, Any], digest: str) -> About:
    """A ticket's file; how its weights lie stands in the tickets.json beside it."""
    found: About = {"kind": "ticket", "origin": {"round": metadata["round"], "weights remaining": metadata["keep"]}}
    store = TicketStore.open(path.parent) if files.exists(path.parent / TICKETS) else None
    if store is not None and digest in (listed["digest"] for listed in store.listed):
        ticket = store.read(metadata["round"])
        return found | {"networks": [_network(ticket.state_dict, ticket.masks, round=ticket.round, digest=digest)]}
    tensors, _ = files.load_tensors(path)
    tensors.pop(MASK, None)
    return found | {"networks": [_of_zeros(tensors) | {"digest": digest}]}


def _network(state: State, masks: State, **more: Any) -> About:
    weights, remaining = (sum(int(count(mask)) for mask in masks.values()) for count in (Tensor.numel, _kept))
    return {
        "round": None,
        "density": remaining / weights if weights else 1.0,
        "weights": weights,
        "remaining": remaining,
        "layers": {name: _kept(mask) / max(mask.numel(), 1) for name, mask in masks.items()},
        "bytes": sum({tensor.data_ptr(): tensor.nbytes for tensor in state.values()}.values()),
        **more,
    }


def _kept(mask: Tensor) -> int:
    return int(mask.count_nonzero())


def _of_zeros(state: State) -> About:
    """Of a state dict without masks: what is zero in a tensor that has zeros is pruned."""
    plain = network(state)
    masks = plain.masks or masks_from_zeros([plain.state])[0]
    return _network(plain.state, {name: mask.bool() for name, mask in masks.items()})


def text(found: About) -> str:
    """`about`, for a person: a line for each fact, one for each network, and its layers."""
    return "\n".join(_lines(found))


def _lines(found: About) -> Iterator[str]:
    yield f"{found['path']}: {found['kind']}"
    networks: Sequence[About] = found.get("networks", ())
    if networks:
        first = networks[0]
        if first["weights"]:
            yield f"prunable weights: {first['weights']:,} in {len(first['layers'])} tensors"
        yield f"bytes of the dense network: {first['bytes']:,}"
    for each in networks:
        round_ = "" if each["round"] is None else f"round {each['round']}: "
        digest = f", digest {each['digest'][:8]}" if "digest" in each else ""
        yield f"{round_}density {percent(each['density'])}%, {each['remaining']:,} weights remain{digest}"
    for method, rounds in found.get("pooled", {}).items():
        yield f"pooled by {method}: round{'s' if len(rounds) > 1 else ''} {', '.join(map(str, rounds))}"
    for key in ("experiments", "methods"):
        if key in found:
            yield f"{key}: {', '.join(found[key]) or 'none'}"
    if networks and networks[-1]["layers"]:
        last = networks[-1]
        where = "" if last["round"] is None else f" of round {last['round']}"
        yield f"density by layer{where}:"
        width = max(map(len, last["layers"]))
        for name, density in last["layers"].items():
            yield f"  {name:<{width}}  {percent(density):>6}%"
    if found["origin"]:
        yield "origin:"
        for key, value in flattened(found["origin"]):
            yield f"  {key}: {schema.shortened(value) if isinstance(value, list | dict) else value}"
