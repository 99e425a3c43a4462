"""Tickets of networks that others pruned, given as state dicts or modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from lpk.networks.flat import Layout, StateDict
from lpk.networks.states import state_names
from lpk.networks.wrappers import unwrapped
from lpk.tickets import conventions
from lpk.tickets.state_dicts import check_plain
from lpk.tickets.store import MASK
from lpk.tickets.ticket import Ticket, check_mixable


def tickets_of(
    names: Sequence[str],
    state_dicts: Sequence[Mapping[str, Tensor] | nn.Module],
    masks: Sequence[Mapping[str, Tensor] | None] | None,
    model: nn.Module | None,
    prunable: Collection[str] | None,
) -> list[Ticket]:
    """One ticket for each state dict; errors call them by `names`."""
    if not state_dicts:
        raise ValueError("no state dicts: at least one is needed")
    if masks is not None and len(masks) != len(state_dicts):
        raise ValueError(f"{len(state_dicts)} state dicts but {len(masks)} masks; one for each is needed")
    networks = []
    for name, state, given in zip(names, state_dicts, masks or [None] * len(names), strict=True):
        if not isinstance(state, Mapping | nn.Module):
            raise TypeError(
                f"{name} is a {type(state).__name__}; a state dict or a module is needed. "
                "lpk.Tickets.from_checkpoints reads files"
            )
        state = state.state_dict() if isinstance(state, nn.Module) else state
        try:
            check_plain(state)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        networks.append(conventions.network(state, given))
        if MASK in networks[-1].state:
            raise ValueError(f"{name} is lpk's own: lpk.Tickets.load reads its directory, lpk.Pooled.load a pooled one")
        _check_masks(name, *networks[-1])
    own = None
    if model is not None:
        model = unwrapped(model)
        own = conventions.network(model.state_dict()).state
        networks = [_named_as(own, name, network) for name, network in zip(names, networks, strict=True)]
    states, found = [network.state for network in networks], [network.masks for network in networks]
    if not any(found):
        found = conventions.masks_from_zeros(states, model=model, prunable=prunable)
    elif prunable is not None:
        raise ValueError("`prunable` says whose zeros are pruned weights, but the tickets have masks")
    chosen = {name for given in found for name in given}.union(prunable or ())
    if not chosen:
        raise ValueError(
            f"no ticket has a zero weight or a mask ({names[0]} to {names[-1]}): from_state_dicts takes `masks`, "
            "{name: bool tensor} for each, or `prunable`, the names of what may be pruned"
        )
    try:
        layout = Layout.of(states[0], sorted(chosen))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{names[0]}: {error}") from error
    if own is not None and (problem := layout.difference(own)):
        raise ValueError(f"the model is another network than {names[0]}: in the model {problem}")
    tickets = [_ticket(i, names, layout, *network) for i, network in enumerate(zip(states, found, strict=True))]
    check_mixable(names, tickets)
    if model is not None:
        parameters = set(state_names(model).values())
        for name, ticket in zip(names, tickets, strict=True):
            try:
                layout.check_finite(ticket.flat, parameters)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return tickets


def _named_as(own: StateDict, name: str, network: conventions.Network) -> conventions.Network:
    try:
        return conventions.named_as(own, network)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_masks(ticket: str, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in state:
            raise ValueError(f"{ticket}: the mask of {name!r} belongs to no entry of the state dict")
        if mask.shape != state[name].shape:
            raise ValueError(
                f"{ticket}: the mask of {name!r} has shape {tuple(mask.shape)}, not {tuple(state[name].shape)}"
            )
        if mask.dtype != torch.bool and not torch.all((mask == 0) | (mask == 1)):
            raise ValueError(f"{ticket}: the mask of {name!r} holds other values than 0 and 1")


def _ticket(
    i: int, names: Sequence[str], layout: Layout, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Ticket:
    if problem := layout.difference(state):
        raise ValueError(f"{names[i]} does not match {names[0]}: {problem}")
    mask = torch.ones(layout.n, dtype=torch.bool, device="cpu")
    try:
        masks = conventions.tie(masks, layout.aliases)
        for entry in layout.weights:
            if entry.name in masks:
                mask[entry.span] = masks[entry.name].reshape(-1).to(mask)
        return Ticket.of(i, layout, state, mask)
    except ValueError as error:
        raise ValueError(f"{names[i]}: {error}") from error
