"""The tokenizer that a GGUF file describes, as a tokenizer.json."""

import json
from pathlib import Path
from typing import Any

from llm.data.bpe import LLAMA3_SPLIT, QWEN2_SPLIT, BPETokenizer
from llm.data.definition import GPT2_SPLIT, MOST_IDS, Definition
from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.interchange.sentencepiece import NORMAL, definition_of_pieces, divide_by_type


def _split(pattern: str) -> Definition:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*first: Definition, use_regex: bool = False) -> Definition:
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": use_regex}  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [*first, last]} if first else last


DIGITS = {"type": "Digits", "individual_digits": True}
GPT2_PRE_TOKENIZER = _byte_level(use_regex=True)
# llama.cpp's name of each way to divide a text into words
PRE_TOKENIZERS = {
    "gpt-2": GPT2_PRE_TOKENIZER,
    "smollm": _byte_level(DIGITS, use_regex=True),
    "qwen2": _byte_level(_split(QWEN2_SPLIT)),
    "llama-bpe": _byte_level(_split(LLAMA3_SPLIT)),
    "default": _byte_level(
        _split(r"[\p{P}\$\+<=>\^~\|]+"), _split(GPT2_SPLIT.removesuffix(r"|\s+")),
        _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"),
    ),
}  # fmt: skip
BYTE_LEVEL_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                      "use_regex": True}  # fmt: skip


def tokenizer_of_keys(values: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer in the keys of a GGUF file; :class:`llm.errors.Refused` naming a kind that
    this program does not have.
    """
    kind = values.get("tokenizer.ggml.model")
    require(
        kind in ("gpt2", "llama"),
        f"{path} has a tokenizer of the kind {kind!r:.60}, and this program reads gpt2 and llama",
    )
    tokens = _list(values, "tokens", str, path)
    types = _list(values, "token_type", int, path) if _has(values, "token_type") else [NORMAL]
    types = types * len(tokens) if len(types) == 1 else types
    require(len(types) == len(tokens) <= MOST_IDS, f"{path}: tokenizer.ggml.token_type is of the "
            f"length {len(types):,}, and there are {len(tokens):,} tokens")  # fmt: skip
    end = values.get("tokenizer.ggml.eos_token_id")
    require(
        end is None or (type(end) is int and 0 <= end < len(tokens)),
        f"{path}: tokenizer.ggml.eos_token_id={end!r:.40} is not the id of one of its "
        f"{len(tokens):,} tokens",
    )
    try:
        if kind == "gpt2":
            definition = _byte_level_definition(values, tokens, types, path)
        else:
            scores = _list(values, "scores", float, path)
            require(len(scores) == len(tokens), f"{path}: tokenizer.ggml.scores is incomplete")
            prefix = values.get("tokenizer.ggml.add_space_prefix", True) is True
            definition = definition_of_pieces(tokens, scores, types, prefix)
        text = json.dumps(definition, ensure_ascii=False, separators=(",", ":"))
        return BPETokenizer(text, "" if end is None else tokens[end])
    except Refused as error:
        raise Refused(f"{path}: {error}") from None


def _byte_level_definition(
    values: dict[str, Any], tokens: list[str], types: list[int], path: Path
) -> Definition:
    pre = values.get("tokenizer.ggml.pre", "default")
    require(
        isinstance(pre, str) and pre in PRE_TOKENIZERS,
        f"{path}: tokenizer.ggml.pre={pre!r:.60}, and this program has {', '.join(PRE_TOKENIZERS)}",
    )
    merges = _list(values, "merges", str, path)
    vocab, added = divide_by_type(tokens, types)
    return {
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre], "decoder": BYTE_LEVEL_DECODER,
        "model": {"type": "BPE", "ignore_merges": pre == "llama-bpe", "vocab": vocab,
                  "merges": merges},
    }  # fmt: skip


def _has(values: dict[str, Any], key: str) -> bool:
    return f"tokenizer.ggml.{key}" in values


def _list(values: dict[str, Any], key: str, kind: type, path: Path) -> list[Any]:
    found = values.get(f"tokenizer.ggml.{key}")
    is_list = isinstance(found, list) and found and type(found[0]) is kind
    require(is_list, f"{path} has no list tokenizer.ggml.{key}")
    assert isinstance(found, list)
    return found
