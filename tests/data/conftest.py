"""No data set is at hand but what a test writes."""

from pathlib import Path

import pytest

from lpk.data import sets as data


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder, no LPK_DATA, no Debian package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LPK_DATA", raising=False)
    monkeypatch.setattr(data, "_DEBIAN", tmp_path / "debian")
