"""Text to token ids and back: GPT-2's BPE, characters, bytes; see bpe.py for any other BPE.

A tokenizer is saved as plain JSON with everything it needs, in ``meta.json`` and in every
checkpoint.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's split pattern; opens no connection

from llm.data import assets
from llm.errors import Refused, require

END_OF_TEXT = "<|endoftext|>"
# GPT-2's pattern always ends a token before white space that follows anything else, and before
# punctuation that follows a letter or digit. SPACE is white space as tiktoken defines it
# (Python's \s has four more control characters), PUNCTUATION a part that all Unicode versions have.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
PUNCTUATION = r"!-/:-@\[-`{-~\u2010-\u2027\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20"
GPT2_CUT = re.compile(rf"(?s).*(?:[^{SPACE}](?=[{SPACE}])|[^\W_](?=[{PUNCTUATION}]))")


class Tokenizer(ABC):
    """Encodes text as ids below ``vocab_size``. The id ``end_of_text`` ends a document; None: the
    tokenizer has none.
    """

    kind: str
    vocab_size: int
    end_of_text: int | None = None
    saved: ClassVar[tuple[str, ...]] = ()  # attributes (str) that the constructor takes

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids (uint32) of ``text``. ``<|endoftext|>`` in it is ordinary text."""

    def encode_rest(self, text: str) -> np.ndarray:
        """Ids of ``text`` that continues another: some tokenizers put a space in front of the first
        word of a document.
        """
        return self.encode(text)

    def encode_special(self, text: str) -> np.ndarray:
        """Ids of ``text``, with the id ``end_of_text``, if any, for each ``<|endoftext|>``."""
        if self.end_of_text is None:
            return self.encode(text)
        end, parts = np.array([self.end_of_text], dtype=np.uint32), text.split(END_OF_TEXT)
        return np.concatenate([ids for part in parts for ids in (end, self.encode(part))][1:])

    def last_cut(self, text: str) -> int:
        """The last place to cut ``text`` without changing an id, for any continuation; 0: none.

        The rest is for :meth:`encode_rest`.
        """
        return len(text)

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of ``token``, perhaps a part of a character.

        Empty for an id beyond the vocabulary: the model's vocabulary may be padded, and an
        untrained model samples such ids.
        """

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids that no text encodes to, by their names: ``{"<|endoftext|>": 50256}``."""
        return {} if self.end_of_text is None else {END_OF_TEXT: self.end_of_text}

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text of each id: (vocab_size,) int64. Special ids are not text: 0."""
        special = set(self.special_ids.values())
        ids = range(self.vocab_size)
        lengths = [len(self.token_bytes(i)) if i not in special else 0 for i in ids]
        return np.array(lengths, dtype=np.int64)

    def decode(self, tokens: list[int]) -> str:
        """The text of ``tokens``; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, str]:
        """Plain values from which :func:`from_json` makes an equal tokenizer."""
        return {"kind": self.kind} | {name: getattr(self, name) for name in self.saved}

    def digest(self) -> str:
        """sha256 of :meth:`to_json`."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def is_same(self, other: "Tokenizer") -> bool:
        """Whether both give the same ids for every text, with the same special tokens."""
        return self.digest() == other.digest()

    def described(self, other: "Tokenizer") -> str:
        """The vocabulary in words, with its difference from ``other``'s."""
        return f"the {self.vocab_size:,} tokens of {self.kind}"


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE by tiktoken, with saved merges: tiktoken would download them."""

    kind, vocab_size, end_of_text = "gpt2", 50_257, 50_256
    saved = ("merges",)

    def __init__(self, merges: str | None = None) -> None:
        self.merges = assets.gpt2_merges().decode("utf-8") if merges is None else merges
        require(
            assets.sha256(self.merges.encode()) == assets.GPT2_MERGES_SHA256,
            "the saved GPT-2 vocabulary is damaged: its sha256 differs from vocab.bpe's",
        )
        self.encoding = _gpt2_encoding(self.merges)

    def encode(self, text: str) -> np.ndarray:
        refuse_surrogates(text)
        return self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())

    def last_cut(self, text: str) -> int:
        match = GPT2_CUT.match(text)
        return match.end() if match else 0

    def token_bytes(self, token: int) -> bytes:
        return self.encoding.decode_single_token_bytes(token) if token < self.vocab_size else b""


@lru_cache(maxsize=1)
def _gpt2_encoding(merges: str) -> tiktoken.Encoding:
    # vocab.bpe writes a printable byte as itself and the other 68 bytes as U+0100, U+0101, ...
    # Ranks are the 256 bytes in that order, then the merges.
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    ranks = {bytes([b]): rank for rank, b in enumerate(printable + others)}
    for line in merges.split("\n")[1:-1]:
        left, right = line.split()
        ranks[bytes(byte_of[c] for c in left + right)] = len(ranks)
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: 50_256}, explicit_n_vocab=50_257,
    )  # fmt: skip


class CharTokenizer(Tokenizer):
    """One id per character, in code point order, without an end-of-text id."""

    kind = "char"
    saved = ("characters",)

    def __init__(self, characters: str) -> None:
        refuse_surrogates(characters)
        self.characters = characters
        self.vocab_size = len(characters)
        self.codes = np.array([ord(c) for c in characters], dtype=np.uint32)
        require(
            self.vocab_size > 0 and (np.diff(self.codes.astype(np.int64)) > 0).all(),
            "a character vocabulary must be distinct characters in code point order",
        )

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        ids = np.searchsorted(self.codes, codes).astype(np.uint32)
        unknown = self.codes[np.minimum(ids, self.vocab_size - 1)] != codes
        if unknown.any():
            absent = named(sorted({chr(code) for code in codes[unknown]}))
            raise Refused(f"not in this vocabulary of {self.vocab_size} characters: {absent}")
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self.characters[token].encode() if token < self.vocab_size else b""

    def described(self, other: Tokenizer) -> str:
        words = f"an alphabet of {self.vocab_size} characters"
        theirs = other.characters if isinstance(other, CharTokenizer) else self.characters
        extra = [c for c in self.characters if c not in theirs]
        return f"{words} with {named(extra)}" if extra else words


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and end-of-text as id 256: it can encode any text."""

    kind, vocab_size, end_of_text = "byte", 257, 256

    def encode(self, text: str) -> np.ndarray:
        refuse_surrogates(text)
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else END_OF_TEXT.encode() if token == 256 else b""


CLASSES: dict[str, type[Tokenizer]] = {
    "gpt2": GPT2Tokenizer,
    "char": CharTokenizer,
    "byte": ByteTokenizer,
}
KINDS = (*CLASSES, "bpe")


def tokenizer_class(kind: str) -> type[Tokenizer]:
    """The class for a kind of tokenizer."""
    if kind == "bpe":
        from llm.data.bpe import BPETokenizer  # its module needs this one

        return BPETokenizer
    return CLASSES[kind]


def from_json(saved: dict[str, Any]) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_json` saved, perhaps in a stranger's file; raises
    :class:`llm.errors.Refused` if there is no such tokenizer.
    """
    values = {key: value for key, value in saved.items() if isinstance(value, str)}
    kind = values.pop("kind", "")
    known = ", ".join(KINDS)
    require(kind in KINDS, f"unknown tokenizer {kind[:40]!r}: this version knows {known}")
    cls = tokenizer_class(kind)
    require(
        set(saved) == {"kind", *cls.saved} and set(values) == set(cls.saved),
        f"the tokenizer {kind!r} must have exactly these strings: kind, {', '.join(cls.saved)}",
    )
    return cls(**values)


# Opens the tokenizer of a place such as init_from=; llm/interchange/source.py, which this room may
# not import, sets it.
open_place: Callable[[str], Tokenizer] | None = None


def tokenizer_at(place: str) -> Tokenizer:
    """The tokenizer of the weights at ``place``. Raises :class:`llm.errors.Refused` without one."""
    if open_place is None:
        raise RuntimeError("llm.interchange.source is not imported")
    return open_place(place)


def build_tokenizer(name: str, alphabet: str) -> Tokenizer:
    """A tokenizer for a new text, whose distinct characters are ``alphabet``.

    ``name``: gpt2, char, byte, or a place.
    """
    if name == "char":
        return CharTokenizer(alphabet)
    return CLASSES[name]() if name in CLASSES else tokenizer_at(name)


def name_in_meta(name: str) -> str:
    """``name`` if it is gpt2, char or byte; for a place the kind of its tokenizer, with the digest
    unless every one of its kind is the same: a place may move.
    """
    if name in CLASSES:
        return name
    tokenizer = tokenizer_at(name)
    is_one = tokenizer.kind in ("gpt2", "byte")
    return tokenizer.kind if is_one else f"{tokenizer.kind} {tokenizer.digest()}"


def named(characters: list[str]) -> str:
    """The first of ``characters`` for a message: ``'é' (U+00E9), ...``."""
    first = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:5])
    return first + ", ..." * (len(characters) > 5)


def refuse_surrogates(text: str) -> None:
    """Raise :class:`llm.errors.Refused` for text that UTF-8 cannot write."""
    # Python decodes an argument of the command line that is not UTF-8 to surrogates (PEP 383).
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(f"not Unicode text: U+{ord(text[error.start]):04X}") from None
