"""Written tokenizers give the ids of ours in the library ``tokenizers``, and come back."""

import functools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.interchange.tokenizer_writing import (
    end_text,
    our_tokenizer,
    spelled,
    tokenizer_config,
    tokenizer_json,
)

ALPHABET = "\t\n abcXYZ019.'<|>éЖ你🙂"
KINDS = ["gpt2", "byte", "char"]


@functools.cache
def ours(kind: str) -> Tokenizer:
    if kind == "char":
        return CharTokenizer("".join(sorted(ALPHABET)))
    return GPT2Tokenizer() if kind == "gpt2" else ByteTokenizer()


@functools.cache
def theirs(kind: str) -> Library:
    return Library.from_str(json.dumps(tokenizer_json(ours(kind))))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(text=st.text(ALPHABET, max_size=40))
@example(text="  two  spaces, 10 000\n\n\t'll")
def test_the_library_gives_the_same_ids_and_decodes_them(kind: str, text: str) -> None:
    text = "".join(letter for letter in text if kind != "char" or letter in ALPHABET)
    ids = ours(kind).encode(text).tolist()
    assert theirs(kind).encode(text).ids == ids
    assert theirs(kind).decode(ids) == text


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_only_an_unchanged_tokenizer_is_recognized_as_ours(kind: str) -> None:
    values = tokenizer_json(ours(kind))
    found = our_tokenizer(json.loads(json.dumps(values)))
    assert found is not None and found.digest() == ours(kind).digest()
    changed: list[dict[str, Any]] = [
        values | {"normalizer": {"type": "NFC"}}, values | {"model": None},
        values | {"model": values["model"] | {"vocab": {}}}, {},
    ]  # fmt: skip
    assert [our_tokenizer(one) for one in changed] == [None] * 4


def test_only_a_tokenizer_with_an_end_names_it_in_the_configuration() -> None:
    def names(tokenizer: Tokenizer) -> set[str]:
        return {key for key in tokenizer_config(tokenizer, 64) if key.endswith("_token")}

    assert end_text(ours("char")) is None
    assert end_text(ours("gpt2")) == end_text(ours("byte")) == "<|endoftext|>"
    assert names(ours("char")) == {"add_bos_token"}
    assert names(ours("byte")) == {"add_bos_token", "bos_token", "eos_token"}
    assert tokenizer_config(ours("gpt2"), 64)["unk_token"] == "<|endoftext|>"
    assert spelled(b" a\n\xff") == "ĠaĊÿ"
