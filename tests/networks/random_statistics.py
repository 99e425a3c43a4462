"""BatchNorm statistics and weights drawn at random: those of a fresh network hide what folding does."""

import torch
from torch import nn


def with_random_statistics(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            for tensor, low in (
                (module.running_mean, -1),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -1),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, low + 1.5, generator=generator)
    return network.eval().requires_grad_(False)
