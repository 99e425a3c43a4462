"""A small sparse network beside PyTorch's dense ones.

`python -m bench.sparse` is the real thing; this one is small enough to be run with the kernels' benchmarks.
"""

import pytest
import torch

from bench import networks, sparse_subjects
from bench.sparse_peers import contestants


@pytest.mark.parametrize("runner", ["lpk", "eager", "folded"])
@pytest.mark.parametrize("density", [1.0, 0.2, 0.05])
def test_sparse(benchmark, density, runner):
    network = networks.described("small-resnet", None)
    (subject,) = sparse_subjects.pruned(network, "random", *sparse_subjects.untrained(network), [density])
    benchmark.group = f"sparse, small-resnet, {density:.0%} dense, batch 128"
    with contestants([runner], subject.model, subject.inputs[:128]) as made, torch.inference_mode():
        benchmark.pedantic(made[runner].call, args=(made[runner].inputs,), rounds=9, warmup_rounds=2)
