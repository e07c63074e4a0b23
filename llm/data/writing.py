"""Text -> ``train.bin``, ``val.bin`` and ``meta.json``.

The text is read twice, in pieces, so that it may be larger than memory: first to count its
characters and collect its alphabet, then to tokenize it.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.data.config import DataConfig
from llm.data.corpus import Corpus, Document
from llm.data.meta import FORMAT_VERSION, META, Counts, Digests, Meta
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
                "one word for GPT-2's tokenizer: take data.tokenizer=char or byte",
            )
            self._encode(cut)

    def end_document(self) -> None:
        """Append the end-of-text id, or a newline for a tokenizer without one."""
        if self.tokenizer.end_of_text is None:
            self.write("\n")
        else:
            self._encode(len(self.pending))
            self._append(np.array([self.tokenizer.end_of_text]))

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
            self._append(self.tokenizer.encode(text))

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
    """Write the three files of ``corpus`` into ``folder``.

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

    count, alphabet = 0, {"\n"} if len(documents) > 1 else set()
    for document in documents:
        for piece in pieces(document):
            count += len(piece)
            alphabet.update(piece)
    require(count, f"{corpus.description} holds no text")
    tokenizer = build_tokenizer(config.tokenizer, "".join(sorted(alphabet)))
    require(
        config.vocab_size in (None, tokenizer.vocab_size),
        f"data.vocab_size={config.vocab_size}, but the text has {tokenizer.vocab_size} "
        "different characters",
    )
    special = config.allow_special and tokenizer.end_of_text is not None
    border = None if config.val_fraction is None else int(count * (1 - config.val_fraction))
    with (
        (folder / "train.bin").open("wb") as train_file,
        (folder / "val.bin").open("wb") as val_file,
    ):
        train, val = TokenWriter(train_file, tokenizer), TokenWriter(val_file, tokenizer)
        for held_out, text in split_documents(documents, pieces, border, special):
            writer = val if held_out else train
            if text is None:
                writer.end_document()
            else:
                writer.write(text)
        for split, writer in (("train", train), ("val", val)):
            writer.finish()
            require(writer.bytes, f"data.val_fraction leaves {split} no text: take another")
    meta = describe(corpus, config, made_from, tokenizer, train, val)
    write_durably(folder / META, sealed(asdict(meta)).encode())


def describe(
    corpus: Corpus, config: DataConfig, made_from: dict[str, Any], tokenizer: Tokenizer,
    train: TokenWriter, val: TokenWriter,
) -> Meta:  # fmt: skip
    """The contents of ``meta.json``."""
    # A path that is not Unicode has surrogates in Python, which cannot be written as UTF-8.
    description = corpus.description.encode(errors="backslashreplace").decode()
    return Meta(
        format_version=FORMAT_VERSION,
        name=config.name,
        dtype=train.dtype.name,
        byte_order="little",
        vocab_size=tokenizer.vocab_size,
        max_id=max(train.max_id, val.max_id),
        tokens=Counts(train.tokens, val.tokens),
        bytes=Counts(train.bytes, val.bytes),
        sha256=Digests(train.sha256.hexdigest(), val.sha256.hexdigest()),
        source={"description": description, "sha256": corpus.sha256},
        made_from=made_from,
        tokenizer=tokenizer.to_json(),
    )


def split_documents(
    documents: list[Document], pieces: Callable[[Document], Iterator[str]],
    border: int | None, special: bool,
) -> Iterator[tuple[bool, str | None]]:  # fmt: skip
    """Yield (is it for validation, a piece of text) in order. None instead of a text marks the end
    of one of several documents.

    The first ``border`` characters are for training, as in nanoGPT; without a border, all documents
    that are not held out. With ``special`` each ``<|endoftext|>`` also ends a document; if the
    border lies inside it, it belongs to the training text.
    """
    position = 0
    for document in documents:
        for text in split_at_marks(pieces(document)) if special else pieces(document):
            if border is None:
                yield document.held_out, text
                continue
            left = max(0, border - position)
            if text is None:
                yield not left, None
                position += len(END_OF_TEXT)
                continue
            if text[:left]:
                yield False, text[:left]
            if text[left:]:
                yield True, text[left:]
            position += len(text)
        if len(documents) > 1:
            yield document.held_out if border is None else position > border, None


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
