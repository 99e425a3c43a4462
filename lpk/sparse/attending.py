"""Attention whose queries, keys and values lie on the engine."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import fx

from lpk.networks.known import is_shape_query
from lpk.sparse.blocks import IMAGES
from lpk.sparse.nodes import Nodes
from lpk.sparse.patches import finest_cut
from lpk.sparse.steps import Attention, Heads, Seen, Value


class Part(NamedTuple):
    """Queries, keys or values."""

    value: Value
    heads: Heads
    number: int  # of heads
    size: int  # of a head


class Attending(Nodes):
    """Attention waits to be run by PyTorch, until its result turns out to be viewed as tokens: then it never is."""

    def _attended(self, node: fx.Node) -> bool:
        """The last of several views of what attention returns, which lays the heads of a token side by side."""
        views, root = self._views(node)
        if root is None or root in self.pytorch.slots or not all(map(_is_read_once, (root, *views[:-1]))):
            return False
        if (found := self._call(root).attention()) is None:
            return False
        query, key, value = map(self._part, found[0])
        if query is None or key is None or value is None:
            return False
        count, size = query.number, query.size
        if any(part[2:] != (count, size) for part in (key, value)) or key.value.image[1:] != value.value.image[1:]:
            return False
        out = Value((count * size, *query.value.image[1:]))
        layout = self._viewed(views, lambda batch: batch.attended(views, root, out, count))
        if layout is None:
            return False
        scale = 1 / math.sqrt(size) if found[1] is None else float(found[1])
        heads = (query.heads, key.heads, value.heads)
        step = Attention([query.value, key.value, value.value], out, heads, count, size, scale)
        shape, last, times = layout
        self.fused.append(node, step, Seen(out, shape, last, times))
        return True

    def _part(self, node: fx.Node) -> Part | None:
        """Queries, keys or values that are views of what is on the engine, and nothing else."""
        views, root = self._views(node, parts=True)
        if root is None or root not in self.seen or self.rewritten.intersection((root, *views)):
            return None
        seen = self.seen[root]
        (rows, columns), _ = finest_cut(*seen.value.image[1:])
        if rows * columns < IMAGES:  # some lanes would have no token
            return None
        found = self._viewed(views, lambda batch: batch.heads(views, root, seen))
        return None if found is None else Part(seen.value, *found)


def _is_read_once(node: fx.Node) -> bool:
    return sum(not is_shape_query(n) for n in node.users) == 1
