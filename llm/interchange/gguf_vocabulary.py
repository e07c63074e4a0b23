"""Our tokenizers as the ``tokenizer.ggml`` keys of a GGUF file: llama.cpp finds the same ids."""

import json
from typing import Any

from llm.data.bpe import BYTE_TOKEN, BPETokenizer
from llm.data.definition import SPACE_MARK, Definition, types
from llm.data.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer, from_json
from llm.errors import Refused, require
from llm.interchange.gguf_tokenizer import PRE_TOKENIZERS
from llm.interchange.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    definition_of_pieces,
)
from llm.interchange.tokenizer_writing import gpt2_merges, spelled

OWN_KEY = "llm.tokenizer"  # our tokenizer as JSON; other programs ignore it
PREFIX = "tokenizer.ggml."


def vocabulary(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The values of the keys below ``tokenizer.ggml.`` for a network of ``size`` ids.

    Raises :class:`llm.errors.Refused` for a tokenizer that llama.cpp cannot compute.
    """
    require(
        tokenizer.vocab_size <= size,
        f"a tokenizer of {tokenizer.vocab_size:,} ids and a network of {size:,}",
    )
    if isinstance(tokenizer, CharTokenizer):
        return _characters(tokenizer, size)
    if isinstance(tokenizer, BPETokenizer) and not tokenizer.is_byte_level:
        return _sentencepiece(tokenizer, size)
    return _byte_level(tokenizer, size)


def own_tokenizer(values: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer that our key of a GGUF file describes, if the other keys agree; else None."""
    own, tokens = values.get(OWN_KEY), values.get(f"{PREFIX}tokens")
    if not isinstance(own, str) or not isinstance(tokens, list):
        return None
    try:
        saved = json.loads(own)
        tokenizer = from_json(saved) if isinstance(saved, dict) else None
        expected = vocabulary(tokenizer, len(tokens)) if tokenizer else {}
    except (Refused, ValueError, TypeError, KeyError, RecursionError):
        return None  # a stranger's values, perhaps of any type
    agrees = all(values.get(PREFIX + key) == value for key, value in expected.items())
    return tokenizer if agrees else None


def _characters(tokenizer: CharTokenizer, size: int) -> dict[str, Any]:
    """llama.cpp's tokenizer of RWKV takes the longest token that matches. All others need an end
    token, and a vocabulary of characters has no spare id for one. An unknown character becomes the
    id -1, which llama.cpp refuses.
    """
    tokens = ["".join(_escaped(byte) for byte in c.encode()) for c in tokenizer.characters]
    # No text contains the byte FF, so padding is never found in one.
    padding = [rf"\xff{number}" for number in range(len(tokens), size)]
    kinds = [NORMAL] * len(tokens) + [UNUSED] * len(padding)
    return {"model": "rwkv", "tokens": tokens + padding, "token_type": kinds}


def _escaped(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}"


def _byte_level(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    tokens, kinds = _unused(size)
    special = set(tokenizer.special_ids.values())
    for number in range(tokenizer.vocab_size):
        raw = tokenizer.token_bytes(number)
        if raw and number not in special:
            tokens[number], kinds[number] = spelled(raw), NORMAL
    pre, merges = "gpt-2", list[tuple[str, str]]()
    if isinstance(tokenizer, BPETokenizer):
        pre, merges = _pre_tokenizer(tokenizer.values), _merges(tokenizer)
    elif isinstance(tokenizer, GPT2Tokenizer):
        merges = gpt2_merges(tokenizer)
    _add_named(tokenizer, tokens, kinds)
    end = _end(tokenizer, kinds)
    # The list must not be empty. No text contains an end token, so this merge never applies.
    merges = merges or [(tokens[end], tokens[end])]
    joined = [f"{left} {right}" for left, right in merges]
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": joined}
    return keys | _ends(end)


def _sentencepiece(tokenizer: BPETokenizer, size: int) -> dict[str, Any]:
    """A merge makes a token. The score of a token is minus the place of its first merge."""
    tokens, kinds = _unused(size)
    merges = _merges(tokenizer)
    place: dict[str, int] = {}
    for left, right in merges:
        place.setdefault(left + right, len(place))
    scores = [-float(len(place))] * size
    for text, number in tokenizer.ids.items():
        tokens[number], kinds[number] = text, BYTE if BYTE_TOKEN.fullmatch(text) else NORMAL
        scores[number] = -float(place.get(text, len(place)))
    _add_named(tokenizer, tokens, kinds)
    unknown = tokenizer.values["model"].get("unk_token")
    if unknown in tokenizer.ids:
        kinds[tokenizer.ids[unknown]] = UNKNOWN
    prefix = _puts_space_first(tokenizer.values)
    again = definition_of_pieces(tokens, scores, kinds, prefix)
    found = [(left, right) for left, right in again["model"]["merges"]]
    require(
        found == merges and types(tokenizer.values) <= types(again) | {"Metaspace"},
        "llama.cpp cannot compute this tokenizer: no scores of its tokens give its order of merges,"
        " or it changes the text first",
    )
    end = _end(tokenizer, kinds)
    unknown_id = tokenizer.ids.get(unknown, end)
    keys: dict[str, Any] = {
        "model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds,
        "unknown_token_id": unknown_id, "add_space_prefix": prefix,
    }  # fmt: skip
    return keys | _ends(end)


def _unused(size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types for ids that stand for no text."""
    return [f"[PAD{number}]" for number in range(size)], [UNUSED] * size


def _add_named(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Set the added tokens, which are found before a text is divided into words, and the special
    tokens, which no text becomes.
    """
    if isinstance(tokenizer, BPETokenizer):
        for token in tokenizer.added:
            number = tokenizer.ids[token["content"]]
            strips = token["lstrip"] or token["rstrip"] or token["single_word"]
            require(
                token["special"] or not strips,
                f"llama.cpp cannot compute the tokenizer: its token {token['content']!r:.60} takes "
                "the white space beside it, or is found only as a whole word",
            )
            tokens[number], kinds[number] = token["content"], USER
    for text, number in tokenizer.special_ids.items():
        tokens[number], kinds[number] = text, CONTROL


def _end(tokenizer: Tokenizer, kinds: list[int]) -> int:
    """The id that ends a text. A tokenizer without one gets an unused id, because llama.cpp would
    otherwise end a text at the id 11 or 2.
    """
    if tokenizer.end_of_text is not None:
        return tokenizer.end_of_text
    free = [number for number, kind in enumerate(kinds) if kind in (UNUSED, CONTROL)]
    require(
        free,
        "llama.cpp needs an id that ends a text, and this tokenizer has none: train with a "
        "model.vocab_size larger than the tokenizer's",
        key="model.vocab_size",
    )
    return free[0]


def _ends(end: int) -> dict[str, Any]:
    return {
        "bos_token_id": end, "eos_token_id": end, "add_bos_token": False, "add_eos_token": False,
    }  # fmt: skip


def _merges(tokenizer: BPETokenizer) -> list[tuple[str, str]]:
    """The merges into tokens that text can have."""
    usual = tokenizer.ids.keys() - tokenizer.special_ids.keys()
    pairs = [
        tuple(pair.split(" ") if isinstance(pair, str) else pair)
        for pair in tokenizer.values["model"]["merges"]
    ]
    return [(left, right) for left, right in pairs if {left, right, left + right} <= usual]


def _pre_tokenizer(values: Definition) -> str:
    """llama.cpp's name of the way in which text is divided into words."""
    found = (_steps(values.get("pre_tokenizer")), bool(values["model"].get("ignore_merges")))
    normalizers = types({"normalizer": values.get("normalizer")})
    for name, steps in PRE_TOKENIZERS.items():
        allowed = {"NFC"} if name == "qwen2" else set()
        if found == (_steps(steps), name == "llama-bpe") and normalizers <= allowed:
            return name
    known = ", ".join(PRE_TOKENIZERS)
    raise Refused(
        "llama.cpp cannot compute this tokenizer: it divides text into words in another way than "
        f"{known}"
    )


def _steps(value: Any) -> list[tuple[Any, ...]]:
    """The pre-tokenizers with the options that change the words."""
    if not isinstance(value, dict):
        return []
    if value["type"] == "Sequence":
        return [step for part in value["pretokenizers"] for step in _steps(part)]
    if value["type"] == "ByteLevel":
        add = value.get("add_prefix_space", True)
        return [("ByteLevel", add, value.get("use_regex", True))]
    keys = ("pattern", "behavior", "invert", "individual_digits")
    return [(value["type"], *(json.dumps(value.get(key)) for key in keys))]


def _puts_space_first(values: Definition) -> bool:
    """Whether a text gets a space in front."""
    text = json.dumps([values.get("normalizer"), values.get("pre_tokenizer")], ensure_ascii=False)
    return f'"prepend": "{SPACE_MARK}"' in text or '"prepend_scheme": "first"' in text or (
        '"prepend_scheme": "always"' in text
    )  # fmt: skip
