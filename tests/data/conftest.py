"""A prepared folder to damage, and two plays instead of 38."""

import shutil
from pathlib import Path

import pytest

from llm.data import assets
from llm.data.config import DataConfig
from llm.data.dataset import Dataset


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy of the prepared folder, to be damaged."""
    return Path(shutil.copytree(dataset.folder, tmp_path / "play"))


@pytest.fixture
def plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """data=shakespeare by characters, with two short plays instead of 38."""
    two = {"hamlet": "HAMLET:\nTo be.\n", "macbeth": "MACBETH:\nOut, out!\n"}
    monkeypatch.setattr(assets, "shakespeare_plays", lambda: two)
    return DataConfig(name="plays", dir=str(tmp_path / "data"))
