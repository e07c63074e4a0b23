"""A run to tamper with, and commands to try on it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import here
from tests.conftest import PLAY, TINY_RUN
from tests.security.forked import Commands, commands

TEXT = ["data=text", "data.path=play.txt", "data.tokenizer=char"]


@pytest.fixture(scope="session")
def forked() -> Iterator[Commands]:
    if sys.platform != "linux":
        pytest.skip("only Linux limits the memory that a process maps")
    with commands() as started:
        yield started


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its dataset and a run with one checkpoint to continue from."""
    place = tmp_path_factory.mktemp("trained")
    (place / "play.txt").write_text(PLAY, encoding="utf-8")
    done = here("train", *TEXT, *TINY_RUN, "trainer.keep_last=1", "run.name=run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of the folder to tamper with."""
    return Path(shutil.copytree(trained, tmp_path / "place", symlinks=True))
