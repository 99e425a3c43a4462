"""What a pool returns: the network, how it was made, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lpk import schema
from lpk.networks.flat import LAYOUT, Flat, Layout, StateDict
from lpk.schema import Row, flag, null, number, whole
from lpk.tickets import files
from lpk.tickets.store import packed, unpacked

# The metadata of a file.
CONTENT = {
    "round": whole,
    "layout": LAYOUT,
    "accuracy": number,
    "baseline_accuracy": number,
    "steps": [Row((whole, (number, null), (number, null), flag))],
    "forward_samples": whole,
    "validation_samples": whole,
    "seconds": number,
    "settings": schema.table,
}


class Step(NamedTuple):
    """One candidate of a pool.

    Attributes:
        candidate: its round.
        coefficient: the best α. None on a rejected step whose coefficients were all dropped early.
        accuracy: of the interpolation with that α, on the validation samples; None where it was not scored in full.
        accepted: whether the interpolation became θ_best.
    """

    candidate: int
    coefficient: float | None
    accuracy: float | None
    accepted: bool


@dataclass(frozen=True, eq=False)
class Pooled:
    """A pooled network.

    Attributes:
        round: the target's.
        layout, flat, mask: its values as flat vectors; exactly the target's number of weights remain.
        accuracy: on the validation samples, as a fraction (with `evaluate`: what it returned).
        baseline_accuracy: the target ticket's, on the same samples.
        steps: one for each candidate, in the order they were offered.
        forward_samples: how many samples went through the network, calibration included.
        validation_samples: how many of them were validation samples.
        seconds: how long it took.
        settings: method, search, backend, batch size, versions: what ran.
    """

    round: int
    layout: Layout
    flat: Flat
    mask: Tensor
    accuracy: float
    baseline_accuracy: float
    steps: tuple[Step, ...]
    forward_samples: int
    validation_samples: int
    seconds: float
    settings: Mapping[str, Any]

    @property
    def state_dict(self) -> StateDict:
        """The network under its own names, of its own memory: model.load_state_dict(pooled.state_dict)."""
        return self.layout.unflatten(self.flat)

    @property
    def masks(self) -> StateDict:
        """One bool tensor for each prunable entry."""
        return self.layout.masks(self.mask)

    @property
    def keep(self) -> int:
        """How many weights remain."""
        return int(self.mask.count_nonzero())

    @property
    def density(self) -> float:
        """Weights remaining / prunable weights."""
        return self.keep / self.layout.n

    def to_prune(self, model: nn.Module) -> None:
        """Writes the network into a model, which torch.nn.utils.prune then keeps pruned; see Layout.to_prune."""
        self.layout.to_prune(model, self.flat, self.mask)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file: the state dict, the packed mask as `lpk.mask`, and the rest in its header."""
        path = files.absolute(path)
        files.make_directory(path.parent)
        self.write(path)

    def write(self, path: Path) -> None:
        """`save` into a directory that is there; one that was removed meanwhile is not made again."""
        metadata = {
            "round": self.round,
            "layout": self.layout.to_json(),
            "accuracy": self.accuracy,
            "baseline_accuracy": self.baseline_accuracy,
            "steps": self.steps,
            "forward_samples": self.forward_samples,
            "validation_samples": self.validation_samples,
            "seconds": self.seconds,
            "settings": dict(self.settings),
        }
        files.save_tensors(path, packed(self.layout, self.state_dict, self.mask), metadata)

    @staticmethod
    def wrote(path: str | Path) -> bool:
        """Whether `save` wrote a file. Raises FileNotFoundError, or lpk.FileDamaged for one that is not lpk's."""
        return "layout" in files.load_metadata(files.absolute(path))

    @classmethod
    def load(cls, path: str | Path) -> Pooled:
        """Reads what `save` wrote. Raises FileNotFoundError, or lpk.FileDamaged."""
        tensors, metadata = files.load_tensors(files.absolute(path), CONTENT)
        try:
            layout = Layout.from_json(metadata["layout"])
            flat, mask = unpacked(layout, tensors)
        except ValueError as error:
            raise files.FileDamaged(f"{path} is damaged: {error}") from error
        known = {name: metadata[name] for name in CONTENT if name not in ("layout", "steps")}
        steps = tuple(Step(*step) for step in metadata["steps"])
        return cls(layout=layout, flat=flat, mask=mask, steps=steps, **known)

    def __repr__(self) -> str:
        accepted = sum(step.accepted for step in self.steps)
        return (
            f"Pooled(round={self.round}, density={self.density:.4f}, accuracy={self.accuracy:.4f} "
            f"from {self.baseline_accuracy:.4f}, {accepted} of {len(self.steps)} candidates accepted)"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the steps."""
        from lpk import page

        lines = [
            (
                step.candidate,
                "–" if step.coefficient is None else f"{step.coefficient:.3g}",
                "–" if step.accuracy is None else f"{step.accuracy:.4f}",
                "accepted" if step.accepted else "rejected",
            )
            for step in self.steps
        ]
        steps = page.table(["candidate (round)", "coefficient", "accuracy", "outcome"], lines)
        return page.element("div", page.element("p", repr(self)), steps)
