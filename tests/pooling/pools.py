"""What small pools are made with, and whether two networks are the same."""

import torch

CHOICES = {"coefficients": (0.1, 0.3, 0.5, 0.7, 0.9), "progress": False, "batch_size": 20}


def same_network(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict.values(), b.state_dict.values(), strict=True))
