"""Algorithm 2 in plain PyTorch, state dict by state dict: what lpk.pool must find, and what it is timed against.

Every coefficient of every candidate costs a sort of all weights, update_bn over the calibration loader, and a pass over
the validation loader.
"""

import copy
from typing import NamedTuple

import torch
from torch.optim.swa_utils import update_bn

from tests import reference


class ReferenceStep(NamedTuple):
    """A candidate, the correct predictions of each coefficient, and what was made of them."""

    candidate: int
    counts: list
    coefficient: float
    accepted: bool


class ReferencePool(NamedTuple):
    """θ_best as a state dict, the target's correct predictions, and one step for each candidate."""

    state_dict: dict
    baseline: int
    steps: list


def nearest_first(target, count):
    return sorted((i for i in range(count) if i != target), key=lambda i: (abs(i - target), i))


def topk_prune(x, keep):
    """How published code prunes: every weight whose magnitude reaches the keep-th largest."""
    magnitude = x.abs()
    return x * (magnitude >= magnitude.topk(keep).values[-1])


def pool(
    tickets,
    target,
    model,
    validation,
    calibration,
    coefficients,
    *,
    prune=topk_prune,
    candidates=None,
    best=None,
    skip=0,
):
    """The pooled network of one target.

    tickets: lpk.Tickets; model: of the same network; validation, calibration: loaders of (inputs, labels);
    prune: (flat weights, keep) -> flat weights; candidates: how many of the nearest; best, skip: to go on from the
    state dict that the first `skip` candidates led to.
    """
    names, keep = tickets.layout.prunable, tickets[target].keep
    network = copy.deepcopy(model)

    def count(state):
        network.load_state_dict(state)
        network.eval()
        with torch.no_grad():
            return sum(int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in validation)

    def interpolate(best, other, alpha):
        state = {
            name: alpha * tensor + (1 - alpha) * other[name] if tensor.is_floating_point() else tensor
            for name, tensor in best.items()
        }
        pruned, at = prune(torch.cat([state[name].reshape(-1) for name in names]), keep), 0
        for name in names:
            size = state[name].numel()
            state[name] = pruned[at : at + size].view(state[name].shape)
            at += size
        network.load_state_dict(state)
        update_bn(calibration, network)
        return {n: best[n] if n in tickets.layout.integers else t.clone() for n, t in network.state_dict().items()}

    best = best or tickets[target].state_dict
    baseline = best_count = count(best)
    steps = []
    for i in nearest_first(target, len(tickets))[skip:candidates]:
        other = tickets[i].state_dict
        counts, winner = [], None
        for alpha in coefficients:
            state = interpolate(best, other, alpha)
            counts.append(count(state))
            if counts[-1] > max(counts[:-1], default=-1):
                winner = state
        accepted = max(counts) >= best_count
        steps.append(ReferenceStep(i, counts, coefficients[counts.index(max(counts))], accepted))
        if accepted:
            best, best_count = winner, max(counts)
    return ReferencePool(best, baseline, steps)


def exact_prune(x, keep):
    """The paper's "same sparsity": exactly `keep` weights remain."""
    return reference.magnitude_prune(x, keep)
