"""Every tokenizer decodes what it encodes, and stays the same when it is saved and read."""

import json
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import assets
from llm.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    build_tokenizer,
    from_json,
)
from llm.errors import Refused
from tests.data.tiktoken_reference import tiktoken_gpt2

quick = settings(max_examples=60, deadline=None, database=None)
# Words, numbers, contractions, every kind of white space and characters of two to four bytes.
PROSE = st.lists(
    st.sampled_from(["he", "I'll", "'tis", "42", "...", "é", "日本", "🎭", "\u0301", "\x1c"])
    | st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\u3000"])
    | st.text(max_size=4)
).map("".join)


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    return tiktoken_gpt2(tmp_path_factory.mktemp("tiktoken"))


def every_tokenizer() -> list[Tokenizer]:
    return [GPT2Tokenizer(), CharTokenizer("\n ab€😀"), ByteTokenizer()]


@quick
@given(text=PROSE)
def test_gpt2_ids_are_those_of_tiktoken(
    gpt2: GPT2Tokenizer, reference: tiktoken.Encoding, text: str
) -> None:
    assert gpt2.encode(text).tolist() == reference.encode_ordinary(text)


def test_every_gpt2_id_stands_for_the_same_bytes_as_in_tiktoken(
    gpt2: GPT2Tokenizer, reference: tiktoken.Encoding
) -> None:
    ids = range(gpt2.vocab_size)
    assert [gpt2.token_bytes(i) for i in ids] == [
        reference.decode_single_token_bytes(i) for i in ids
    ]


def test_an_end_of_text_is_one_id_only_if_asked_for(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.encode_special(END_OF_TEXT).tolist() == [50_256] == [gpt2.end_of_text]
    assert 50_256 not in gpt2.encode(END_OF_TEXT)
    byte, text = ByteTokenizer(), f"a{END_OF_TEXT}é{END_OF_TEXT}"
    assert byte.encode_special(text).tolist() == [97, 256, 0xC3, 0xA9, 256]
    assert byte.encode(text).tolist() == list(text.encode())
    assert byte.decode([97, 256]) == f"a{END_OF_TEXT}"


@quick
@given(text=st.text())
def test_gpt2_and_bytes_give_any_text_back(gpt2: GPT2Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        assert tokenizer.decode(ids.tolist()) == text


@quick
@given(text=st.text(min_size=1))
def test_characters_are_numbered_in_code_point_order_and_given_back(text: str) -> None:
    characters = "".join(sorted(set(text)))
    char = build_tokenizer("char", characters)
    ids = char.encode(text)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [characters.index(c) for c in text]  # nanoGPT's stoi
    assert char.decode(ids.tolist()) == text


@pytest.mark.parametrize("text", ["aäbß", "b!", "\ud800"], ids=repr)
def test_characters_outside_the_vocabulary_are_refused_by_name(text: str) -> None:
    strangers = [c for c in text if c not in "ab"]
    with pytest.raises(Refused) as refusal:
        CharTokenizer("ab").encode(text)
    for stranger in strangers:
        assert f"{stranger!r} (U+{ord(stranger):04X})" in str(refusal.value)
    assert "'a'" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["gpt2", "byte"])
def test_what_is_not_unicode_is_refused(kind: str) -> None:
    # An argument of the command line that is not UTF-8 arrives with such a code point.
    with pytest.raises(Refused, match=r"U\+DCFF"):
        build_tokenizer(kind, "").encode("prompt \udcff")


@pytest.mark.parametrize("tokenizer", every_tokenizer(), ids=lambda t: t.kind)
def test_ids_that_pad_the_vocabulary_of_a_model_decode_to_nothing(tokenizer: Tokenizer) -> None:
    padded = -(-tokenizer.vocab_size // 64) * 64
    assert padded > tokenizer.vocab_size
    for token in range(tokenizer.vocab_size, padded + 64):
        assert tokenizer.token_bytes(token) == b""
    assert tokenizer.decode([padded, int(tokenizer.encode("a")[0]), padded]) == "a"


@pytest.mark.parametrize("tokenizer", every_tokenizer(), ids=lambda t: t.kind)
def test_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.encode_special("").tolist() == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokenizer", every_tokenizer(), ids=lambda t: t.kind)
def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert again.digest() == tokenizer.digest()
    assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert again.encode("a b\na").tolist() == tokenizer.encode("a b\na").tolist()


@pytest.mark.parametrize(
    "saved",
    [
        {}, {"kind": ["byte"]}, {"kind": "sentencepiece"}, {"_target_": "os.system"},
        {"kind": "byte", "more": 1}, {"kind": "gpt2"}, {"kind": "char", "characters": ["a"]},
        {"kind": "char", "characters": "ab", "merges": ""}, {"kind": "char", "characters": ""},
        {"kind": "char", "characters": "ba"}, {"kind": "char", "characters": "aab"},
        {"kind": "char", "characters": "a\ud800"},
    ],
    ids=lambda saved: str(saved).encode("ascii", "replace").decode(),
)  # fmt: skip
def test_anything_else_is_refused_as_a_saved_tokenizer(saved: Any) -> None:
    with pytest.raises(
        Refused, match=r"unknown tokenizer|must have exactly|character vocabulary|Unic"
    ):
        from_json(saved)


def test_damaged_merges_are_refused() -> None:
    merges = assets.gpt2_merges().decode()
    lines = merges.split("\n")
    lines[5], lines[6] = lines[6], lines[5]
    for damaged in ("", merges[:-1], merges + "\n", "\n".join(lines)):
        with pytest.raises(Refused, match="GPT-2 vocabulary is damaged"):
            from_json({"kind": "gpt2", "merges": damaged})
