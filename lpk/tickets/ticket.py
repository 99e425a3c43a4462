"""A ticket: a trained subnetwork."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lpk.networks.flat import Flat, Layout, StateDict


@dataclass(frozen=True, eq=False)
class Ticket:
    """A trained subnetwork: its weights and its mask.

    Attributes:
        round: the IMP round it came from, 0 = dense.
        layout: where its entries stand in the flat vectors.
        flat: its values; weights outside the mask are 0.
        mask: bool [n].
    """

    round: int
    layout: Layout
    flat: Flat
    mask: Tensor

    @classmethod
    def of(cls, round: int, layout: Layout, state: Mapping[str, Tensor], mask: Tensor) -> Ticket:
        """The ticket of a state dict that fits `layout`; weights outside the mask become 0."""
        flat = layout.flatten(state)
        flat.weights.masked_fill_(~mask, 0.0)
        return cls(round, layout, flat, mask)

    @property
    def keep(self) -> int:
        """How many weights remain."""
        return int(self.mask.count_nonzero())

    @property
    def density(self) -> float:
        """Weights remaining / prunable weights."""
        return self.keep / self.layout.n

    @property
    def state_dict(self) -> StateDict:
        """The whole network; pruned weights are 0."""
        return self.layout.unflatten(self.flat)

    @property
    def masks(self) -> StateDict:
        """One bool tensor for each prunable entry."""
        return self.layout.masks(self.mask)

    def to_prune(self, model: nn.Module) -> None:
        """Writes the ticket into a model, which torch.nn.utils.prune then keeps pruned; see Layout.to_prune."""
        self.layout.to_prune(model, self.flat, self.mask)

    def __repr__(self) -> str:
        return f"Ticket(round={self.round}, density={self.density:.4f}, keep={self.keep})"

    def _repr_html_(self) -> str:
        """For notebooks: the layers, folded."""
        from lpk import page

        kept = [(entry, int(self.mask[entry.span].count_nonzero())) for entry in self.layout.weights]
        lines = [
            (entry.name, " × ".join(map(str, entry.shape)), f"{keep:,}", f"{page.percent(keep / entry.shape.numel())}%")
            for entry, keep in kept
        ]
        layers = page.table(["tensor", "shape", "weights left", "density"], lines)
        return page.element("details", page.element("summary", repr(self)), layers)


def check_mixable(names: Sequence[str], tickets: Sequence[Ticket]) -> None:
    """Raises ValueError where a ticket differs from the first one in what can't be interpolated; called by `names`."""
    for i in range(1, len(tickets)):
        for one, other in ((i, 0), (0, i)):
            if problem := tickets[one].layout.contradiction(tickets[one].flat, tickets[other].flat):
                raise ValueError(
                    f"{names[one]}: {problem} as in {names[other]}; infinities, NaN, complex numbers and shapes must "
                    "be the same in all tickets"
                )
