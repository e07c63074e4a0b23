"""What tests of damage need: a prepared folder of their own."""

import shutil
from pathlib import Path

import pytest

from llm.data.dataset import Dataset


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy of the prepared folder, to be damaged."""
    return Path(shutil.copytree(dataset.folder, tmp_path / "play"))
