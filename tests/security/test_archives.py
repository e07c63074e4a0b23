"""The two wheels with data are read in memory and never unpacked."""

import zipfile
from pathlib import Path

import pytest

from llm.data import assets
from tests.command_line import listing


def test_a_wheel_is_read_and_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("extract", "extractall"):
        monkeypatch.setattr(zipfile.ZipFile, name, lambda *_: pytest.fail("it was unpacked"))
    assets.gpt2_merges()  # both are in the cache after this
    assets.shakespeare_plays()
    before = listing(assets.cache_folder())
    assert len(assets.gpt2_merges()) == 456_318
    assert len(assets.shakespeare_plays()) == 38
    assert listing(assets.cache_folder()) == before
    assert not listing(tmp_path)
