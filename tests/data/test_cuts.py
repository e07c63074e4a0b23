# ruff: noqa: RUF001  (Chinese punctuation is meant)
"""Text is cut into pieces only where this changes no token."""

import re
import unicodedata
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
from llm.data.tokenizer import END_OF_TEXT, PUNCTUATION, SPACE, GPT2Tokenizer
from llm.errors import Refused
from tests.data.tiktoken_reference import tiktoken_gpt2

quick = settings(max_examples=100, deadline=None, database=None)
# White space that Python and tiktoken agree on, and U+001C, on which they do not.
ATOMS = [
    "a", "b", "中", "文", "1", "²", "é", "🎭", "'", "'ll", "’", "!", "。", "，", "_", "<|", "|>",
    "\t", " ", "\n", "\xa0", "\u3000", "\u2028", "\x1c", "\x85",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from([*ATOMS, END_OF_TEXT]), max_size=60).map("".join)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    return tiktoken_gpt2(tmp_path_factory.mktemp("tiktoken"))


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


def prepared(folder: Path, text: str, **changes: Any) -> dict[str, list[int]]:
    """Ids by split of a text with ``data.allow_special=true``."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = DataConfig("t", "text", str(folder / "data"), str(folder / "text.txt"), "byte")
    made = prepare(replace(config, **{"val_fraction": 0.2, "allow_special": True} | changes))
    return {split: np.fromfile(made / f"{split}.bin", "<u2").tolist() for split in ("train", "val")}


@quick
@given(TEXTS, st.floats(0.01, 0.99), st.integers(1, 9), st.integers(1, 40), st.booleans())
@example(f"ab{END_OF_TEXT}cd", 0.5, 1, 5, True)
@example("a\tb\t\tc\xa0d", 0.1, 1, 2, False)
@example("中文" * 20 + "。", 0.1, 3, 4, False)  # one place to cut
@example(" " * 30 + "a", 0.5, 3, 4, False)
@pytest.mark.parametrize("tokenizer", ["gpt2", "byte", "char"])
def test_tokens_do_not_depend_on_the_pieces_in_which_text_is_read_and_written(
    tmp_path_factory: pytest.TempPathFactory, reference: tiktoken.Encoding, tokenizer: str,
    text: str, fraction: float, piece: int, chunk: int, special: bool,
) -> None:  # fmt: skip
    border = int(len(text) * (1 - fraction))
    if special and tokenizer != "char":  # a mark across the border belongs to the training text
        marks = [match.span() for match in re.finditer(re.escape(END_OF_TEXT), text)]
        border = next((end for start, end in marks if start < border < end), border)
    alphabet, mark = sorted(set(text)), {END_OF_TEXT} if special else set()
    encode = {
        "gpt2": lambda part: reference.encode(part, allowed_special=mark, disallowed_special=()),
        "byte": lambda part: as_bytes(part, special),
        "char": lambda part: [alphabet.index(c) for c in part],
    }[tokenizer]
    folder = tmp_path_factory.mktemp("cuts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", piece)
        patch.setattr(writing, "CHUNK", chunk)
        options = {"tokenizer": tokenizer, "val_fraction": fraction, "allow_special": special}
        try:
            made = prepared(folder, text, **options)
        except Refused as refusal:
            assert re.search("is empty|no text", str(refusal))
            return
    assert made == {"train": encode(text[:border]), "val": encode(text[border:])}


def as_bytes(text: str, special: bool) -> list[int]:
    parts = text.split(END_OF_TEXT) if special else [text]
    return [i for part in parts for i in (256, *part.encode())][1:]


@quick
@given(text=st.lists(st.sampled_from(ATOMS), max_size=30).map("".join), more=TEXTS)
def test_a_cut_changes_no_token_on_either_side_whatever_follows(
    reference: tiktoken.Encoding, gpt2: GPT2Tokenizer, text: str, more: str
) -> None:
    encode, cut = reference.encode_ordinary, gpt2.last_cut(text)
    assert 0 <= cut < max(1, len(text))
    assert encode(text[:cut]) + encode(text[cut:] + more) == encode(text + more)


def test_the_sets_of_white_space_and_punctuation_agree_with_unicode() -> None:
    every = "".join(map(chr, range(0x110000)))
    for c in re.findall(f"[{PUNCTUATION}]", every):
        assert unicodedata.category(c)[0] in "PS", ascii(c)
    separators = {c for c in every if unicodedata.category(c)[0] == "Z"}
    assert set(re.findall(f"[{SPACE}]", every)) == separators | set("\t\n\v\f\r\x85")


def test_ordinary_text_is_cut_near_its_end(gpt2: GPT2Tokenizer) -> None:
    for text in (
        "What say you, my lord? ",
        "他说：“你好，世界。”于是大家都笑了。",
        "x = [1,2]\n\tif",
    ):
        assert gpt2.last_cut(text * 9) > len(text * 8)


def test_a_text_of_one_word_is_refused_for_gpt2_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHUNK", 100)
    monkeypatch.setattr(writing, "LONGEST", 400)
    with pytest.raises(Refused, match=r"400 characters in a row .* data\.tokenizer=char or byte$"):
        prepared(tmp_path, "ACGT" * 400, tokenizer="gpt2")
    assert not (tmp_path / "data").exists()
    assert len(prepared(tmp_path, "ACGT" * 400, tokenizer="char")["train"]) == 1280


def test_a_split_with_end_of_text_marks_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data\.val_fraction leaves val no text: take another"):
        prepared(tmp_path, "some text" + END_OF_TEXT * 3, val_fraction=0.3)
