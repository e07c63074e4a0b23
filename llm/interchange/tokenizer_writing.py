"""Our tokenizers as ``tokenizer.json`` of Hugging Face's ``tokenizers``: the same ids.

A character that a vocabulary of characters lacks raises an exception there too: the model has no
unknown token. The library reads ``<|endoftext|>`` in a text as the special token, and our
tokenizers read it as ordinary text.
"""

import json

from llm.data.bpe import BPETokenizer
from llm.data.definition import ALPHABET
from llm.data.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.sealed import Plain

# In tokenizer_config.json, of a BPE that we wrote: the tokens that only its added_tokens had.
OUTSIDE = "tokens_outside_vocab"
LETTER = {byte: letter for letter, byte in ALPHABET.items()}  # GPT-2's letter for each byte


def end_text(tokenizer: Tokenizer) -> str | None:
    """The text of the token that ends a document; None: there is no such token."""
    names = [name for name, number in tokenizer.special_ids.items()
             if number == tokenizer.end_of_text]  # fmt: skip
    return names[0] if names else None


def spelled(raw: bytes) -> str:
    """``raw`` in GPT-2's alphabet, which has a printable letter for each byte."""
    return "".join(LETTER[byte] for byte in raw)


def gpt2_merges(tokenizer: GPT2Tokenizer) -> list[tuple[str, str]]:
    """The pairs of tokens that GPT-2's BPE joins, the first one first."""
    pairs = [line.split() for line in tokenizer.merges.split("\n")[1:-1]]
    return [(left, right) for left, right in pairs]


def byte_level_vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of a byte-level tokenizer by their tokens, spelled in GPT-2's alphabet."""
    special = set(tokenizer.special_ids.values())
    ids = [number for number in range(tokenizer.vocab_size) if number not in special]
    return {spelled(tokenizer.token_bytes(number)): number for number in ids}


def tokenizer_json(tokenizer: Tokenizer) -> Plain:
    """The values of ``tokenizer.json``."""
    if isinstance(tokenizer, BPETokenizer):
        values: Plain = json.loads(tokenizer.definition)
        # The library gives a token the id in added_tokens only if the vocabulary has it too.
        values["model"]["vocab"] = tokenizer.ids
        return values
    added = [
        {"id": number, "content": text, "special": True, "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for text, number in tokenizer.special_ids.items()
    ]  # fmt: skip
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "post_processor": None}  # fmt: skip
    if isinstance(tokenizer, CharTokenizer):
        return head | _characters(tokenizer)
    is_gpt2 = isinstance(tokenizer, GPT2Tokenizer)
    merges = gpt2_merges(tokenizer) if isinstance(tokenizer, GPT2Tokenizer) else []
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
        "vocab": byte_level_vocabulary(tokenizer) | tokenizer.special_ids,
        "merges": [f"{left} {right}" for left, right in merges],
    }  # fmt: skip
    return head | {
        "pre_tokenizer": step | {"use_regex": is_gpt2},
        "decoder": step | {"use_regex": True}, "model": model,
    }  # fmt: skip


def read_again(values: Plain, outside: list[object]) -> Plain:
    """The definition of the BPE for which :func:`tokenizer_json` gave ``values``; ``outside``: the
    setting :data:`OUTSIDE` beside it.
    """
    # transformers may have written how it cuts and pads batches
    values = values | {key: None for key in ("truncation", "padding") if key in values}
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return values  # which is refused
    names = {text for text in outside if isinstance(text, str)}
    vocab = {text: number for text, number in model["vocab"].items() if text not in names}
    return values | {"model": model | {"vocab": vocab}}


def our_tokenizer(values: Plain) -> Tokenizer | None:
    """Our tokenizer of characters or bytes for which :func:`tokenizer_json` gives ``values``; None
    for any other values.
    """
    model = values.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict):
        return None
    tokenizer: Tokenizer = ByteTokenizer()
    if all(len(text) == 1 for text in vocab) and list(vocab) == sorted(vocab) and vocab:
        tokenizer = CharTokenizer("".join(vocab))
    return tokenizer if values == tokenizer_json(tokenizer) else None


def _characters(tokenizer: CharTokenizer) -> Plain:
    """One word per character. ``Fuse`` joins them again without spaces."""
    vocab = {character: number for number, character in enumerate(tokenizer.characters)}
    return {
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated",
            "invert": False,
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "\ufdd0"},
    }  # fmt: skip


def tokenizer_config(tokenizer: Tokenizer, context: int) -> Plain:
    """The values of ``tokenizer_config.json``; ``context``: tokens that the model reads."""
    kind = "GPT2TokenizerFast" if tokenizer.kind == "gpt2" else "PreTrainedTokenizerFast"
    values: Plain = {
        "tokenizer_class": kind, "model_max_length": context, "add_prefix_space": False,
        "add_bos_token": False, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    end = end_text(tokenizer)
    if end is not None:
        values |= {"bos_token": end, "eos_token": end}
    if tokenizer.kind == "gpt2":
        values["unk_token"] = END_OF_TEXT
    if isinstance(tokenizer, BPETokenizer):
        vocab = tokenizer.values["model"]["vocab"]
        values[OUTSIDE] = [text for text in tokenizer.ids if text not in vocab]
    return values
