"""What a file or a directory of lpk is, or a checkpoint of others: its networks and where they come from."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpk import choices, models, presets, schema, terminal
from lpk.data.sets import CLASSES, SHAPES
from lpk.directory import MANIFEST, Directory
from lpk.experiments.findings import CONTENT as FINDINGS
from lpk.own import Own, check_preset, check_tickets, store_directory
from lpk.page import flattened, percent
from lpk.reporting.costs import Products
from lpk.reporting.results import RESULTS, Results
from lpk.run import read_manifest
from lpk.sparse import load_sparse
from lpk.sparse.compact import KIND
from lpk.tickets import files, reading, state_dicts
from lpk.tickets.conventions import masks_from_zeros, network
from lpk.tickets.pooled import Pooled
from lpk.tickets.store import MANIFEST as TICKETS
from lpk.tickets.store import MASK, TicketStore
from lpk.tickets.tickets import Tickets

State = Mapping[str, Tensor]
About = dict[str, Any]


def about(
    path: Path, *, model: str | None = None, data: str | None = None, shape: Sequence[int] | None = None
) -> About:
    """What `path` is, as JSON takes it.

    `kind`; `origin`, how it was made, as far as it says; and `networks`, for each: `round`, `density`, `weights` (the
    prunable ones), `remaining`, `layers` (the density of each pruned tensor), `bytes` (of its tensors, dense) and,
    where they are known, `digest` and `products` (multiply-adds for one sample, without the weights that are zero); of
    a directory `pooled`, the rounds by method. `products`, beside `networks`, are the dense network's; `problem`, in
    words, is why a run's are not known.

    Args:
        model: names the function that makes the network, where no run's preset does; with it `data`, the one that makes
            its data, or `shape`, that of one input.

    Raises FileNotFoundError, ValueError, lpk.FileDamaged.
    """
    path = files.absolute(path)
    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    networks = Networks(path, model, data, shape)
    found = _directory(path, networks) if path.is_dir() else _file(path, networks)
    return {"path": str(path), **found, **networks.about}


def _directory(path: Path, networks: Networks) -> About:
    if studied := [each.parent.name for each in sorted(path.glob(f"*/{RESULTS}")) if _is_findings(each)]:
        return {"kind": "experiments", "origin": {}, "experiments": studied}
    if _is_findings(path / RESULTS):
        return _json(path / RESULTS)
    is_run = files.exists(path / MANIFEST)
    if not is_run:
        check_tickets(path)
    found: About = {"kind": "run", "origin": read_manifest(path)} if is_run else {"kind": "tickets", "origin": {}}
    store = store_directory(path)
    if store is not None:
        found["networks"] = TicketStore.reading(store, functools.partial(_of_store, networks=networks))
        found["origin"] |= TicketStore.open(store).metadata
    elif is_run:
        found["networks"] = []
    else:
        found["kind"] = "checkpoints"
        tickets = Tickets.from_checkpoints(path, model=networks.model)
        found["networks"] = [networks.about_one(each.state_dict, each.masks, round=each.round) for each in tickets]
    found["pooled"] = {method: [each.round for each in some] for method, some in Directory(path).pooled().items()}
    return found


def _is_findings(path: Path) -> bool:
    try:
        return "experiment" in files.read_json(path)
    except (OSError, files.FileDamaged):
        return False


def _of_store(store: TicketStore, networks: Networks) -> list[About]:
    found = []
    for i, listed in enumerate(store.listed):
        ticket = store.read(i)
        found.append(networks.about_one(ticket.state_dict, ticket.masks, round=i, digest=listed["digest"]))
    return found


def _file(path: Path, networks: Networks) -> About:
    if path.suffix == ".json":
        return _json(path)
    if path.suffix != ".safetensors" and not _is_safetensors(path):
        return {"kind": "checkpoint", "origin": {}, "networks": [networks.of_zeros(state_dicts.load(path))]}
    if not _is_sealed(path):
        return {"kind": "safetensors", "origin": {}, "networks": [networks.of_zeros(files.load_plain_tensors(path))]}
    metadata, digest = files.load_seal(path)
    if metadata.get("kind") == KIND:
        state, masks = load_sparse(path)
        return {"kind": KIND, "origin": {}, "networks": [networks.about_one(state, masks, digest=digest)]}
    if "layout" in metadata:
        pooled = Pooled.load(path)
        scores = {"validation score": pooled.accuracy, "of its ticket": pooled.baseline_accuracy}
        candidates = {"candidates": len(pooled.steps), "accepted": sum(step.accepted for step in pooled.steps)}
        return {
            "kind": "pooled network",
            "origin": {**scores, **candidates, "seconds": pooled.seconds, **pooled.settings},
            "networks": [networks.about_one(pooled.state_dict, pooled.masks, round=pooled.round, digest=digest)],
        }
    if "keep" in metadata:
        return _ticket(path, metadata, digest, networks)
    tensors, metadata = files.load_tensors(path)
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    if "epoch" in metadata and state:
        origin = {key: metadata[key] for key in ("round", "epoch") if key in metadata}
        return {
            "kind": "training state of lpk.imp",
            "origin": origin,
            "networks": [networks.of_zeros(state) | {"digest": digest}],
        }
    raise files.FileDamaged(f"{path} is a file of lpk of a kind that this version does not know")


def _is_safetensors(path: Path) -> bool:
    """By its content: the header, JSON, stands behind eight bytes."""
    with reading.opened(path) as (file, _):
        return file.read(9)[8:] == b"{"


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
    if _is_findings(path):
        findings = files.read_json(path, FINDINGS)
        origin = {key: findings[key] for key in ("summary", "command", "seeds", "seconds", "preset", "versions")}
        return {"kind": "experiment", "origin": {"experiment": findings["experiment"], **origin}}
    results = Results.read(path)
    origin = {"title": results["title"], **results["manifest"]}
    return {"kind": "results", "origin": origin, "methods": results["methods"], "rounds": len(results["rows"])}


def _ticket(path: Path, metadata: Mapping[str, Any], digest: str, networks: Networks) -> About:
    """A ticket's file; how its weights lie stands in the tickets.json beside it."""
    found: About = {"kind": "ticket", "origin": {"round": metadata["round"], "weights remaining": metadata["keep"]}}
    store = TicketStore.open(path.parent) if files.exists(path.parent / TICKETS) else None
    if store is not None and digest in (listed["digest"] for listed in store.listed):
        ticket = store.read(metadata["round"])
        return found | {
            "networks": [networks.about_one(ticket.state_dict, ticket.masks, round=ticket.round, digest=digest)]
        }
    tensors, _ = files.load_tensors(path)
    tensors.pop(MASK, None)
    return found | {"networks": [networks.of_zeros(tensors) | {"digest": digest}]}


class Networks:
    """Says what a network is. Its model is built when the first multiply-adds are counted, as `about` is told to.

    Attributes:
        about: of the dense network, as far as it is known by then.
    """

    def __init__(self, path: Path, model: str | None, data: str | None, shape: Sequence[int] | None) -> None:
        self.path, self.shape = path, shape
        self.about: About = {}
        # a run's file is at most as deep as pooled/METHOD/round-RR.safetensors
        self.run = next((each for each in (path, *path.parents[:3]) if files.exists(each / MANIFEST)), None)
        if self.run is None:
            if (model is None) != (data is None and shape is None):
                raise ValueError(
                    "multiply-adds need --model, which says what the network is, and --data or --shape, which say what "
                    "one of its inputs is"
                )
        else:
            check_preset(self.run, model)
            if not (data is None and shape is None):
                raise ValueError(f"{self.run} is a run, whose preset names its data: leave --data and --shape out")
        self.own = None if model is None else Own(path, model, data, torch.device("cpu"))

    @cached_property
    def model(self) -> nn.Module | None:
        """Of --model."""
        return None if self.own is None else self.own.model()

    @cached_property
    def products(self) -> Products | None:
        """None: no model is known, or a run's can't be built here."""
        products = None
        if self.own is not None and self.model is not None:
            inputs = self.own.inputs()[:1] if self.shape is None else torch.zeros(1, *self.shape)
            try:
                products = self._counted(self.model, inputs)
            except Exception as error:  # whatever a user's forward raises
                words = f"the network of --model fails with an input of the shape {list(inputs.shape[1:])}"
                raise ValueError(f"{words}: {terminal.reason(error)}") from error
        elif self.run is not None:
            try:
                products = self._counted(*_of_run(self.run))
            except (ImportError, ValueError, RuntimeError) as error:
                self._unknown(str(error))
        return products

    def _counted(self, model: nn.Module, inputs: Tensor) -> Products:
        products = Products(model, inputs)
        self.about["products"] = products.dense
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return products

    def _unknown(self, problem: str) -> None:
        self.about = {"problem": f"multiply-adds are not known: {problem}"}

    def _remaining(self, products: Products, state: State) -> About:
        for name in products.of_weights:
            found = list(state[name].shape) if name in state else "no such tensor"
            if name not in state or state[name].shape != self.shapes[name]:
                problem = f"it has {name!r} of the shape {list(self.shapes[name])}, and {self.path} {found}"
                if self.run is None:
                    raise ValueError(f"--model makes another network: {problem}")
                self._unknown(f"the preset's network is another one: {problem}")
                return {}
        return {"products": products.remaining(state)}

    def about_one(self, state: State, masks: State, **more: Any) -> About:
        weights, remaining = (sum(int(count(mask)) for mask in masks.values()) for count in (Tensor.numel, _kept))
        return {
            "round": None,
            "density": remaining / weights if weights else 1.0,
            "weights": weights,
            "remaining": remaining,
            "layers": {name: _kept(mask) / max(mask.numel(), 1) for name, mask in masks.items()},
            "bytes": sum({tensor.data_ptr(): tensor.nbytes for tensor in state.values()}.values()),
            **({} if self.products is None else self._remaining(self.products, state)),
            **more,
        }

    def of_zeros(self, state: State) -> About:
        """Of a state dict without masks: what is zero in a tensor that has zeros is pruned."""
        plain = network(state)
        masks = plain.masks or masks_from_zeros([plain.state])[0]
        return self.about_one(plain.state, {name: mask.bool() for name, mask in masks.items()})


def _of_run(run: Path) -> tuple[nn.Module, Tensor]:
    """A run's network and an input, without its data set, which need not be here."""
    preset = presets.from_dict(read_manifest(run)["preset"], str(run / MANIFEST))
    choices.check("the data set", preset.data.name, SHAPES)
    shape, classes = SHAPES[preset.data.name], CLASSES[preset.data.name]
    model = models.build(preset.model.name, classes=classes, shape=shape, **preset.model.options)
    return model, torch.zeros(1, *shape)


def _kept(mask: Tensor) -> int:
    return int(mask.count_nonzero())


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
        if "products" in found:
            yield f"multiply-adds of the dense network, for one sample: {found['products']:,}"
    for each in networks:
        round_ = "" if each["round"] is None else f"round {each['round']}: "
        weights = f"density {percent(each['density'])}%, {each['remaining']:,} weights remain"
        weights = weights if each["weights"] else "no tensor is pruned"
        products = f", {each['products']:,} multiply-adds" if "products" in each else ""
        digest = f", digest {each['digest'][:8]}" if "digest" in each else ""
        yield f"{round_}{weights}{products}{digest}"
    if "problem" in found:
        yield found["problem"]
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
