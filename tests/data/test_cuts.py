# ruff: noqa: RUF001  (Chinese punctuation is meant)
"""Text is cut only where that changes no token, whatever is in it and whoever cuts it."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data import corpus, writing
from llm.data.config import DataConfig
from llm.data.prepare import prepare
from llm.data.tokenizer import END_OF_TEXT, PUNCTUATION, SPACE, GPT2Tokenizer, build_tokenizer
from llm.data.writing import CHUNK, TokenWriter, after_mark, whole_marks
from llm.errors import Refused
from tests.data.tiktoken_reference import tiktoken_gpt2

quick = settings(max_examples=150, deadline=None, database=None)
# White space that Python and tiktoken agree on, and U+001C, on which they do not.
ATOMS = [
    "a", "b", "中", "文", "1", "²", "é", "🎭", "'", "'ll", "’", "!", "。", "，", "_", "<|", "|>",
    "\t", " ", "\n", "\r", "\xa0", "\u3000", "\u2028", "\x1c", "\x85",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from([*ATOMS, END_OF_TEXT]), max_size=60).map("".join)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    return tiktoken_gpt2(tmp_path_factory.mktemp("tiktoken"))


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


def written(
    path: Path, kind: str, text: str, size: int, chunk: int, special: bool
) -> tuple[list[int], int]:
    """The ids that a writer makes of ``text``, given ``size`` characters at a time; its bytes."""
    tokenizer = build_tokenizer(kind, "".join(sorted({*text, "\n"})))
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    with (
        pytest.MonkeyPatch.context() as patch,
        TokenWriter(path, tokenizer, special) as writer,
    ):
        patch.setattr(writing, "CHUNK", chunk)
        patch.setattr(writing, "LONGEST", 10**6)
        writer.wanted = chunk
        for piece in whole_marks(iter(pieces)) if special else pieces:
            writer.write(piece)
        writer.finish()
    return np.fromfile(path, "<u2").tolist(), writer.bytes


@quick
@given(TEXTS, st.integers(1, 9), st.integers(1, 40), st.booleans())
@example(f"ab{END_OF_TEXT}cd", 1, 5, True)
@example("a\tb\t\tc\xa0d", 1, 2, False)
@example("中文" * 20 + "。", 3, 4, False)  # no place to cut but one
@example(" " * 30 + "a", 3, 4, False)
def test_gpt2_tokens_in_chunks_are_those_of_the_text_in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, reference: tiktoken.Encoding,
    text: str, size: int, chunk: int, special: bool,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "chunks.bin"
    allowed = {END_OF_TEXT} if special else set()
    expected = reference.encode(text, allowed_special=allowed, disallowed_special=())
    count = len(text.encode()) - special * text.count(END_OF_TEXT) * len(END_OF_TEXT)
    assert written(path, "gpt2", text, size, chunk, special) == (expected, count)


@quick
@given(TEXTS, st.integers(1, 9), st.integers(1, 40), st.booleans())
def test_bytes_and_characters_in_chunks_are_those_of_the_text_in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int, chunk: int, special: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks.bin"
    parts = [list(part.encode()) for part in (text.split(END_OF_TEXT) if special else [text])]
    ids = [i for part in parts for i in (256, *part)][1:]
    assert written(path, "byte", text, size, chunk, special) == (ids, sum(map(len, parts)))
    alphabet = sorted({*text, "\n"})  # to which a mark is thirteen characters
    ids = [alphabet.index(c) for c in text]
    assert written(path, "char", text, size, chunk, special) == (ids, len(text.encode()))


@quick
@given(text=st.lists(st.sampled_from(ATOMS), max_size=30).map("".join), more=TEXTS)
def test_a_cut_leaves_the_tokens_of_both_sides_as_they_were_whatever_follows(
    reference: tiktoken.Encoding, gpt2: GPT2Tokenizer, text: str, more: str
) -> None:
    encode, cut = reference.encode_ordinary, gpt2.last_cut(text)
    assert 0 <= cut < max(1, len(text))
    assert encode(text[:cut]) + encode(text[cut:] + more) == encode(text + more)


def test_what_is_taken_for_white_space_or_punctuation_is_that_in_unicode() -> None:
    every = "".join(map(chr, range(0x110000)))
    for c in re.findall(f"[{PUNCTUATION}]", every):
        assert unicodedata.category(c)[0] in "PS", ascii(c)
    separators = {c for c in every if unicodedata.category(c)[0] == "Z"}
    assert set(re.findall(f"[{SPACE}]", every)) == separators | set("\t\n\v\f\r\x85")


def test_ordinary_text_is_cut_near_the_end_of_a_chunk(gpt2: GPT2Tokenizer) -> None:
    for text in (
        "What say you, my lord? ",
        "他说：“你好，世界。”于是大家都笑了。",
        "x = [1,2]\n\tif",
    ):
        assert gpt2.last_cut(text * 9) > len(text * 8)


def test_a_text_of_one_word_is_refused_for_gpt2_and_taken_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHUNK", 100)
    monkeypatch.setattr(writing, "LONGEST", 400)
    (tmp_path / "dna.txt").write_text("ACGT" * 400)
    config = DataConfig("dna", "text", str(tmp_path / "data"), str(tmp_path / "dna.txt"))
    config.val_fraction, config.tokenizer = 0.1, "gpt2"
    with pytest.raises(Refused, match=r"400 characters in a row .* data\.tokenizer=char or byte$"):
        prepare(config)
    assert not (tmp_path / "data").exists()
    config.tokenizer = "char"
    prepare(config)


@quick
@given(st.lists(st.sampled_from([END_OF_TEXT, "<|endof", "text|>", "<", "a"]), max_size=8))
def test_pieces_join_to_the_same_text_and_no_mark_reaches_across_two(words: list[str]) -> None:
    text = "".join(words)
    for size in (1, 5, 13, 100):
        cut = [text[start : start + size] for start in range(0, len(text), size)]
        pieces = list(whole_marks(iter(cut)))
        assert "".join(pieces) == text and "" not in pieces
        assert sum(piece.count(END_OF_TEXT) for piece in pieces) == text.count(END_OF_TEXT)


def test_a_cut_inside_a_mark_moves_to_its_end() -> None:
    text = f"ab{END_OF_TEXT}{END_OF_TEXT}c"
    moved = [after_mark(text, place) for place in range(len(text) + 1)]
    assert moved == [0, 1, 2, *[15] * 13, *[28] * 13, 29]


def prepared(folder: Path, text: str, **changes: Any) -> Callable[[str], list[int]]:
    """Ids by split of a text with ``data.allow_special=true``."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = DataConfig("t", "text", str(folder / "data"), str(folder / "text.txt"), "byte")
    values = {"val_fraction": 0.2, "allow_special": True} | changes
    made = prepare(replace(config, **values))
    return lambda split: np.fromfile(made / f"{split}.bin", "<u2").tolist()


@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_the_border_between_the_splits_cuts_no_mark(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE", piece)
    ids = prepared(tmp_path, "a " * 86 + END_OF_TEXT + "b " * 20)
    assert ids("train") == [*(b"a " * 86), 256]
    assert ids("val") == list(b"b " * 20)


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte"])
def test_the_border_between_two_chunks_cuts_no_mark(tmp_path: Path, tokenizer: str) -> None:
    text = "中" * (CHUNK - 5) + END_OF_TEXT + "文" * 50
    ids = prepared(tmp_path, text, tokenizer=tokenizer, val_fraction=1e-6)
    end = {"gpt2": 50_256, "byte": 256}[tokenizer]
    assert ids("train").count(end) == 1
    assert end not in ids("val")


def test_a_split_of_nothing_but_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data\.val_fraction leaves val no text: take another"):
        prepared(tmp_path, "some text" + END_OF_TEXT * 3, val_fraction=0.3)
