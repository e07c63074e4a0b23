"""Tokenizers of other programs, from the files beside their weights."""

import json
import re
from pathlib import Path
from typing import Any

from llm.data import assets
from llm.data.bpe import BPETokenizer
from llm.data.definition import LARGEST, Definition, added_token
from llm.data.tokenizer import GPT2Tokenizer, Tokenizer
from llm.errors import Refused, require
from llm.interchange.gguf_tokenizer import BYTE_LEVEL_DECODER, GPT2_PRE_TOKENIZER
from llm.interchange.sentencepiece import read_model
from llm.interchange.tokenizer_writing import OUTSIDE, our_tokenizer, read_again
from llm.sealed import Plain, read_bounded, read_json

JSON, PIECES, VOCAB, MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
CONFIG = "tokenizer_config.json"
END = "<|endoftext|>"
GPT2_MERGES = 50_000
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a token in base64 and its rank
GPT2_SPELLINGS = [
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim} | more
    for trim in (True, False)
    for more in ({}, {"use_regex": True})
]


def tokenizer_of_folder(path: Path) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face; :class:`llm.errors.Refused` if it has none that
    this program reads. GPT-2's own becomes a :class:`GPT2Tokenizer`.
    """
    found = next((path / name for name in (JSON, PIECES, VOCAB) if (path / name).exists()), None)
    if found is None:
        raise Refused(f"{path} has no tokenizer: none of {JSON}, {PIECES}, {VOCAB} is there")
    end, outside = _end_of(path), _settings(path / CONFIG).get(OUTSIDE)
    try:
        raw = read_bounded(found, LARGEST)
        if found.name == JSON:
            values = json.loads(raw.decode("utf-8"))
            require(isinstance(values, dict), "it is not a JSON object")
            if isinstance(outside, list):
                return BPETokenizer(_text(read_again(values, outside)), end)
        elif found.name == PIECES:
            require(
                not TIKTOKEN.match(raw),
                "it is a file of tiktoken, as in Llama 3, which does not say how text is divided "
                "into words: put tokenizer.json and tokenizer_config.json of the Hugging Face "
                "folder beside it",
            )
            values, usual = read_model(raw)
            end = end or usual
        else:
            merges = read_bounded(path / MERGES, LARGEST).decode("utf-8")
            values = _byte_level(json.loads(raw), merges)
        ours = our_tokenizer(values) or _gpt2(values, end)
        # The same without how transformers cuts and pads batches
        return ours or BPETokenizer(_text(values | {"truncation": None, "padding": None}), end)
    except Refused as error:
        raise Refused(f"{found}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        file, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
        raise Refused(f"{file or found} cannot be read: {reason or error}") from None


def _text(values: Definition) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _byte_level(vocab: Any, merges: str) -> Definition:
    """The values of a tokenizer.json for the two files of GPT-2."""
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    require(isinstance(vocab, dict), "it is not an object of tokens and ids")
    special = [added_token(vocab[END], END, special=True)] if END in vocab else []
    return {
        "version": "1.0", "added_tokens": special, "normalizer": None,
        "pre_tokenizer": GPT2_PRE_TOKENIZER, "decoder": BYTE_LEVEL_DECODER,
        "model": {"type": "BPE", "vocab": vocab, "merges": lines},
    }  # fmt: skip


def _gpt2(values: Definition, end: str) -> GPT2Tokenizer | None:
    """Our tokenizer of GPT-2 if ``values`` have its merges in the same order, its split into words
    and its one special token.
    """
    model = values.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(merges, list) or len(merges) != GPT2_MERGES or end not in ("", END):
        return None
    lines = [one if isinstance(one, str) else " ".join(map(str, one)) for one in merges]
    text = "\n".join(["#version: 0.2", *lines, ""])
    if assets.sha256(text.encode()) != assets.GPT2_MERGES_SHA256:
        return None
    theirs, ours = BPETokenizer(_text(values), END), GPT2Tokenizer(text)
    same = (
        theirs.values.get("normalizer") is None
        and theirs.values.get("pre_tokenizer") in GPT2_SPELLINGS
        and theirs.vocab_size == ours.vocab_size
        and theirs.special_ids == ours.special_ids
        and all(theirs.token_bytes(i) == ours.token_bytes(i) for i in range(ours.vocab_size))
    )
    return ours if same else None


def _end_of(path: Path) -> str:
    """The text of the token that ends a document, or empty: the ``eos_token`` of the settings."""
    for name in (CONFIG, "special_tokens_map.json"):
        token = _settings(path / name).get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token:
            return token
    return _token_of(path, _settings(path / "generation_config.json").get("eos_token_id"))


def _token_of(path: Path, number: object) -> str:
    """The text of a special token in tokenizer.json by its id, the first of several."""
    number = number[0] if isinstance(number, list) and number else number
    added = _settings(path / JSON).get("added_tokens") if type(number) is int else None
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and token.get("id") == number:
            return str(token.get("content"))
    return ""


def _settings(path: Path) -> Plain:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
