"""A small sparse network beside PyTorch's dense ones.

`python -m bench.sparse` is the real thing; this one is small enough to be run with the kernels' benchmarks.
"""

import pytest
import torch

from bench import sparse
from bench.sparse_peers import contestants


@pytest.mark.parametrize("runner", ["lpk", "eager", "folded"])
@pytest.mark.parametrize("density", [1.0, 0.2, 0.05])
def test_sparse(benchmark, density, runner):
    model, images = sparse.untrained("small-resnet")
    (subject,) = sparse.pruned("small-resnet", "random", model, images, [density])
    benchmark.group = f"sparse, small-resnet, {density:.0%} dense, batch 128"
    with contestants([runner], subject.model, images[:128]) as made, torch.inference_mode():
        benchmark.pedantic(made[runner].call, args=(made[runner].inputs,), rounds=9, warmup_rounds=2)
