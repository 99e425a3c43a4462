"""Algorithm 2 in plain PyTorch on a GPU: samples and tickets lie on the device before the clock starts.

The whole takes minutes there, of which all but the first network's seconds are the same again: a few networks are
measured, and the others extrapolated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lpk
from bench.busy import synchronize
from tests.pooling import reference_search


@dataclass(frozen=True)
class Batches:
    """Samples on the device in batches, in their order: views, so that nothing is copied."""

    inputs: Tensor
    labels: Tensor
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def first(self, batches: int) -> Batches:
        samples = batches * self.batch_size
        return Batches(self.inputs[:samples], self.labels[:samples], self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.inputs.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


@dataclass(frozen=True)
class StateDict:
    """Of a ticket what the reference asks for."""

    state_dict: dict[str, Tensor]
    keep: int


class StateDicts:
    """Tickets as the reference reads them, all of them on one device."""

    def __init__(self, tickets: lpk.Tickets, device: torch.device) -> None:
        self.layout = tickets.layout
        self._states = [
            StateDict({name: tensor.to(device) for name, tensor in ticket.state_dict.items()}, ticket.keep)
            for ticket in tickets
        ]

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, round_: int) -> StateDict:
        return self._states[round_]


def measure(
    tickets: StateDicts,
    target: int,
    model: nn.Module,
    validation: Batches,
    calibration: Batches,
    *,
    candidates: int | None,
    networks: int,
) -> dict[str, Any]:
    """Seconds of the reference for one target.

    networks: how many of the first candidate's are measured, no more than there are coefficients; 0: the whole search
    is, and nothing is extrapolated.
    """
    offered = len(tickets) - 1 if candidates is None else min(candidates, len(tickets) - 1)
    in_all = offered * len(lpk.COEFFICIENTS)

    def seconds(some: int | None, coefficients: tuple[float, ...], samples: Batches = calibration) -> float:
        synchronize()
        began = time.perf_counter()
        reference_search.pool(tickets, target, model, validation, samples, coefficients, candidates=some)
        synchronize()
        return time.perf_counter() - began

    seconds(1, lpk.COEFFICIENTS[:1], calibration.first(2))  # what runs for the first time takes longer

    found = {"calibration_samples": len(calibration.inputs), "networks": in_all}
    if networks == 0:
        return found | {"seconds": seconds(candidates, lpk.COEFFICIENTS), "measured": in_all, "extrapolated": False}
    alone = seconds(0, lpk.COEFFICIENTS)
    beside = seconds(1, lpk.COEFFICIENTS[:networks])
    return found | {
        "seconds": extrapolated(alone, beside, networks, in_all),
        "measured": networks,
        "extrapolated": networks < in_all,
    }


def extrapolated(alone: float, beside: float, networks: int, in_all: int) -> float:
    """Seconds of a search of `in_all` networks: `alone` is what scoring the target takes, `beside` what that and some
    networks take."""
    return alone + (beside - alone) / networks * in_all
