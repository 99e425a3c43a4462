"""A pool on handwritten digits, beside the paper's procedure in plain PyTorch.

`python -m bench.search` is the real thing; this one is small enough to be run with the kernels' benchmarks.
"""

import pytest
from torch.utils.data import DataLoader, TensorDataset

import lpk
from lpk import presets
from lpk.run import Run
from tests.pooling import reference_search

CONTESTANTS = ("lpk", "lpk racing", "lpk exhaustive", "reference")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    pytest.importorskip("sklearn")
    with Run.create(tmp_path_factory.mktemp("search") / "run", presets.load("digits"), seed=0, device="cpu") as run:
        run.imp(progress=False)
        yield run


@pytest.mark.parametrize("procedure", CONTESTANTS)
def test_search(benchmark, run, procedure):
    tickets, data = run.tickets(), run.data
    target = len(tickets) // 2
    benchmark.group = f"search, digits, target {target} of {len(tickets)} tickets, {tickets[target].density:.0%} dense"
    if procedure == "reference":
        splits = [split.tensors() for split in (data.validation, data.train)]
        loaders = [DataLoader(TensorDataset(*split), batch_size=128) for split in splits]
        benchmark.pedantic(
            reference_search.pool, args=(tickets, target, run.model(), *loaders, lpk.COEFFICIENTS), rounds=1
        )
        return
    benchmark.pedantic(
        lpk.pool,
        args=(tickets, target),
        kwargs={
            "model": run.model(),
            "validation": data.validation.loader(256),
            "calibration": run.calibration().loader(256),
            "search": procedure.removeprefix("lpk").strip() or "bounded",
            "progress": False,
        },
        rounds=3,
        warmup_rounds=1,
    )
