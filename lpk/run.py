"""A run directory: a preset carried out on a data set with a seed, and everything that came of it.

manifest.json         what it is: preset, seed, data, versions, arguments
tickets/              tickets.json and one safetensors file for each round
pooled/METHOD/        one safetensors file for each target
results.json          test accuracies
report.html
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lpk import models, presets, schema, terminal
from lpk.data.sets import Data
from lpk.data.sets import load as load_data
from lpk.data.splits import Split
from lpk.directory import MANIFEST, POOLS, Directory, check_whole, locked_by_first
from lpk.distributed import are_several, together
from lpk.networks.prunable import Prunable, convolutions, prunable_names
from lpk.networks.synchronised import synchronised
from lpk.pooling.samples import Samples
from lpk.presets import Preset
from lpk.pruning.imp import imp
from lpk.pruning.recipe import stream
from lpk.pruning.train import Trainer
from lpk.reporting.results import PLOT, REPORT, RESULTS
from lpk.schema import null, string, whole
from lpk.tickets import files
from lpk.tickets.store import MANIFEST as TICKETS
from lpk.tickets.tickets import Tickets
from lpk.tickets.versions import versions

CONTENT = {
    "format": whole,
    "preset": schema.table,  # lpk.presets checks it
    "seed": whole,
    "data": string,
    "data_root": (string, null),
    "samples": {string: whole},
    "imported?": [string],
}
WATCHED = 1000  # validation samples whose accuracy is shown after each epoch: more would cost more time


@dataclass(frozen=True)
class Run(Directory):
    """An open run directory."""

    preset: Preset
    seed: int
    data: Data
    device: torch.device
    manifest: dict[str, Any]

    @classmethod
    @contextmanager
    def create(
        cls,
        path: Path,
        preset: Preset,
        *,
        seed: int,
        root: Path | None = None,
        device: str | None = None,
        imported: Sequence[Path] = (),
        key: str | None = None,
        lock: bool = True,
    ) -> Iterator[Run]:
        """Opens a run directory, new or begun before with the same preset, seed and data, and locks it.

        A preset that differs in its name or has more rounds goes on with the run, unless its tickets were imported.

        Several processes of torchrun open it together: the first looks at it, locks it and writes it.

        imported, key: other people's checkpoints (see Tickets.from_checkpoints) that become the tickets of a new run.
        lock: False where this process's caller sees to it that nobody else uses it.

        Raises ValueError where it holds another run, files that are of no run, or symbolic links in the place of its
        own, RuntimeError where another process uses it.
        """
        path, root = files.absolute(path), None if root is None else files.absolute(root)
        with ExitStack() as held:
            with together() as ranks:
                if ranks.first:
                    check_whole(path)
                    if not files.exists(path / MANIFEST):
                        check_empty(path)
                    if lock:
                        held.enter_context(files.locked(path))
                # The first may have to download what the others then find.
                loaded = _load_data(preset, seed, root) if ranks.first else None
                ranks.share(None)
                run = cls(path, preset, seed, loaded or _load_data(preset, seed, root), device_of(device), {})
                alike = {"preset": preset.to_dict(), "seed": seed, "the number of samples": run._samples()}
                ranks.check_alike({name: repr(value) for name, value in alike.items()}, "all processes need the same")
                run = replace(run, manifest=ranks.by_first(lambda: run._begin(root, imported, key)))
            yield run

    def _begin(self, root: Path | None, imported: Sequence[Path], key: str | None) -> dict[str, Any]:
        """The manifest, which is written, or was there and is of the same run."""
        path = self.path
        manifest = {
            "format": files.FORMAT,
            "preset": self.preset.to_dict(),
            "seed": self.seed,
            "data": self.data.source,
            "data_root": None if root is None else str(root),
            "samples": self._samples(),
            "command": terminal.command(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": str(self.device),
            "versions": versions(),
        }
        tickets = None
        if imported:
            manifest["imported"] = [str(files.absolute(source)) for source in imported]
            check_no_tickets(path)
            tickets = Tickets.from_checkpoints(imported, model=self.model(), key=key)
        if files.exists(path / MANIFEST):
            stored = read_manifest(path)
            begun = presets.from_dict(stored["preset"], str(path / MANIFEST))
            same = stored if "imported" in stored else stored | {"preset": _continued(begun, self.preset).to_dict()}
            for name in ("preset", "seed", "samples"):
                if same[name] != manifest[name]:
                    raise ValueError(f"{path} holds a run with another {name}; {_difference(same, manifest, name)}")
            if stored["preset"] != manifest["preset"]:
                stored |= {name: manifest[name] for name in ("format", "preset", "command")}
                files.write_json(path / MANIFEST, stored)
            manifest = stored
        else:
            files.write_json(path / MANIFEST, manifest)
        if tickets is not None:
            tickets.save(path / "tickets")
        return manifest

    def _samples(self) -> dict[str, int]:
        return {
            "train": len(self.data.train),
            "validation": len(self.data.validation),
            "calibration": self.preset.pool.calibration,
            "test": len(self.data.test),
        }

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, *, seed: int | None = None, root: Path | None = None, device: str | None = None
    ) -> Iterator[Run]:
        """Opens and locks a run directory that exists. `seed`, where given, must be the run's.

        Several processes of torchrun need to see it, and the first locks it.
        """
        path, root = files.absolute(path), None if root is None else files.absolute(root)
        _check_is_run(path)
        check_whole(path)
        with locked_by_first(path):
            manifest = read_manifest(path)
            if seed is not None and seed != manifest["seed"]:
                raise ValueError(f"{path} is a run with seed {manifest['seed']}, not {seed}")
            preset = presets.from_dict(manifest["preset"], str(path / MANIFEST))
            root = root or (Path(manifest["data_root"]) if manifest["data_root"] else None)
            loaded = _load_data(preset, manifest["seed"], root)
            yield cls(path, preset, manifest["seed"], loaded, device_of(device), manifest)

    def model(self) -> nn.Module:
        """The network at its initialization, which depends on the seed alone."""
        torch.manual_seed(stream(self.seed, "initialization"))
        network = models.build(
            self.preset.model.name, classes=self.data.classes, shape=self.data.shape, **self.preset.model.options
        )
        return network.to(self.device).to(memory_format=torch.channels_last)

    def imp(self, *, progress: bool = True) -> Tickets:
        """Algorithm 1 by the preset's recipe; goes on where it was interrupted.

        Several processes of torchrun train one network together, BatchNorm over the whole batch: what comes of it
        differs from one process's by rounding.
        """
        recipe, settings = self.preset.train, self.preset.imp
        model = self.model()
        prunable: Prunable = convolutions(model) if settings.prunable == "convolutions" else None
        if are_several():
            prunable = prunable_names(model, prunable)  # before torch.fx can't look into it any more
            model = DistributedDataParallel(synchronised(model))
        few = self.data.validation.take(min(WATCHED, len(self.data.validation)))
        trainer = Trainer(self.data.train, recipe, seed=self.seed, augment=self.preset.data.augment, validation=few)
        return imp(
            model,
            trainer,
            epochs=recipe.epochs,
            rounds=settings.rounds,
            fraction=settings.fraction,
            density=settings.density,
            scope=settings.scope,
            floor=settings.floor,
            rewind=settings.rewind,
            restart=settings.restart,
            prunable=prunable,
            store=self.path / "tickets",
            seed=self.seed,
            progress=progress,
        )

    def tickets(self) -> Tickets:
        """Raises FileNotFoundError saying which command makes them, lpk.FileDamaged."""
        try:
            return Tickets.load(self.path / "tickets")
        except FileNotFoundError as error:
            raise no_tickets(self.path, self.manifest, error) from error

    def calibration(self) -> Split:
        """The training samples that renew BatchNorm's statistics, without augmentation."""
        return self.data.train.take(min(self.preset.pool.calibration, len(self.data.train)))

    @property
    def title(self) -> str:
        return f"{self.data.name}, {self.preset.model.name}"

    @property
    def scope(self) -> str:
        """That of pools, which keep of each layer what its ticket does where the preset says anything of layers."""
        return "layer" if self.preset.imp.scope == "layer" or self.preset.imp.floor else "global"

    @property
    def batch_size(self) -> int:
        """Of calibration, validation and test samples."""
        return self.preset.pool.batch_size

    def samples(self, part: str) -> Samples:
        """The samples of "validation", "calibration" or "test", as lpk.pool and lpk.evaluate take them."""
        split = self.calibration() if part == "calibration" else getattr(self.data, part)
        return split.loader(self.batch_size)

    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.data.shape


def check_empty(path: Path) -> None:
    """Raises ValueError where a directory that is to become a run holds what a run would replace."""
    check_no_tickets(path)
    for name in ("pooled", POOLS, RESULTS, REPORT, PLOT):
        if os.path.lexists(path / name):
            raise _taken(path, name)


def check_no_tickets(path: Path) -> None:
    """Raises ValueError where the run directory has tickets, which others must not replace."""
    if files.exists(path / "tickets" / TICKETS):
        raise _taken(path, "tickets")


def _taken(path: Path, name: str) -> ValueError:
    return ValueError(f"{path} holds {name} already; use another directory")


def no_tickets(path: Path, manifest: dict[str, Any], error: FileNotFoundError) -> FileNotFoundError:
    """The error of a run without tickets, with the command that makes them."""
    return FileNotFoundError(f"{error}; `{manifest.get('command') or f'lpk imp {path}'}` makes them")


def _check_is_run(path: Path) -> None:
    if not files.exists(path / MANIFEST):
        raise FileNotFoundError(
            f"{path} is not a run directory: it has no {MANIFEST}; `lpk imp` makes one, or `lpk import --preset`"
        )


def device_of(name: str | None) -> torch.device:
    """The device by name; None: a GPU where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load_data(preset: Preset, seed: int, root: Path | None) -> Data:
    wanted = preset.data
    return load_data(
        wanted.name,
        validation=wanted.validation,
        train=wanted.train,
        label_noise=wanted.label_noise,
        seed=seed,
        root=root,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """What a run directory says that it is. Raises FileNotFoundError, lpk.FileDamaged."""
    return files.read_json(path / MANIFEST, CONTENT)


def _continued(begun: Preset, wanted: Preset) -> Preset:
    """The preset of a run that was begun, with what a run may go on with: another name, more rounds.

    Where a density is that of the last round, more rounds are another run.
    """
    rounds = begun.imp.rounds if begun.imp.density is not None else max(begun.imp.rounds, wanted.imp.rounds)
    return replace(begun, name=wanted.name, imp=replace(begun.imp, rounds=rounds))


def _difference(stored: dict[str, Any], wanted: dict[str, Any], key: str) -> str:
    a, b = stored[key], wanted[key]
    if isinstance(a, dict) and isinstance(b, dict):
        inner = next(k for k in sorted({*a, *b}) if a.get(k) != b.get(k))
        return _difference({inner: a.get(inner)}, {inner: b.get(inner)}, inner)
    return f"{key} is {a}, not {b}; use another directory"
