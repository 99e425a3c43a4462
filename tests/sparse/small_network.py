"""A network with a convolution, linear layers and a part that PyTorch runs, and its outputs."""

import torch
from torch import nn

IMAGES = torch.randn(3, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    """With a convolution, a linear layer and a matrix product that PyTorch computes."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(480, 16), nn.Softplus())
    return sparsened(layers.append(nn.Linear(16, 4)))


def sparsened(model):
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand(parameter.shape) < 0.3
    return model.eval().requires_grad_(False)


def expected(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def check(made, model, inputs=IMAGES):
    torch.testing.assert_close(made(inputs), expected(model, inputs), rtol=1e-4, atol=1e-5)
