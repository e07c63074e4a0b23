"""Sentencepiece's BPE as a tokenizer.json: its scores become an order of merges.

A tokenizer.model is a message of protocol buffers: pieces (field 1), options of the training (2)
and of the normalizer (3); see sentencepiece_model.proto of
https://github.com/google/sentencepiece.
"""

import base64
import struct
from collections.abc import Iterator

from llm.data.definition import MOST_IDS, SPACE_MARK, Definition, added_token
from llm.errors import require

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # types of pieces
LONGEST = 512  # characters of a piece; the library's own limit is 16 by default
UNIGRAM = 1
KINDS = {UNIGRAM: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}  # TrainerSpec.ModelType
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields


def read_model(raw: bytes) -> tuple[Definition, str]:
    """The values of a tokenizer.json for the bytes of a tokenizer.model, and the text of its end
    token. Raises :class:`llm.errors.Refused` unless it is BPE.
    """
    pieces, scores, types = list[str](), list[float](), list[int]()
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    for field, value in _fields(raw):
        if field == 1 and isinstance(value, bytes):
            require(len(pieces) < MOST_IDS, f"more than {MOST_IDS:,} pieces")
            piece = dict(_fields(value))
            text, score = piece.get(1, b""), piece.get(2, b"\0" * 4)
            require(isinstance(text, bytes) and isinstance(score, bytes), "a damaged piece")
            assert isinstance(text, bytes) and isinstance(score, bytes)
            pieces.append(text.decode("utf-8", errors="surrogateescape"))
            scores.append(struct.unpack("<f", score)[0] if len(score) == 4 else 0.0)
            sort = piece.get(3, NORMAL)
            types.append(sort if isinstance(sort, int) else NORMAL)
        elif field in (2, 3) and isinstance(value, bytes):
            (trainer if field == 2 else normalizer).update(_fields(value))
    kind = trainer.get(3, UNIGRAM)
    name = KINDS.get(kind, "damaged") if isinstance(kind, int) else "damaged"
    require(name == "BPE", f"a model of the type {name}, and only BPE is supported")
    charsmap = normalizer.get(2, b"")
    assert isinstance(charsmap, bytes | int)
    definition = definition_of_pieces(
        pieces, scores, types, prefix=bool(normalizer.get(3, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        single_spaces=bool(normalizer.get(4, 1)),
    )  # fmt: skip
    end = next((text for text in ("</s>", "<|endoftext|>") if text in pieces), "")
    return definition, end


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(raw, at)
            yield number, value
            continue
        require(kind in (FIXED64, BYTES, FIXED32), "it is not a message of protocol buffers")
        size = {FIXED64: 8, FIXED32: 4}.get(kind)
        if size is None:
            size, at = _varint(raw, at)
        require(size <= len(raw) - at, "it ends too early")
        yield number, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 64, 7):
        require(at < len(raw), "it ends too early")
        value |= (raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return value, at
    require(False, "a number of more than 64 bits")
    return 0, at


def divide_by_type(pieces: list[str], types: list[int]) -> tuple[dict[str, int], list[Definition]]:
    """The ids of the ordinary pieces and bytes, and the entries of ``added_tokens``."""
    numbered = list(zip(range(len(pieces)), pieces, types, strict=True))
    vocab = {piece: number for number, piece, kind in numbered if kind in (NORMAL, BYTE)}
    require(len(vocab) == sum(kind in (NORMAL, BYTE) for kind in types), "a token occurs twice")
    added = [
        added_token(number, piece, special=kind != USER)
        for number, piece, kind in numbered
        if kind in (UNKNOWN, CONTROL, USER)
    ]
    return vocab, added


def definition_of_pieces(
    pieces: list[str], scores: list[float], types: list[int], prefix: bool,
    charsmap: bytes = b"", single_spaces: bool = False,
) -> Definition:  # fmt: skip
    """The values of a tokenizer.json. ``types``: a number for each piece as above; ``prefix``:
    a space is put in front of a text; ``charsmap``: sentencepiece's compiled normalization;
    ``single_spaces``: white space at the ends is removed, and runs of it become one space.
    """
    vocab, added = divide_by_type(pieces, types)
    score = {piece: scores[vocab[piece]]
             for piece, kind in zip(pieces, types, strict=True) if kind == NORMAL}  # fmt: skip
    longest = max(map(len, pieces), default=0)
    require(longest <= LONGEST, f"a piece of {longest:,} characters is too long")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    first: list[Definition] = []
    if charsmap:
        precompiled = base64.b64encode(charsmap).decode()
        first.append({"type": "Precompiled", "precompiled_charsmap": precompiled})
    if single_spaces:
        first.append({"type": "Strip", "strip_left": True, "strip_right": True})
        pattern = {"Regex": " {2,}"}
        first.append({"type": "Replace", "pattern": pattern, "content": " "})
    if prefix:
        first.append({"type": "Prepend", "prepend": SPACE_MARK})
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*first, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, *strip,
        ]},
        "model": {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": _merges(score)},
    }  # fmt: skip


def _merges(score: dict[str, float]) -> list[list[str]]:
    """Each pair of pieces that joins into a piece, ordered by the score of that piece."""
    pairs = []
    for piece in sorted(score, key=lambda piece: -score[piece]):
        for middle in range(1, len(piece)):
            left, right = piece[:middle], piece[middle:]
            if left in score and right in score:
                pairs.append([left, right])
    return pairs
