"""What the engine refuses."""

from __future__ import annotations


class NotSupported(ValueError):
    """A network that the engine can't run."""


class Fails(NotSupported):
    """A network that fails in PyTorch, too, for two samples of the inputs' shape."""
