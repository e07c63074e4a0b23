"""Text is read as Python reads it, in pieces, and refused where it is not text."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data import corpus
from llm.data.corpus import PIECE, Corpus, Document, clean_play, read_corpus, source_digest
from llm.errors import Refused

quick = settings(max_examples=150, deadline=None, database=None)
# Bytes of one to four byte characters, line ends, byte order marks; and bytes that are no UTF-8.
GOOD = ["a", "é", "€", "🎭", "\r", "\n", "\r\n", "\x85", "\u2028", "\ufeff"]
BAD = [b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x8e", b"\xc0\xaf", b"\xed\xa0\x80"]
TINY_SHAKESPEARE_PLAYS = {
    "coriolanus", "richard-iii", "richard-ii", "henry-vi-part-3", "romeo-and-juliet",
    "a-winter-s-tale", "measure-for-measure", "the-taming-of-the-shrew", "the-tempest",
}  # fmt: skip


@pytest.fixture(scope="module")
def plays() -> Corpus:
    return read_corpus("shakespeare")


def text_of(document: Document) -> str:
    return "".join(document.pieces())


def as_python_reads_it(path: Path) -> str:
    with open(path, newline=None, encoding="utf-8-sig") as file:
        return file.read()


def test_shakespeare_is_38_plays_of_known_text(plays: Corpus) -> None:
    text = "\n".join(text_of(play) for play in plays.documents)
    assert len(plays.documents) == len({play.name for play in plays.documents}) == 38
    assert len(text) == 4_787_885
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "c021afe8179620651bdea1ef64e3ebacda6edbbf7c681d3be167060d72a22692"
    )
    assert len(set(text)) == 77  # conf/data/shakespeare_char.yaml


def test_about_a_tenth_of_shakespeare_is_held_out_in_whole_plays(plays: Corpus) -> None:
    held_out = [play for play in plays.documents if play.held_out]
    share = sum(play.size() for play in held_out) / plays.size()
    assert len(held_out) == 4
    assert 0.09 < share < 0.11


def test_no_play_of_tiny_shakespeare_is_held_out(plays: Corpus) -> None:
    assert {play.name for play in plays.documents} > TINY_SHAKESPEARE_PLAYS
    assert not TINY_SHAKESPEARE_PLAYS & {play.name for play in plays.documents if play.held_out}


def test_a_play_is_speakers_and_lines_without_headings_and_stage_directions() -> None:
    markdown = (
        "# HAMLET\r\n\r\n## ACT I\r\n\r\n**BERNARDO** \nWho's there? [Aside]_ Ho!\n\n"
        "_Enter HAMLET\nand others_\n\n**FRANCISCO**\n\n**GHOST**\n  Mark me.\n\n\n\nI will_.\n"
    )
    cleaned = "BERNARDO:\nWho's there?  Ho!\n\nGHOST:\nMark me.\n\nI will.\n"
    assert clean_play(markdown) == cleaned


def test_the_digest_of_shakespeare_is_known_without_fetching_it(
    plays: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path))
    assert source_digest("shakespeare", None) == plays.sha256
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["shakespeare", "tinyshakespeare"])
def test_other_text_is_not_taken_for_shakespeare(name: str, text_file: Path) -> None:
    for read in (read_corpus, source_digest):
        with pytest.raises(Refused, match="use data=text") as refusal:
            read(name, str(text_file))
        assert str(text_file) in str(refusal.value)


@quick
@given(st.lists(st.sampled_from(GOOD), max_size=12).map("".join), st.integers(1, 5))
@example("\ufeff\ufeffa\r", 1)
@example("a\r\nb\r", 2)
def test_pieces_of_any_size_join_to_what_python_reads(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode())
    expected = as_python_reads_it(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        assert text_of(Document("file", path)) == expected
        assert text_of(Document("memory", text.encode())) == expected


@quick
@given(
    st.lists(st.sampled_from([c.encode() for c in GOOD]), max_size=8).map(b"".join),
    st.sampled_from(BAD),
    st.lists(st.sampled_from([*BAD, b"a", "é".encode()]), max_size=3).map(b"".join),
    st.integers(1, 5),
)
def test_the_offset_of_the_first_byte_that_is_not_utf8_is_exact_for_pieces_of_any_size(
    before: bytes, bad: bytes, after: bytes, size: int
) -> None:
    raw = before + bad + after
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        expected = f"notes.txt is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}"
    else:
        return  # e.g. c3 and a continuation byte after all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        with pytest.raises(Refused) as refusal:
            text_of(Document("notes.txt", raw))
    assert str(refusal.value).partition(";")[0] == expected  # it may look like another encoding


@pytest.mark.parametrize(
    ("raw", "offset"),
    [
        (b"ab\xffcd", 2),
        (b"a" * (PIECE + 10) + b"\xff", PIECE + 10),  # beyond the first piece
        (b"a" * (PIECE - 1) + b"\xe2\x82", PIECE - 1),  # cut off, across the boundary
        (b"a" * (PIECE - 1) + b"\xe2(", PIECE - 1),  # damaged, across the boundary
        (b"a" * 3 * PIECE + b"\xf0\x9f\x8e", 3 * PIECE),  # cut off at the very end
    ],
    ids=["first piece", "beyond", "cut off across", "damaged across", "cut off at the end"],
)
def test_a_bad_byte_is_named_with_its_offset_wherever_it_lies(
    tmp_path: Path, raw: bytes, offset: int
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(raw)
    with pytest.raises(Refused, match=rf"byte {raw[offset]:#04x} at offset {offset}$") as refusal:
        text_of(read_corpus("text", str(path)).documents[0])
    assert str(path) in str(refusal.value)


def test_a_character_across_the_boundary_of_a_piece_stays_whole(tmp_path: Path) -> None:
    path, text = tmp_path / "long.txt", "a" * (PIECE - 2) + "🎭" + "b" * PIECE + "\r\n"
    path.write_bytes(text.encode())
    pieces = list(read_corpus("text", str(path)).documents[0].pieces())
    assert len(pieces) > 2
    assert "".join(pieces) == as_python_reads_it(path)


def test_a_byte_order_mark_and_carriage_returns_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert text_of(read_corpus("text", str(path)).documents[0]) == "one\ntwo\nthree\n"


def test_one_file_is_one_document_named_and_digested(text_file: Path) -> None:
    found = read_corpus("text", str(text_file))
    assert [document.name for document in found.documents] == [str(text_file)]
    assert found.size() == text_file.stat().st_size
    assert found.sha256 == hashlib.sha256(text_file.read_bytes()).hexdigest()
    assert source_digest("text", str(text_file)) == found.sha256


def make_folder(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return str(root)


def test_a_folder_is_its_files_in_order_without_the_hidden_ones(tmp_path: Path) -> None:
    files = {"b.txt": "b", "a/z.txt": "az", "a/b/c": "abc", "C.md": "C", "a.txt": "a"}
    hidden = {".git/config": "x", "a/.DS_Store": "x", ".b.txt.swp": "x"}
    path = make_folder(tmp_path / ".texts", files | hidden)  # it may be hidden itself
    found = read_corpus("text", path)
    assert [text_of(document) for document in found.documents] == ["C", "abc", "az", "a", "b"]


def test_the_digest_of_a_folder_changes_with_contents_and_names_but_not_with_its_place(
    tmp_path: Path,
) -> None:
    digests = [
        source_digest("text", make_folder(tmp_path / str(number), files))
        for number, files in enumerate(
            [{"a": "1", "b": "2"}, {"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "c": "2"}]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_missing_path_is_refused() -> None:
    with pytest.raises(Refused, match=r"data=text needs data\.path"):
        read_corpus("text", None)


def test_what_cannot_be_read_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    make_folder(tmp_path, {"hidden/.only": "x", "empties/a": "", "empties/b": ""})
    (tmp_path / "folder").mkdir()
    for path, reason in {
        tmp_path / "nothing.txt": "does not exist",
        tmp_path / "empty.txt": "is empty",
        tmp_path / "empties": "is empty",
        tmp_path / "folder": "is a folder without files",
        tmp_path / "hidden": "is a folder without files",
        Path("/dev/null"): "is not a file",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
    }.items():
        with pytest.raises(Refused) as refusal:
            read_corpus("text", str(path))
        assert str(refusal.value) == f"data.path={path} {reason}"


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "texts", tmp_path / "elsewhere.txt"
    path = make_folder(root, {"a.txt": "a", "deep/b.txt": "b"})
    elsewhere.write_text("outside")
    (root / "c.txt").symlink_to(elsewhere)
    (root / ".hidden").symlink_to(tmp_path / "none")
    assert [text_of(d) for d in read_corpus("text", path).documents] == ["a", "outside", "b"]
    (tmp_path / "link").symlink_to(root)
    assert source_digest("text", str(tmp_path / "link")) == source_digest("text", path)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("none", "is a broken link: mend it or remove it"),
        ("texts/deep/link", "is a broken link"),  # it leads to itself
        ("texts", "is a link to a folder, which is not followed: replace it"),
        ("/dev/null", "is not a file: remove it from data.path="),
    ],
)
def test_what_would_be_missed_without_a_word_is_refused_by_name(
    tmp_path: Path, target: str, reason: str
) -> None:
    path = make_folder(tmp_path / "texts", {"a.txt": "a", "deep/b.txt": "b"})
    (tmp_path / "texts/deep/link").symlink_to(tmp_path / target)
    for read in (read_corpus, source_digest):
        with pytest.raises(Refused) as refusal:
            read("text", path)
        assert str(refusal.value).startswith(f"{path}/deep/link {reason}")


def test_a_folder_that_may_not_be_listed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(tmp_path / "texts", {"a.txt": "a", "deep/b.txt": "b"})
    listed = os.scandir

    def scandir(folder: str) -> Any:
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Refused) as refusal:
        read_corpus("text", path)
    assert str(refusal.value) == f"data.path={path} cannot be read: Permission denied ({path}/deep)"


def test_a_tilde_is_the_home_or_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    make_folder(home, {"a.txt": "at home"})
    make_folder(here, {"~notes.txt": "a note", "~": "just so"})
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for path, text in {"~/a.txt": "at home", "~notes.txt": "a note", "~": "just so"}.items():
        assert [text_of(d) for d in read_corpus("text", path).documents] == [text]
    for path in ("~nosuchuser/x", "~other.txt"):
        for name in ("text", "tinyshakespeare"):
            with pytest.raises(Refused, match=rf"^data\.path={path} does not exist$"):
                read_corpus(name, path)
