"""All experiments of the paper once, on tickets that they share."""

from pathlib import Path

import pytest
import torch

from lpk import experiments, presets
from lpk.experiments.study import Study
from tests.conftest import TINY_PRESET
from tests.experiments.plain import SEEDS, Plain


@pytest.fixture(scope="package", autouse=True)
def threads():
    """One: for networks this small two take thrice as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def preset_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return path


@pytest.fixture(scope="package")
def study(preset_file, tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), presets.load(preset_file), SEEDS, progress=False)


@pytest.fixture(scope="package")
def done(study) -> Study:
    for name in experiments.chosen("all"):
        experiments.carry_out(name, study)
    return study


@pytest.fixture(scope="package")
def plain(done) -> Plain:
    return Plain(done, "seed-0")
