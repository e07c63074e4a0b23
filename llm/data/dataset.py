"""A prepared folder as two memory-mapped splits, checked."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.batches import Batch, BatchSampler, beyond, evaluation_batches, read_windows
from llm.data.meta import AGAIN, META, SPLITS, read_meta
from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import Refused, require
from llm.sealed import Plain

READ = 1 << 20  # bytes hashed at a time
# Bytes a token, below which GPT-2's tokenizer does not suit a text. Measured: Korean 1.2, Chinese
# 1.5, Greek and Russian 1.7, Japanese 2.1 (more than one token a character); German and Python code
# 2.5 (several characters a token).
SPLIT_BADLY = 2.3
LARGE = 1 << 30  # bytes; more take longer to verify than a run should take to start


@dataclass(frozen=True)
class Dataset:
    """A prepared folder: two memory-mapped splits, their tokenizer, and ``digest``, which names
    their contents.
    """

    folder: Path
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    digest: str
    bytes_per_token: float  # UTF-8 bytes of validation text per token

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Map the files of ``folder`` and compare their sizes with ``meta.json``, whose counts must
        be possible; what is in the files is left to :meth:`verify`.

        Raises :class:`llm.errors.Refused` naming the file that does not fit.
        """
        meta = read_meta(folder)
        tokenizer = from_json(meta["tokenizer"])
        train, val = (_map(folder, split, meta) for split in SPLITS)
        _require_possible(folder, meta, tokenizer)
        return cls(
            folder=folder,
            train=train,
            val=val,
            tokenizer=tokenizer,
            digest=_digest(meta, tokenizer),
            bytes_per_token=meta["bytes"]["val"] / max(1, meta["tokens"]["val"]),
        )

    @property
    def notes(self) -> list[str]:
        """Warnings for those who train on it."""
        if self.tokenizer.kind != "gpt2" or not 0 < self.bytes_per_token < SPLIT_BADLY:
            return []
        return [
            f"GPT-2's tokenizer has {self.bytes_per_token:.1f} bytes a token in this text, where "
            "English has 3 to 4: it splits characters into parts. data.tokenizer=char or byte "
            "may suit this text better"
        ]

    @property
    def size(self) -> int:
        """Bytes of both splits."""
        return int(self.train.nbytes + self.val.nbytes)

    def verify(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read both splits and compare their digests, their largest id and the bytes of their text
        with ``meta.json``.

        ``on_progress`` is called with (bytes done, bytes in all). Raises
        :class:`llm.errors.Refused` naming the file that is no longer what was prepared.
        """
        meta, largest, done = read_meta(self.folder), 0, 0
        same = _digest(meta, self.tokenizer) == self.digest
        require(same, f"{self.folder} changed while it was read: start again")

        def read(count: int) -> None:
            nonlocal done
            done += count
            on_progress(done, self.size)

        for split in SPLITS:
            path = self.folder / f"{split}.bin"
            found = _contents(path, np.dtype(meta["dtype"]).newbyteorder("<"), self.tokenizer, read)
            require(
                found.sha256 == meta["sha256"][split],
                f"{path} is damaged: its sha256 is not that in {META}: {AGAIN}",
            )
            size = self.tokenizer.vocab_size
            require(found.largest < size, f"{path} holds {beyond(found.largest, size)}")
            require(
                found.bytes == meta["bytes"][split],
                f"{path} holds {found.bytes} bytes of text, but {META} says "
                f"{meta['bytes'][split]}: {AGAIN}",
            )
            largest = max(largest, found.largest)
        require(
            largest == meta["max_id"],
            f"{self.folder} holds ids up to {largest}, but {META} says {meta['max_id']}: {AGAIN}",
        )

    def sampler(
        self, block_size: int, batch_size: int, seed: int, overfit_batches: int = 0
    ) -> BatchSampler:
        """Batches of the training split."""
        vocab_size = self.tokenizer.vocab_size
        return BatchSampler(self.train, block_size, batch_size, seed, overfit_batches, vocab_size)

    def validation(
        self, block_size: int, batch_size: int, sequences: int | None
    ) -> tuple[int, Iterator[Batch]]:
        """The number of batches of the validation split (:func:`evaluation_batches`), and the
        batches, each read when it is asked for.
        """
        every = evaluation_batches(self.val, block_size, batch_size, sequences)
        vocabulary = self.tokenizer.vocab_size
        return len(every), (read_windows(self.val, s, block_size, vocabulary) for s in every)

    def check(self, block_size: int, vocab_size: int) -> None:
        """Raise :class:`llm.errors.Refused` unless a model of this shape can be trained on the
        data.
        """
        for split, tokens in (("train", self.train), ("val", self.val)):
            require(
                len(tokens) > block_size,
                f"{self.folder}/{split}.bin has {len(tokens)} tokens, and model.block_size="
                f"{block_size} needs {block_size + 1}: use more text, or a smaller block_size",
            )
        require(
            self.tokenizer.vocab_size <= vocab_size,
            f"model.vocab_size={vocab_size} is smaller than the vocabulary of {self.folder}, "
            f"{self.tokenizer.vocab_size}",
        )


def _digest(meta: Plain, tokenizer: Tokenizer) -> str:
    identity = json.dumps([meta["sha256"], meta["dtype"], tokenizer.digest()], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def _require_possible(folder: Path, meta: Plain, tokenizer: Tokenizer) -> None:
    """Raise :class:`llm.errors.Refused` for counts that no text of this tokenizer can have."""
    vocab_size, max_id = meta["vocab_size"], meta["max_id"]
    require(
        tokenizer.vocab_size == vocab_size,
        f"{folder / META} says vocab_size={vocab_size}, but its tokenizer has "
        f"{tokenizer.vocab_size}: {AGAIN}",
    )
    require(max_id >= 0, f"{folder / META} says max_id={max_id}, less than 0: {AGAIN}")
    require(max_id < vocab_size, f"{folder} holds {beyond(max_id, vocab_size)}")
    lengths = tokenizer.byte_lengths
    for split in SPLITS:
        tokens, count = meta["tokens"][split], meta["bytes"][split]
        least, most = max(min(1, tokens), int(lengths.min()) * tokens), int(lengths.max()) * tokens
        require(
            least <= count <= most,
            f"{folder / META} says bytes.{split}={count}, but the text of {tokens} tokens has "
            f"{least} to {most}: {AGAIN}",
        )


@dataclass(frozen=True)
class _Contents:
    """What a token file holds: ``bytes`` of text in ids below the vocabulary."""

    sha256: str
    largest: int
    bytes: int


def _contents(
    path: Path, dtype: np.dtype[Any], tokenizer: Tokenizer, read: Callable[[int], None]
) -> _Contents:
    digest, largest, count = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            while piece := file.read(READ):
                digest.update(piece)
                ids = np.frombuffer(piece, dtype, len(piece) // dtype.itemsize)
                largest = max(largest, int(ids.max(initial=0)))
                if largest < tokenizer.vocab_size:  # else there is no length to look up
                    times = np.bincount(ids, minlength=tokenizer.vocab_size)
                    count += int(times @ tokenizer.byte_lengths)
                read(len(piece))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    return _Contents(digest.hexdigest(), largest, count)


def _map(folder: Path, split: str, meta: Plain) -> np.ndarray:
    path, tokens = folder / f"{split}.bin", meta["tokens"][split]
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    size = path.stat().st_size if path.is_file() else -1
    require(
        size == tokens * dtype.itemsize,
        f"{path} has {size} bytes, but {META} says {tokens} tokens of {dtype.itemsize}: {AGAIN}",
    )
    try:
        mapped: np.ndarray = (
            np.memmap(path, dtype=dtype, mode="r") if tokens else np.zeros(0, dtype)
        )
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    return mapped
