"""Written tokenizers give the ids of ours in the library ``tokenizers``, and come back."""

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
OURS = {
    "gpt2": GPT2Tokenizer(), "byte": ByteTokenizer(),
    "char": CharTokenizer("".join(sorted(ALPHABET))),
}  # fmt: skip
THEIRS = {kind: Library.from_str(json.dumps(tokenizer_json(one))) for kind, one in OURS.items()}


@pytest.mark.parametrize("kind", OURS)
@settings(max_examples=50)
@given(text=st.text(ALPHABET, max_size=40))
@example(text="  two  spaces, 10 000\n\n\t'll")
def test_the_library_gives_the_same_ids_and_decodes_them(kind: str, text: str) -> None:
    text = "".join(letter for letter in text if kind != "char" or letter in ALPHABET)
    ids = OURS[kind].encode(text).tolist()
    assert THEIRS[kind].encode(text).ids == ids
    assert THEIRS[kind].decode(ids) == text


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_only_an_unchanged_tokenizer_is_recognized_as_ours(kind: str) -> None:
    values = tokenizer_json(OURS[kind])
    found = our_tokenizer(json.loads(json.dumps(values)))
    assert found is not None and found.digest() == OURS[kind].digest()
    changed: list[dict[str, Any]] = [
        values | {"normalizer": {"type": "NFC"}}, values | {"model": None},
        values | {"model": values["model"] | {"vocab": {}}}, {},
    ]  # fmt: skip
    assert [our_tokenizer(one) for one in changed] == [None] * 4


def test_only_a_tokenizer_with_an_end_names_it_in_the_configuration() -> None:
    def names(tokenizer: Tokenizer) -> set[str]:
        return {key for key in tokenizer_config(tokenizer, 64) if key.endswith("_token")}

    assert end_text(OURS["char"]) is None
    assert end_text(OURS["gpt2"]) == end_text(OURS["byte"]) == "<|endoftext|>"
    assert names(OURS["char"]) == {"add_bos_token"}
    assert names(OURS["byte"]) == {"add_bos_token", "bos_token", "eos_token"}
    assert tokenizer_config(OURS["gpt2"], 64)["unk_token"] == "<|endoftext|>"
    assert spelled(b" a\n\xff") == "ĠaĊÿ"
