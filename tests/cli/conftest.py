"""A run of `lpk demo` on a tiny preset of scikit-learn's digits, which tests leave as it is."""

from pathlib import Path

import pytest

from tests.command import here
from tests.conftest import TINY_PRESET


@pytest.fixture(scope="session")
def preset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return path


@pytest.fixture(scope="session")
def run(preset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    status, _, err = here("demo", path, "--preset", preset, "--seed", 4, "--threads", 1)
    assert status == 0, err
    return path
