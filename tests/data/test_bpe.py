# ruff: noqa: RUF001  (Chinese punctuation is meant)
"""Tokenizers of other people, as tokenizer.json describes them, against transformers."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import Tokenizer as Library

from llm.data.bpe import LLAMA3_SPLIT, QWEN2_SPLIT, BPETokenizer
from llm.data.tokenizer import from_json
from llm.errors import Refused

quick = settings(max_examples=60, deadline=None, database=None)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = (
    "What's this, my lord? It is the 12345th day;  they'll say: \"no!\"\n\n"
    "他说：“你好，世界。”于是大家都笑了。\n今天天气很好！\n"
    "def f(x):\n    return [x, 2.5]  # é ² ½ 🎭👩‍👩‍👧 \t\r\n"
    + " " * 40
    + "end a\u0301 \xa0\u3000x\n"
)
NAMES = ["gpt2", "smollm", "qwen2", "llama3", "llama2", "metaspace"]
ATOMS = [
    "a", "Th", "中", "文", "1", "²", "é", "🎭", "'", "'ll", "’", "!", ".", "。", "，", "_", "<",
    "think", ">", "\t", " ", "\n", "\r", "\xa0", "\u3000", "▁", "\u0301", "</s>", "<unk>", *SPECIAL,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ATOMS), max_size=40).map("".join)


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def library(name: str, size: int = 600) -> Library:
    """A tokenizer of this family, trained on a little text."""
    is_metaspace = name in ("llama2", "metaspace")
    made = Library(models.BPE(byte_fallback=is_metaspace, unk_token="<unk>" * is_metaspace or None))
    special = ["<unk>", "<s>", "</s>"] if is_metaspace else SPECIAL
    alphabet = [] if is_metaspace else pre_tokenizers.ByteLevel.alphabet()
    if name == "llama2":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    made.pre_tokenizer = {
        "gpt2": lambda: byte_level(use_regex=True),
        "smollm": lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]
        ),
        "qwen2": lambda: pre_tokenizers.Sequence([split(QWEN2_SPLIT), byte_level()]),
        "llama3": lambda: pre_tokenizers.Sequence([split(LLAMA3_SPLIT), byte_level()]),
        "llama2": lambda: split("(?<=[^▁])(?=▁)"),  # only to train words
        "metaspace": lambda: pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    }[name]()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if is_metaspace else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special + bytes_, initial_alphabet=alphabet,
        show_progress=False, max_token_length=12,
    )  # fmt: skip
    made.train_from_iterator([TEXT] * 5, trainer)
    plain = json.loads(made.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] not in bytes_]
    if name == "llama2":
        plain["pre_tokenizer"] = None
    if name == "qwen2":
        plain["normalizer"] = {"type": "NFC"}
    made = Library.from_str(json.dumps(plain))
    if name in ("qwen2", "llama2"):
        made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return made


LIBRARIES = {name: library(name) for name in NAMES}


def ours(name: str) -> BPETokenizer:
    end = "</s>" if name in ("llama2", "metaspace") else "<|im_end|>"
    return BPETokenizer(LIBRARIES[name].to_str(), end)


OURS = {name: ours(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_ordinary_text_equal_the_librarys(name: str) -> None:
    tokenizer, reference = OURS[name], LIBRARIES[name]
    for text in (TEXT, TEXT[::-1], "", " ", "a", " a", "a ", "<think>x</think>"):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == expected, text
        assert tokenizer.encode(text).dtype == np.uint32


@quick
@given(text=TEXTS, more=TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_changes_no_token_and_no_text_yields_a_special_id(
    name: str, text: str, more: str
) -> None:
    tokenizer = OURS[name]
    whole = tokenizer.encode(text + more).tolist()
    assert not set(whole) & set(tokenizer.special_ids.values())
    if cut := tokenizer.last_cut(text):
        parts = [tokenizer.encode(text[:cut]), tokenizer.encode_rest(text[cut:] + more)]
        assert np.concatenate(parts).tolist() == whole
    if name not in ("qwen2", "llama2", "metaspace"):  # NFC, and a space in front
        assert b"".join(map(tokenizer.token_bytes, whole)) == (text + more).encode()


def test_a_special_token_that_merges_would_build_is_never_reached() -> None:
    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", "<", "/", "s", ">", "</", "s>"])}
    vocab |= {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    merges = ["< /", "s >", "</ s>"]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True}
    plain = {"model": model | {"unk_token": "<unk>", "ignore_merges": True}, "added_tokens": []}
    assert Library.from_str(json.dumps(plain)).encode("</s>").ids == [1]
    tokenizer = BPETokenizer(json.dumps(plain), "</s>")
    assert tokenizer.encode("</s>").tolist() == [6, 7]
    assert tokenizer.special_ids == {"<unk>": 0, "</s>": 1}
    assert tokenizer.encode_special("s<|endoftext|>s").tolist() == [4, 1, 4]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_exact_and_an_equal_tokenizer_is_saved(name: str) -> None:
    tokenizer = OURS[name]
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.digest() == tokenizer.digest()
    assert again.end_of_text == tokenizer.special_ids[tokenizer.end]
    ids = again.encode("他说 hello 🎭\n").tolist()
    text = again.decode(ids)
    assert text.removeprefix(" ") == "他说 hello 🎭\n"
    assert sum(again.byte_lengths[ids]) == len(text.encode())
    assert not again.byte_lengths[list(again.special_ids.values())].any()
    assert again.token_bytes(again.vocab_size) == b""
    assert again.token_bytes(again.end_of_text) == tokenizer.end.encode()


def changed(**model: Any) -> str:
    plain = json.loads(LIBRARIES["gpt2"].to_str())
    return json.dumps(plain | {"model": plain["model"] | model})


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "has no model"),
        (json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}), "model.type='Unigram'"),
        (json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0}}}), "model.type='WordPiece'"),
        (changed(vocab={}), "no model.vocab"),
        (changed(vocab={"a": -1}), "id -1"),
        (changed(vocab={"a": 2**40}), "id 1099511627776"),
        (changed(vocab={"a": True}), "id True"),
        (changed(vocab={"a": None}), "id None"),
        (changed(vocab={"a": 5, "b": 5}), "one id for two tokens"),
        (changed(vocab={"\ud800": 9}), "not Unicode"),
        (changed(vocab={"中": 9}), "not in the byte-level alphabet"),
        (changed(merges=[["a"]]), r"the merge \['a'\]"),
        (changed(merges={}), "no model.merges"),
        (changed(unk_token=["<unk>"]), r"model.unk_token=\['<unk>'\], which is not text"),
        (changed(unk_token=0), "model.unk_token=0, which is not text"),
        (changed(end_of_word_suffix="</w>"), "end_of_word_suffix='</w>'"),
        (changed().replace('"ByteLevel"', '"Whitespace"'), "is not byte-level and lacks"),
        (changed().replace('"ByteLevel"', '"Teleport"'), "is not byte-level and lacks"),
        (changed().replace('"use_regex": true', '"use_regex": 7'), "library tokenizers fails"),
    ],
    ids=range(21),
)
def test_a_definition_that_is_not_such_a_bpe_is_refused(definition: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        BPETokenizer(definition)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_characters_that_the_vocabulary_cannot_spell_are_refused_by_name() -> None:
    plain = json.loads(LIBRARIES["gpt2"].to_str())
    del plain["model"]["vocab"]["Ĝ"]  # byte 0x1C
    with pytest.raises(Refused, match=r"not in this vocabulary of bpe: '\\x1c' \(U\+001C\)$"):
        BPETokenizer(json.dumps(plain)).encode("a\x1cb")
