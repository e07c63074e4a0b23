"""Text -> ``train.bin``, ``val.bin``, perhaps ``test.bin``, and ``meta.json``.

The text is read twice, in pieces, so that it may be larger than memory: first to count its
characters and collect its alphabet, then to tokenize it.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.data.config import DataConfig
from llm.data.corpus import Corpus, Document
from llm.data.meta import FORMAT_VERSION, META, SPLITS, Counts, Digests, Meta
from llm.data.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer
from llm.disk import write_durably
from llm.errors import require
from llm.sealed import sealed

Progress = Callable[[int, int], None]  # called with (bytes done, bytes in all)
CHUNK = 1 << 20  # characters tokenized at a time
LONGEST = 4 * CHUNK  # characters without a place to cut: GPT-2's BPE takes seconds for that


class TokenWriter:
    """Tokenizes text and appends the ids to a file."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self.file, self.tokenizer = file, tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.pending = ""  # text not yet tokenized
        self.continues = False  # the pending text continues a document
        self.tokens = self.bytes = self.max_id = 0
        self.sha256 = hashlib.sha256()

    def write(self, text: str) -> None:
        """Append a piece of a document. The division into pieces does not change the tokens.

        Raises :class:`llm.errors.Refused` for text without a place to cut.
        """
        self.pending += text
        if len(self.pending) >= CHUNK:
            cut = self.tokenizer.last_cut(self.pending)
            require(
                cut or len(self.pending) < LONGEST,
                f"the text has {LONGEST:,} characters in a row without a space or punctuation, "
                "one word for this tokenizer: take data.tokenizer=char or byte",
            )
            self._encode(cut)

    def end_document(self) -> None:
        """Append the end-of-text id, or a newline for a tokenizer without one."""
        if self.tokenizer.end_of_text is None:
            self.write("\n")
        else:
            self._encode(len(self.pending))
            self._append(np.array([self.tokenizer.end_of_text]))
            self.continues = False

    def finish(self) -> None:
        """Tokenize the rest, and wait until the file is on the disk."""
        self._encode(len(self.pending))
        self.file.flush()
        os.fsync(self.file.fileno())

    def _encode(self, count: int) -> None:
        """Tokenize the first ``count`` pending characters."""
        text, self.pending = self.pending[:count], self.pending[count:]
        if text:
            self.bytes += len(text.encode())
            encode = self.tokenizer.encode_rest if self.continues else self.tokenizer.encode
            self._append(encode(text))
            self.continues = True

    def _append(self, ids: np.ndarray) -> None:
        highest = int(ids.max())
        if highest >= self.tokenizer.vocab_size:  # astype(uint16) would wrap silently
            raise ValueError(
                f"token id {highest} is beyond the vocabulary of {self.tokenizer.vocab_size}"
            )
        raw = ids.astype(self.dtype).tobytes()
        self.file.write(raw)
        self.sha256.update(raw)
        self.tokens += len(ids)
        self.max_id = max(self.max_id, highest)


def write_dataset(
    folder: Path, config: DataConfig, corpus: Corpus, made_from: dict[str, Any], progress: Progress
) -> None:
    """Write the files of ``corpus`` into ``folder``.

    Raises :class:`llm.errors.Refused` for text that cannot be used.
    """
    documents = corpus.load()
    done, total = 0, 2 * sum(document.size() for document in documents)

    def pieces(document: Document) -> Iterator[str]:
        nonlocal done
        for piece in document.pieces():
            yield piece
            done += len(piece.encode())
            progress(done, total)

    lengths, alphabet = list[int](), {"\n"} if len(documents) > 1 else set()
    for document in documents:
        lengths.append(0)
        for piece in pieces(document):
            lengths[-1] += len(piece)
            alphabet.update(piece)
    require(sum(lengths), f"{corpus.description} holds no text")
    tokenizer = build_tokenizer(str(config.tokenizer), "".join(sorted(alphabet)))
    require(
        config.vocab_size in (None, tokenizer.vocab_size),
        f"data.vocab_size={config.vocab_size}, but the text has {tokenizer.vocab_size} "
        f"different {'characters' if tokenizer.kind == 'char' else 'tokens'}",
    )
    special = config.allow_special and tokenizer.end_of_text is not None
    parts = parts_of(config, documents, lengths)
    with ExitStack() as files:
        writers = {
            split: TokenWriter(files.enter_context((folder / f"{split}.bin").open("wb")), tokenizer)
            for split in SPLITS
            if split != "test" or config.test_fraction is not None
        }
        for split, text in split_documents(documents, pieces, parts, special):
            if text is None:
                writers[split].end_document()
            else:
                writers[split].write(text)
        for split, writer in writers.items():
            writer.finish()
            is_vals = split == "val" or config.test_fraction is None
            key = "val_fraction" if is_vals else "test_fraction"
            require(writer.bytes, f"data.{key} leaves {split} no text: take another")
    meta = describe(corpus, config, made_from, tokenizer, writers)
    write_durably(folder / META, sealed(meta.plain()).encode())


def describe(
    corpus: Corpus, config: DataConfig, made_from: dict[str, Any], tokenizer: Tokenizer,
    writers: Mapping[str, TokenWriter],
) -> Meta:  # fmt: skip
    """The contents of ``meta.json``."""
    # A path that is not Unicode has surrogates in Python, which cannot be written as UTF-8.
    description = corpus.description.encode(errors="backslashreplace").decode()
    return Meta(
        format_version=FORMAT_VERSION,
        name=config.name,
        dtype=writers["train"].dtype.name,
        byte_order="little",
        vocab_size=tokenizer.vocab_size,
        max_id=max(writer.max_id for writer in writers.values()),
        tokens=Counts(**{split: writer.tokens for split, writer in writers.items()}),
        bytes=Counts(**{split: writer.bytes for split, writer in writers.items()}),
        sha256=Digests(**{split: writer.sha256.hexdigest() for split, writer in writers.items()}),
        source={"description": description, "sha256": corpus.sha256},
        made_from=made_from,
        tokenizer=tokenizer.to_json(),
    )


Part = tuple[str, int]  # a split, and the position in characters where this part of it ends


def parts_of(
    config: DataConfig, documents: Sequence[Document], lengths: Sequence[int]
) -> list[Part]:
    """Divide the text, whose documents have ``lengths`` characters, among the splits.

    With ``val_fraction`` the text is cut into train, val and test, in this order. Without it whole
    documents are chosen: the ones marked ``held_out`` are for validation, and as many as make
    ``test_fraction`` of the text for testing, its first choices and then the last documents.
    """
    count, test = sum(lengths), config.test_fraction or 0.0
    if config.val_fraction is not None:
        train = int(count * (1 - config.val_fraction - test))
        val = int(count * (1 - test))
        return [("train", train), ("val", val)] + [("test", count)] * (test > 0)
    splits = ["val" if document.held_out else "train" for document in documents]
    wanted = test * count
    numbers = reversed(range(len(documents)))
    for number in sorted(numbers, key=lambda number: not documents[number].test_first):
        if wanted > 0 and splits[number] == "train":
            splits[number] = "test"
            wanted -= lengths[number]
    return list(zip(splits, accumulate(lengths), strict=True))


def split_documents(
    documents: list[Document], pieces: Callable[[Document], Iterator[str]],
    parts: Sequence[Part], special: bool,
) -> Iterator[tuple[str, str | None]]:  # fmt: skip
    """Yield (its split, a piece of text) in order. None instead of a text marks the end of one of
    several documents.

    With ``special`` each ``<|endoftext|>`` also ends a document. It belongs to the part in which
    it starts, even if the part ends inside it.
    """
    position = 0

    def part_at(place: int) -> Part:
        # A text that is growing reaches beyond the last part. It is refused in the end.
        return next((part for part in parts if place < part[1]), (parts[-1][0], sys.maxsize))

    for document in documents:
        for text in split_at_marks(pieces(document)) if special else pieces(document):
            if text is None:
                yield part_at(position)[0], None
                position += len(END_OF_TEXT)
                continue
            start, end = position, position + len(text)
            while position < end:
                split, border = part_at(position)
                last = min(border, end)
                yield split, text[position - start : last - start]
                position = last
        if len(documents) > 1:
            yield part_at(position - 1)[0], None  # after its last character


def split_at_marks(pieces: Iterable[str]) -> Iterator[str | None]:
    """The text between ``<|endoftext|>`` marks, in pieces, and None for each mark."""
    rest = ""
    for piece in pieces:
        *parts, rest = (rest + piece).split(END_OF_TEXT)
        for part in parts:
            yield part
            yield None
        cut = max(0, len(rest) - len(END_OF_TEXT) + 1)  # a mark may start in the last 12 characters
        yield rest[:cut]
        rest = rest[cut:]
    yield rest
