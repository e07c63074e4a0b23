"""Text -> ``train.bin``, ``val.bin`` and ``meta.json``.

The text is read twice, in pieces: once to count its characters and collect its alphabet, once to
tokenize it. Memory does not grow with its size.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.config import DataConfig
from llm.data.corpus import Corpus, Document
from llm.data.meta import FORMAT_VERSION, Counts, Digests, Meta, write_meta
from llm.data.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer
from llm.errors import require

Progress = Callable[[int, int], None]  # called with (bytes done, bytes in all)
# A piece of text, or None where a document ends, and the split that it belongs to.
Part = tuple[str, str | None]
CHUNK = 1 << 20  # characters to wait for before they are tokenized
# Characters without a place to cut; GPT-2's BPE takes seconds for one such word.
LONGEST = 4 * CHUNK


class TokenWriter:
    """Tokenizes text and appends the ids to a file."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.file, self.tokenizer = path.open("wb"), tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.waiting = ""
        self.tokens = self.bytes = self.max_id = 0
        self.sha256 = hashlib.sha256()

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        """Append ``text``. The tokens of a document are the same in pieces as in one piece.

        Raises :class:`llm.errors.Refused` for text without a place to cut.
        """
        self.waiting += text
        if len(self.waiting) >= CHUNK:
            cut = self.tokenizer.last_cut(self.waiting)
            require(
                cut or len(self.waiting) < LONGEST,
                f"the text has {LONGEST:,} characters in a row without a space or punctuation, "
                "one word for GPT-2's tokenizer: take data.tokenizer=char or byte",
            )
            self._encode(self.waiting[:cut])
            self.waiting = self.waiting[cut:]

    def end_document(self) -> None:
        """Append the end-of-text id, or a newline for a tokenizer without one."""
        if self.tokenizer.end_of_text is None:
            self.write("\n")
        else:
            self._flush()
            self._append(np.array([self.tokenizer.end_of_text]))

    def finish(self) -> None:
        """Tokenize the rest, and wait until the file is on the disk."""
        self._flush()
        self.file.flush()
        os.fsync(self.file.fileno())

    def _flush(self) -> None:
        self._encode(self.waiting)
        self.waiting = ""

    def _encode(self, text: str) -> None:
        if text:
            self.bytes += len(text.encode())
            self._append(self.tokenizer.encode(text))

    def _append(self, ids: np.ndarray) -> None:
        highest = int(ids.max())
        if highest >= self.tokenizer.vocab_size:  # a cast to uint16 would wrap silently
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
    with (
        TokenWriter(folder / "train.bin", tokenizer) as train,
        TokenWriter(folder / "val.bin", tokenizer) as val,
    ):
        writers = {"train": train, "val": val}
        special = config.allow_special and tokenizer.end_of_text is not None
        border = None if config.val_fraction is None else int(count * (1 - config.val_fraction))
        for split, text in split_documents(documents, pieces, border, special):
            if text is None:
                writers[split].end_document()
            else:
                writers[split].write(text)
        for split, writer in writers.items():
            writer.finish()
            holds_text = writer.bytes > 0 or writer.tokens == 0
            require(holds_text, f"data.val_fraction leaves {split} no text: take another")
    # A path that is not Unicode has surrogates in Python, which cannot be written as UTF-8.
    description = corpus.description.encode(errors="backslashreplace").decode()
    meta = Meta(
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
    write_meta(folder, meta)


def split_documents(
    documents: list[Document], pieces: Callable[[Document], Iterator[str]],
    border: int | None, special: bool,
) -> Iterator[Part]:  # fmt: skip
    """Each piece of text with its split, in order, and None where one of several documents ends.

    The first ``border`` characters are for training, as nanoGPT splits; without a border, all
    documents that are not held out. With ``special``, each ``<|endoftext|>`` ends a document as
    well; if the border lies inside it, it belongs to the training text.
    """
    position, split = 0, "train"
    for document in documents:
        for text in at_marks(pieces(document)) if special else pieces(document):
            if border is None:
                yield "val" if document.held_out else "train", text
                continue
            left = max(0, border - position)
            if text is None:
                yield "train" if left else "val", None
                position += len(END_OF_TEXT)
                continue
            if text[:left]:
                yield "train", text[:left]
            if text[left:]:
                yield "val", text[left:]
            position += len(text)
        if len(documents) > 1:
            if border is None:
                split = "val" if document.held_out else "train"
            else:
                split = "train" if position <= border else "val"
            yield split, None


def at_marks(pieces: Iterable[str]) -> Iterator[str | None]:
    """The text between ``<|endoftext|>`` marks, in pieces, and None for each mark."""
    rest = ""
    for piece in pieces:
        *parts, rest = (rest + piece).split(END_OF_TEXT)
        for part in parts:
            yield part
            yield None
        inner = len(END_OF_TEXT) - 1  # a mark may begin in these last characters
        if len(rest) > inner:
            yield rest[:-inner]
            rest = rest[-inner:]
    if rest:
        yield rest
