"""A text that changes while it is prepared is refused, and never stored as the old text."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.data import corpus
from llm.data.config import DataConfig
from llm.data.prepare import prepare
from llm.errors import Refused

TEXT = "What say you, my lord?\n" * 200


def append(path: Path) -> None:
    path.write_text(TEXT + "And so on.\n")


def shorten(path: Path) -> None:
    os.truncate(path, len(TEXT) // 2)


def keep_the_size(path: Path) -> None:
    path.write_text(TEXT.swapcase())


def remove(path: Path) -> None:
    path.unlink()


def add_a_file(path: Path) -> None:
    path.with_name("c.txt").write_text(TEXT)


@pytest.mark.parametrize("at", [0.1, 0.6, 0.9], ids=["first pass", "second pass", "end"])
@pytest.mark.parametrize("change", [append, shorten, keep_the_size, remove, add_a_file])
def test_a_text_that_changes_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], at: float
) -> None:
    monkeypatch.setattr(corpus, "PIECE", 1000)
    folder, data = tmp_path / "texts", tmp_path / "data"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(TEXT)
    config = DataConfig("t", "text", str(data), str(folder), "char", val_fraction=0.1)
    changes = [change]

    def on_progress(done: int, total: int) -> None:
        if done >= at * total and changes:
            changes.pop()(folder / "b.txt")

    with pytest.raises(Refused) as refusal:
        prepare(config, on_progress)
    assert str(refusal.value) == (
        f"data.path={folder} changed while it was read: try again once nothing writes to it"
    )
    assert not data.exists()
    (folder / "b.txt").write_text(TEXT)
    prepare(config)
