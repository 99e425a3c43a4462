"""A model that computes with two flat vectors, whatever is done to it in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.batchnorm import batchnorms
from lpk.networks.flat import Flat, Layout
from lpk.networks.links import Attributes, Link, owners, same
from lpk.networks.wrappers import plain_copy


class Normalisation(NamedTuple):
    """A BatchNorm layer, and where its running mean and variance stand in the rest vector."""

    layer: _BatchNorm
    mean: slice
    variance: slice


class _Place(NamedTuple):
    """A parameter or buffer, and where its values stand in which vector; None where they are in none.

    `running`: whether they are BatchNorm's running statistics.
    """

    link: Link
    vector: Tensor | None
    span: slice
    running: bool

    @property
    def is_view(self) -> bool:
        """Of the vector: entries of another dtype are copies."""
        return self.vector is not None and self.vector.dtype == self.link.home.dtype


class FlatModel:
    """A copy of a model whose parameters and buffers are views of two flat vectors: writing a candidate is one pass.

    They are that whenever lpk has written: what the model's own forward moved elsewhere is put back.

    Attributes:
        model: the copy, in evaluation mode, without gradients. Code that is not lpk's gets it by `lent`.
        weights, rest: the vectors [n] and [m] that the copy computes with.
        batchnorms: the layers with running statistics.
        statistics: bool [m], True at those.

    Raises ValueError where the model's names, shapes or dtypes are not those of the layout.
    """

    def __init__(self, model: nn.Module, layout: Layout, device: torch.device) -> None:
        self.model = plain_copy(model).to(device).eval().requires_grad_(False)
        self.layout = layout
        size = layout.rest[-1].span.stop if layout.rest else 0
        self.weights = torch.zeros(layout.n, dtype=layout.dtype, device=device)
        self.rest = torch.zeros(size, dtype=torch.float32, device=device)
        state = self.model.state_dict(keep_vars=True)
        if problem := layout.difference(state):
            raise ValueError(f"the tickets are of another network than the model: {problem}")
        self._places = list(self._placed(state))
        spans = {id(place.link.tensor): place.span for place in self._places if place.running}
        self.batchnorms = [
            Normalisation(layer, spans[id(layer.running_mean)], spans[id(layer.running_var)])
            for _, layer in batchnorms(self.model)
            if id(layer.running_mean) in spans and id(layer.running_var) in spans
        ]
        self.statistics = torch.zeros(size, dtype=torch.bool, device=device)
        for _, mean, variance in self.batchnorms:
            self.statistics[mean] = self.statistics[variance] = True
        self.written()

    def _placed(self, state: Mapping[str, Tensor]) -> Iterator[_Place]:
        """Every tensor of the model once. Integers, and what is in no state dict, stay where they are."""
        held, seen = owners(self.model), set[int]()
        statistics = {id(t) for _, layer in batchnorms(self.model) for t in (layer.running_mean, layer.running_var)}
        entries = {entry.name: (entry, self.weights) for entry in self.layout.weights}
        entries |= {entry.name: (entry, self.rest) for entry in self.layout.rest}
        own = [*self.model.named_parameters(), *self.model.named_buffers()]
        by_address = {(tensor.data_ptr(), tensor.shape): tensor for _, tensor in own if tensor.numel() > 0}
        for name, tensor in (*state.items(), *own):
            if id(tensor) not in held:  # a hook of the state dict has detached it
                tensor = by_address.get((tensor.data_ptr(), tensor.shape), tensor)
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name, at = self.layout.aliases.get(name, name), held.get(id(tensor), [])
            if name not in entries:
                yield _Place(Link(name, tensor, tensor.detach(), at), None, slice(0, 0), running=False)
                continue
            entry, vector = entries[name]
            home = vector[entry.span].view(entry.shape) if tensor.dtype == vector.dtype else tensor.detach()
            running = vector is self.rest and id(tensor) in statistics
            yield _Place(Link(name, tensor, home, at), vector, entry.span, running)

    def written(self) -> None:
        """To be called after `weights` or `rest` was written: tensors that do not lie there any more are put back, and
        entries of another dtype are copies, not views."""
        for place in self._places:
            if not place.link.holds():
                place.link.restore()
            if place.vector is not None and not place.is_view:
                place.link.home.copy_(place.vector[place.span].view(place.link.home.shape))

    def read(self) -> None:
        """To be called after the model changed its own entries (BatchNorm's statistics)."""
        for link, vector, span, running in self._places:
            # A layer may also make new statistics in place of writing into its own.
            if vector is not None and (vector.dtype != link.home.dtype or (running and not link.holds())):
                vector[span] = link.current.reshape(-1).to(vector)

    @contextmanager
    def lent(self) -> Iterator[list[str]]:
        """Lends `model` to code that may do with it what it likes: afterwards all is as before, but for BatchNorm's
        running statistics, which stay as they were left. The list gets the names of the others that had other values.
        """
        attributes = Attributes(self.model)
        before = {id(vector): vector.clone() for vector in (self.weights, self.rest)}
        values = [
            before[id(place.vector)][place.span].view(place.link.home.shape)
            if place.is_view
            else place.link.home.clone()
            for place in self._places
        ]
        changed: list[str] = []
        yield changed
        untouched = {id(vector): torch.equal(vector, before[id(vector)]) for vector in (self.weights, self.rest)}
        left: list[tuple[slice, Tensor]] = []
        for place, value in zip(self._places, values, strict=True):
            link = place.link
            if place.vector is None or (place.is_view and untouched[id(place.vector)] and link.holds()):
                continue
            if place.running and not same(link.current, value):
                left.append((place.span, link.current.detach().reshape(-1).to(self.rest, copy=True)))
            elif not same(link.current, value):
                changed.append(link.name)
        attributes.put_back()
        self.weights.copy_(before[id(self.weights)])
        self.rest.copy_(before[id(self.rest)])
        for span, statistics in left:
            self.rest[span] = statistics
        for place, value in zip(self._places, values, strict=True):
            if place.vector is None:
                place.link.home.copy_(value)
        for parameter in self.model.requires_grad_(False).parameters():
            parameter.grad = None
        self.written()

    def load(self, flat: Flat) -> None:
        self.weights.copy_(flat.weights)
        self.rest.copy_(flat.rest)
        for place in self._places:
            if place.vector is None and place.link.name in flat.integers:
                place.link.home.copy_(flat.integers[place.link.name])
        self.written()
