"""Other people's BPE, as ``tokenizer.json`` of Hugging Face's ``tokenizers`` describes it.

Two families are read: byte-level vocabularies, whose tokens spell bytes in GPT-2's alphabet of 256
characters (GPT-2, Llama 3, Qwen, SmolLM2), and those of sentencepiece, with ``▁`` for a space and
``<0x0A>`` for a byte that no other token covers (Llama 2).
"""

import re
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llm.data import definition as tokenizer_json
from llm.data.definition import ALPHABET, GPT2_SPLIT, SPACE_MARK, Definition
from llm.data.tokenizer import PUNCTUATION, SPACE, Tokenizer, named, refuse_surrogates
from llm.errors import require

if TYPE_CHECKING:
    import tokenizers

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
SAFE_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace"}
# Patterns that divide a text into words before BPE. All of them start a new word at white space or
# punctuation after a letter or digit, and at a space after any other character but white space.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN_SPLITS = {LLAMA3_SPLIT, QWEN2_SPLIT, GPT2_SPLIT}


class BPETokenizer(Tokenizer):
    """BPE from ``definition``, the text of a tokenizer.json; ``end``: the text of the token that
    ends a document, or empty.

    Raises :class:`llm.errors.Refused` for a definition that is not BPE, or is damaged.
    """

    kind = "bpe"
    saved = ("definition", "end")

    def __init__(self, definition: str, end: str = "") -> None:
        self.values = tokenizer_json.parse(definition)
        self.definition, self.end = definition, end
        self.added = tokenizer_json.added_tokens(self.values)
        self.ids = tokenizer_json.ids_by_text(self.values, self.added)
        self.texts = {number: text for text, number in self.ids.items()}
        self.vocab_size = max(self.texts) + 1
        require(not end or end in self.ids, f"the tokenizer has no token {end[:60]!r}")
        self.end_of_text = self.ids[end] if end else None
        special = {token["content"] for token in self.added if token["special"]}
        special |= {end, self.values["model"].get("unk_token")} & self.ids.keys()
        self.special = {text: self.ids[text] for text in sorted(special, key=self.ids.__getitem__)}
        self.is_byte_level = "ByteLevel" in tokenizer_json.types(self.values)
        self.missing = self._missing_bytes()
        self.library = self._build(self.values)

    @property
    def special_ids(self) -> dict[str, int]:
        return self.special

    def encode(self, text: str) -> np.ndarray:
        return self._encode(self.library, text)

    def encode_rest(self, text: str) -> np.ndarray:
        return self._encode(self._library_for_the_rest, text)

    def token_bytes(self, token: int) -> bytes:
        text = self.texts.get(token, "")
        if token in self._added_ids:
            return text.encode()
        if self.is_byte_level:
            return bytes(ALPHABET[c] for c in text)
        byte = BYTE_TOKEN.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE_MARK, " ").encode()

    def last_cut(self, text: str) -> int:
        match = self._cut.match(text) if self._cut else None
        return match.end() if match else 0

    def is_same(self, other: Tokenizer) -> bool:
        return isinstance(other, BPETokenizer) and self._parts == other._parts

    def described(self, other: Tokenizer) -> str:
        words = super().described(other)
        if not isinstance(other, BPETokenizer) or self.vocab_size != other.vocab_size:
            return words
        for number, text in sorted(self.texts.items()):
            if other.ids.get(text) != number:
                return f"{words} with {text!r:.60} as id {number}"
        special = [text for text in self.special if text not in other.special]
        if special:
            return f"{words} with the special token {special[0]!r:.60}"
        if self.end != other.end:
            return f"{words} with {self.end[:60] or 'no token'} at the end of a text"
        parts = [part for part, value in self._parts.items() if value != other._parts.get(part)]
        return f"{words} with its own {parts[0]}" if parts else words

    @cached_property
    def _parts(self) -> dict[str, object]:
        """Everything that decides the ids, by its name in a message."""
        model, added = self.values["model"], {token["content"]: token for token in self.added}
        return {
            "ids": (self.ids, self.special, self.end_of_text),
            "merges": tokenizer_json.pairs(model["merges"]),
            "normalizer": self.values.get("normalizer"),
            "pre_tokenizer": self.values.get("pre_tokenizer"),
            "kinds of steps": tokenizer_json.types(self.values),
            "added tokens": {text: added[text] for text in added if text not in self.special},
            "options of BPE": [
                model.get(key) is True for key in ("byte_fallback", "ignore_merges")
            ],
        }

    def _encode(self, library: "tokenizers.Tokenizer", text: str) -> np.ndarray:
        refuse_surrogates(text)
        if self.missing:  # the library would silently drop these characters
            absent = sorted(c for c in set(text) if self.missing & set(c.encode()))
            require(not absent, f"not in this vocabulary of {self.kind}: {named(absent)}")
        with tokenizer_json.one_line():
            return np.array(library.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    @cached_property
    def _added_ids(self) -> set[int]:
        return {token["id"] for token in self.added} | set(self.special.values())

    @cached_property
    def _library_for_the_rest(self) -> "tokenizers.Tokenizer":
        """Tokenizes text that continues a document: it adds no space in front."""
        rest = tokenizer_json.without_prefix(self.values)
        return self.library if rest == self.values else self._build(rest)

    def _missing_bytes(self) -> set[int]:
        """The bytes of UTF-8 that have no token.

        Raises :class:`llm.errors.Refused` for a token outside the byte-level alphabet, and for a
        vocabulary that is not byte-level and lacks byte tokens.
        """
        if self.is_byte_level:
            added = {token["content"] for token in self.added} | self.special.keys()
            foreign = next((t for t in self.ids.keys() - added if set(t) - ALPHABET.keys()), None)
            require(foreign is None, f"the token {foreign!r:.60} is not in the byte-level alphabet")
            return {b for c, b in ALPHABET.items() if c not in self.ids} - NEVER_IN_UTF8
        require(
            self.values["model"].get("byte_fallback") is True
            and all(f"<0x{byte:02X}>" in self.ids for byte in range(256)),
            "this BPE is not byte-level and lacks some of the 256 byte tokens <0x00> to <0xFF>, so "
            "it cannot encode every text: take other weights",
        )
        return set()

    def _build(self, values: Definition) -> "tokenizers.Tokenizer":
        """The library's tokenizer without the special tokens, so that no text encodes to one."""
        ordinary = [token for token in self.added if token["content"] not in self.special]
        vocab = {text: number for text, number in self.ids.items() if text not in self.special}
        return tokenizer_json.build(values, vocab, ordinary)

    @cached_property
    def _cut(self) -> re.Pattern[str] | None:
        """Matches the text up to its last safe place to cut; None: no place is safe."""
        ordinary = [token for token in self.added if token["content"] not in self.special]
        inside = "".join(token["content"] for token in ordinary)
        normalizers = tokenizer_json.types({"normalizer": self.values.get("normalizer")})
        takes_spaces = any(token["lstrip"] or token["rstrip"] for token in ordinary)
        if takes_spaces or " " in inside or not normalizers <= SAFE_NORMALIZERS:
            return None
        splits = tokenizer_json.splits(self.values)
        if self.is_byte_level and splits and splits <= KNOWN_SPLITS:
            not_inside = f"(?![{re.escape(inside)}])" if inside else ""
            words = rf"[^\W_](?={not_inside}[{SPACE}{PUNCTUATION}])"
            return re.compile(rf"(?s).*(?:[^{SPACE}](?= )|{words})")
        # No token contains a space after another character, so BPE merges nothing across it.
        marks = "Ġ\t\n\r\v\fĉĊčċČ" if self.is_byte_level else SPACE_MARK
        tokens = "\0".join(self.ids.keys() - self.special.keys())
        if re.search(rf"[^\0{marks}]{marks[0]}", tokens):
            return None
        return re.compile(rf"(?s).*[^{SPACE}{SPACE_MARK}](?= )")
