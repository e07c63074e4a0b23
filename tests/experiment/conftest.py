"""The ledger of these tests is written into a temporary folder."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cwd(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    return folder
