"""A network that is kept pruned, without lpk.imp around it."""

from contextlib import contextmanager

import torch

from lpk.networks.flat import Layout
from lpk.pruning.masking import kept_pruned


@contextmanager
def half_pruned(model, *names, keep=0.5, at_first_step=lambda: None):
    """Prunes some of the named parameters at random; gives where, by parameter."""
    layout = Layout.of_model(model, list(names))
    mask = torch.rand(layout.n, generator=torch.Generator().manual_seed(7)) < keep
    parameters = dict(model.named_parameters())
    pruned = {parameters[entry.name]: ~mask[entry.span].view(parameters[entry.name].shape) for entry in layout.weights}
    with kept_pruned(model, layout, mask, at_first_step):
        yield pruned
