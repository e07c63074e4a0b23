"""Text is read in pieces, as Python would read it, and refused if it is not text."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data import corpus
from llm.data.assets import clean_play
from llm.data.corpus import PIECE, Document, read_corpus
from llm.errors import Refused

quick = settings(max_examples=150, deadline=None, database=None)
# Bytes of one to four byte characters, line ends, byte order marks; and bytes that are not UTF-8.
GOOD = ["a", "é", "€", "🎭", "\r", "\n", "\r\n", "\x85", "\u2028", "\ufeff"]
BAD = [b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x8e", b"\xc0\xaf", b"\xed\xa0\x80"]
TINY_SHAKESPEARE_PLAYS = {
    "coriolanus", "richard-iii", "richard-ii", "henry-vi-part-3", "romeo-and-juliet",
    "a-winter-s-tale", "measure-for-measure", "the-taming-of-the-shrew", "the-tempest",
}  # fmt: skip


@pytest.fixture(scope="module")
def plays() -> list[Document]:
    return read_corpus("shakespeare").load()


def text_of(document: Document) -> str:
    return "".join(document.pieces())


def texts_of(path: str) -> list[str]:
    return [text_of(document) for document in read_corpus("text", path).load()]


def refusal_of(path: str | Path, name: str = "text") -> str:
    with pytest.raises(Refused) as refusal:
        read_corpus(name, str(path))
    return str(refusal.value)


def test_shakespeare_is_38_plays_of_known_text(plays: list[Document]) -> None:
    text = "\n".join(map(text_of, plays))
    assert len({play.name for play in plays}) == 38
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "c021afe8179620651bdea1ef64e3ebacda6edbbf7c681d3be167060d72a22692"
    )
    assert len(set(text)) == 77  # conf/data/shakespeare_char.yaml


def test_whole_plays_that_tiny_shakespeare_lacks_a_tenth_of_the_text_are_held_out(
    plays: list[Document],
) -> None:
    held_out = [play for play in plays if play.held_out]
    share = sum(play.size() for play in held_out) / sum(play.size() for play in plays)
    assert len(held_out) == 4
    assert 0.09 < share < 0.11
    assert {play.name for play in plays} > TINY_SHAKESPEARE_PLAYS
    assert not TINY_SHAKESPEARE_PLAYS & {play.name for play in held_out}


def test_a_play_is_speakers_and_lines_without_headings_and_stage_directions() -> None:
    markdown = (
        "# HAMLET\r\n\r\n## ACT I\r\n\r\n**BERNARDO** \nWho's there? [Aside]_ Ho!\n\n"
        "_Enter HAMLET\nand others_\n\n**FRANCISCO**\n\n**GHOST**\n  Mark me.\n\n\n\nI will_.\n"
    )
    cleaned = "BERNARDO:\nWho's there?  Ho!\n\nGHOST:\nMark me.\n\nI will.\n"
    assert clean_play(markdown) == cleaned


def test_the_digest_of_a_built_in_text_is_known_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path))
    assert len({read_corpus(name).sha256 for name in ("shakespeare", "tinyshakespeare")}) == 2
    assert not list(tmp_path.iterdir())


@quick
@given(
    st.lists(st.sampled_from([c.encode() for c in GOOD]), max_size=8).map(b"".join),
    st.lists(st.sampled_from([*BAD, b"a", "é".encode()]), max_size=4).map(b"".join),
    st.integers(1, 5),
)
@example(b"\xef\xbb\xbf\xef\xbb\xbfa\r", b"", 1)
@example(b"\xef\xbb\xbfa\r\nb\r", b"\xe2\x82", 2)
def test_pieces_of_any_size_are_what_python_reads_up_to_the_first_byte_that_is_not_utf8(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, bad: bytes, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(good + bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        for document in (Document("notes.txt", path), Document("notes.txt", good + bad)):
            try:
                (good + bad).decode("utf-8")
            except UnicodeDecodeError as error:
                byte, offset = (good + bad)[error.start], error.start
                with pytest.raises(Refused) as refusal:
                    text_of(document)
                wanted = f"notes.txt is not UTF-8: byte {byte:#04x} at offset {offset}"
                assert str(refusal.value).partition(";")[0] == wanted
            else:
                assert text_of(document) == path.read_text(encoding="utf-8-sig")


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    path, text = tmp_path / "long.txt", "a" * (PIECE - 2) + "🎭" + "b" * PIECE + "\n"
    path.write_bytes(text.encode())
    pieces = list(Document("long.txt", path).pieces())
    assert len(pieces) == 3 and "".join(pieces) == text


def make_folder(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return str(root)


def test_a_folder_is_its_files_in_order_without_the_hidden_ones(tmp_path: Path) -> None:
    files = {"b.txt": "b", "a/z.txt": "az", "a/b/c": "abc", "C.md": "C", "a.txt": "a"}
    hidden = {".git/config": "x", "a/.DS_Store": "x", ".b.txt.swp": "x"}
    path = make_folder(tmp_path / ".texts", files | hidden)  # the folder itself may be hidden
    assert texts_of(path) == ["C", "abc", "az", "a", "b"]


def test_the_digest_of_a_folder_changes_with_contents_and_names_only(tmp_path: Path) -> None:
    def digest(name: str, files: dict[str, str]) -> str:
        return read_corpus("text", make_folder(tmp_path / name, files)).sha256

    first = digest("1", {"a": "1", "b": "2"})
    assert digest("2", {"a": "1", "b": "2"}) == first
    assert digest("3", {"a": "1", "b": "3"}) != first
    assert digest("4", {"a": "1", "c": "2"}) != first


def test_unreadable_paths_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    make_folder(tmp_path, {"hidden/.only": "x", "empties/a": "", "empties/b": ""})
    for path, reason in {
        tmp_path / "nothing.txt": "does not exist",
        tmp_path / "empty.txt": "is empty",
        tmp_path / "empties": "is empty",
        tmp_path / "hidden": "is a folder without files",
        Path("/dev/null"): "is not a file",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
    }.items():
        assert refusal_of(path) == f"data.path={path} {reason}"


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "texts", tmp_path / "elsewhere.txt"
    path = make_folder(root, {"a.txt": "a", "deep/b.txt": "b"})
    elsewhere.write_text("outside")
    (root / "c.txt").symlink_to(elsewhere)
    (root / ".hidden").symlink_to(tmp_path / "none")
    (tmp_path / "link").symlink_to(root)
    assert texts_of(path) == texts_of(str(tmp_path / "link")) == ["a", "outside", "b"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("none", "is a broken link: remove it from data.path="),
        ("texts/deep/link", "is a broken link"),  # to itself
        ("texts", "is a link to a folder, which is not followed: replace it"),
        ("/dev/null", "is not a file: remove it from data.path="),
    ],
)
def test_files_that_would_be_left_out_silently_are_refused_by_name(
    tmp_path: Path, target: str, reason: str
) -> None:
    path = make_folder(tmp_path / "texts", {"a.txt": "a", "deep/b.txt": "b"})
    (tmp_path / "texts/deep/link").symlink_to(tmp_path / target)
    assert refusal_of(path).startswith(f"{path}/deep/link {reason}")


def test_a_folder_that_cannot_be_listed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(tmp_path / "texts", {"a.txt": "a", "deep/b.txt": "b"})
    listed = os.scandir

    def scandir(folder: str) -> Any:
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    wanted = f"data.path={path} cannot be read: Permission denied ({path}/deep)"
    assert refusal_of(path) == wanted


def test_a_tilde_is_the_home_or_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    make_folder(home, {"a.txt": "at home"})
    make_folder(here, {"~notes.txt": "a note", "~": "just so"})
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for path, text in {"~/a.txt": "at home", "~notes.txt": "a note", "~": "just so"}.items():
        assert texts_of(path) == [text]
    for path in ("~nosuchuser/x", "~other.txt"):
        for name in ("text", "tinyshakespeare"):
            assert refusal_of(path, name) == f"data.path={path} does not exist"
