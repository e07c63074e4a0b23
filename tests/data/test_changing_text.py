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


def add_a_character(path: Path) -> None:
    path.write_text(TEXT + "ü")


def shorten(path: Path) -> None:
    os.truncate(path, len(TEXT) // 2)


def keep_the_size(path: Path) -> None:
    path.write_text(TEXT.swapcase())


def replace(path: Path) -> None:
    path.with_name("new").write_text(TEXT.replace("lord", "lady"))
    os.replace(path.with_name("new"), path)


def damage(path: Path) -> None:
    path.write_bytes(TEXT.encode()[:-1] + b"\xff")


def remove(path: Path) -> None:
    path.unlink()


def add_a_file(path: Path) -> None:
    path.with_name("c.txt").write_text(TEXT)


CHANGES = [
    append, add_a_character, shorten, keep_the_size, replace, damage, remove, add_a_file,
]  # fmt: skip


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("at", [0.1, 0.6, 0.9], ids=["first pass", "second pass", "end"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_text_that_changes_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None], at: float, tokenizer: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(corpus, "PIECE", 1000)
    folder, data = tmp_path / "texts", tmp_path / "data"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(TEXT)
    config = DataConfig("t", "text", str(data), str(folder), tokenizer, val_fraction=0.1)
    waiting = [change]

    def on_progress(done: int, total: int) -> None:
        if done >= at * total and waiting:
            waiting.pop()(folder / "b.txt")

    with pytest.raises(Refused) as refusal:
        prepare(config, on_progress)
    assert str(refusal.value) == (
        f"data.path={folder} changed while it was read: try again once nothing writes to it"
    )
    assert not data.exists()
    (folder / "b.txt").write_text(TEXT)
    prepare(config)
