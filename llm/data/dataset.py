"""A prepared folder: its splits, memory-mapped, and their tokenizer."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.batches import (
    Batch,
    BatchSampler,
    Sampler,
    evaluation_batches,
    evaluation_windows,
    read_windows,
)
from llm.data.meta import AGAIN, META, Meta, read_meta
from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import Refused, require

READ = 1 << 20  # bytes hashed at a time
# With fewer bytes per token GPT-2's tokenizer does not suit a text. Measured: Korean 1.2, Chinese
# 1.5, Greek and Russian 1.7, Japanese 2.1 (a token is a part of a character); German and Python
# code 2.5 (a token is several characters).
FEW_BYTES = 2.3
LARGE = 1 << 30  # bytes; verifying more would delay the start of a run too much


@dataclass(frozen=True)
class Dataset:
    """Token ids of the splits and their tokenizer; ``digest`` identifies the contents."""

    folder: Path
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    digest: str
    bytes_per_token: float  # UTF-8 bytes of validation text per token
    text: str = ""  # sha256 of the text and its splits, independent of the tokenizer
    test: np.ndarray | None = None  # only with data.test_fraction; training never reads it

    @staticmethod
    def open(folder: Path) -> "Dataset":
        """Map the files of ``folder`` and check their sizes; :meth:`verify` checks the contents.

        Raises :class:`llm.errors.Refused` naming the file that does not fit ``meta.json``.
        """
        meta = read_meta(folder)
        tokenizer = from_json(meta.tokenizer)
        require(
            tokenizer.vocab_size == meta.vocab_size,
            f"{folder / META} says vocab_size={meta.vocab_size}, but its tokenizer has "
            f"{tokenizer.vocab_size}: {AGAIN}",
        )
        require(
            meta.max_id < meta.vocab_size,
            f"{folder} holds token id {meta.max_id}, beyond its vocabulary of {meta.vocab_size}: "
            f"{AGAIN}",
        )
        ids = {split: _map(folder, split, meta) for split in meta.splits}
        bytes_per_token = meta.bytes.val / meta.tokens.val
        digest, text = meta.digest(), meta.text_digest()
        dataset = Dataset(
            folder, ids["train"], ids["val"], tokenizer, digest, bytes_per_token, text,
            ids.get("test"),
        )  # fmt: skip
        if meta.conversations is None:
            return dataset
        from llm.data.conversation_dataset import ConversationDataset  # it is a kind of Dataset

        return ConversationDataset.of(dataset)

    @property
    def notes(self) -> list[str]:
        """Warnings about training on this dataset."""
        if self.tokenizer.kind != "gpt2" or self.bytes_per_token >= FEW_BYTES:
            return []
        return [
            f"GPT-2's tokenizer has {self.bytes_per_token:.1f} bytes a token in this text, where "
            "English has 3 to 4: it splits characters into parts. data.tokenizer=char or byte "
            "may suit this text better"
        ]

    def mixed(self, share: float) -> "Dataset":
        """The same data, with this share of general text in training batches of conversations."""
        return self

    def notes_on(self, block_size: int) -> list[str]:
        """Warnings about training on rows of ``block_size``."""
        return []

    def epochs(self, sequences: int, block_size: int) -> float:
        """How often training reads the data in so many sequences."""
        return sequences * block_size / max(1, len(self.train))

    @property
    def template(self) -> dict[str, Any]:
        """The values of the chat template; empty for text."""
        return {}

    @property
    def size(self) -> int:
        """Bytes of all splits."""
        return int(sum(ids.nbytes for ids in self.splits.values()))

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """The token ids of each split, by its name."""
        splits = {"train": self.train, "val": self.val}
        return splits if self.test is None else splits | {"test": self.test}

    def verify(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read all splits; compare digests, bytes of text and the largest id with ``meta.json``.

        ``on_progress`` is called with (bytes done, bytes in all). Raises
        :class:`llm.errors.Refused` naming the file that is damaged.
        """
        meta, done, max_id = read_meta(self.folder), 0, 0
        require(
            meta.digest() == self.digest,
            f"{self.folder} changed while it was read: start again",
        )
        lengths = self.tokenizer.byte_lengths
        for split in meta.splits:
            path, sha256, n_bytes = self.folder / f"{split}.bin", hashlib.sha256(), 0
            for raw in pieces_of(path):
                ids = np.frombuffer(raw, _dtype(meta), len(raw) // _dtype(meta).itemsize)
                sha256.update(raw)
                max_id = max(max_id, int(ids.max(initial=0)))
                n_bytes += int(lengths[np.minimum(ids, len(lengths) - 1)].sum())
                done += len(raw)
                on_progress(done, self.size)
            require(
                sha256.hexdigest() == getattr(meta.sha256, split),
                f"{path} is damaged: its sha256 differs from the one in {META}: {AGAIN}",
            )
            expected = getattr(meta.bytes, split)
            require(
                n_bytes == expected,
                f"{path} holds {n_bytes} bytes of text, but {META} says {expected}: {AGAIN}",
            )
        require(
            max_id == meta.max_id,
            f"{self.folder} holds ids up to {max_id}, but {META} says {meta.max_id}: {AGAIN}",
        )

    def sampler(
        self, block_size: int, batch_size: int, seed: int, overfit_batches: int = 0
    ) -> Sampler:
        """Training batches."""
        vocab_size = self.tokenizer.vocab_size
        return BatchSampler(self.train, block_size, batch_size, seed, overfit_batches, vocab_size)

    def validation(
        self, block_size: int, batch_size: int, sequences: int | None, split: str = "val"
    ) -> tuple[int, Iterator[Batch]]:
        """The number of batches for evaluation (:func:`evaluation_batches`), and an iterator that
        reads them one by one.
        """
        ids, vocab_size = self.splits[split], self.tokenizer.vocab_size
        batches = evaluation_batches(ids, block_size, batch_size, sequences)
        return len(batches), (read_windows(ids, b, block_size, vocab_size) for b in batches)

    def protocol(
        self, block_size: int, sequences: int | None, split: str = "val"
    ) -> dict[str, Any]:
        """What :meth:`validation` reads: the first fields of
        :class:`llm.evaluation.loss.EvaluationProtocol`.
        """
        windows, stride = evaluation_windows(len(self.splits[split]), block_size, sequences)
        return {
            "split": split, "text": self.text, "block_size": block_size, "windows": windows,
            "stride": stride,
        }  # fmt: skip

    def check(self, block_size: int, vocab_size: int) -> None:
        """Raise :class:`llm.errors.Refused` if a model of this shape cannot be trained on it."""
        for split, tokens in self.splits.items():
            require(
                len(tokens) > block_size,
                f"{self.folder}/{split}.bin has {len(tokens)} tokens, and model.block_size="
                f"{block_size} needs {block_size + 1}: use more text, or a smaller block_size",
            )
        self.check_vocabulary(vocab_size)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise :class:`llm.errors.Refused` if a model of ``vocab_size`` lacks some of the ids."""
        require(
            self.tokenizer.vocab_size <= vocab_size,
            f"model.vocab_size={vocab_size} is smaller than the vocabulary of {self.folder}, "
            f"{self.tokenizer.vocab_size}",
        )


def pieces_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in pieces."""
    try:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(READ), b"")
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


def _dtype(meta: Meta) -> np.dtype[Any]:
    return np.dtype(meta.dtype).newbyteorder("<")


def _map(folder: Path, split: str, meta: Meta) -> np.ndarray:
    return map_file(folder / f"{split}.bin", _dtype(meta), getattr(meta.tokens, split))


def map_file(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """A file of ``count`` numbers, memory-mapped; :class:`llm.errors.Refused` for another size."""
    size = path.stat().st_size if path.is_file() else -1
    require(
        size == count * dtype.itemsize,
        f"{path} has {size} bytes, but {META} says {count} tokens of {dtype.itemsize}: {AGAIN}",
    )
    try:
        return np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
