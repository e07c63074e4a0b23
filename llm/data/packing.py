"""Packs conversations side by side into rows of ``block_size``, and draws batches of these rows.

A conversation of L tokens takes L - 1 places, each with a token and the next token as its target.
Targets outside of answers are ``IGNORED``. A conversation that is longer than a row is cut at its
end, and left out if no answer remains.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm.data.batches import AHEAD, Batch, BatchSampler, mix, permute, read_windows
from llm.data.meta import AGAIN
from llm.errors import Refused
from llm.functional import IGNORED

PARTS = 1_000_000  # a share of rows is rounded to millionths


@dataclass(frozen=True)
class Conversations:
    """The conversations of a split, one after the other."""

    tokens: np.ndarray
    is_answer: np.ndarray  # uint8: 1 for each token of an answer
    starts: np.ndarray  # where each conversation starts, and at last where the last one ends

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation: int64."""
        return np.diff(self.starts.astype(np.int64))

    def size_for(self, share: float) -> int:
        """The smallest ``block_size`` in which this share of conversations is whole."""
        return int(np.quantile(self.lengths, share, method="inverted_cdf")) - 1


class Rows:
    """The conversations of a split, packed into rows of ``block_size``."""

    def __init__(self, conversations: Conversations, block_size: int, vocab_size: int) -> None:
        self.conversations, self.block_size = conversations, block_size
        self.vocab_size = vocab_size
        lengths, starts = conversations.lengths - 1, conversations.starts.astype(np.int64)
        too_long = np.flatnonzero(lengths > block_size)
        # A row has block_size tokens, and its last target is one token further.
        ends = starts[too_long] + block_size + 1
        left_out = [
            number
            for number, start, end in zip(too_long, starts[too_long] + 1, ends, strict=True)
            if not conversations.is_answer[start:end].any()
        ]
        self.cut, self.left_out = len(too_long), len(left_out)
        used = np.delete(np.arange(len(lengths)), left_out)
        row = pack(np.minimum(lengths[used], block_size), block_size)
        order = np.argsort(row, kind="stable")
        self.members = used[order]  # conversations, row by row
        self.first = np.searchsorted(row[order], np.arange(row.max(initial=-1) + 2))

    def __len__(self) -> int:
        return len(self.first) - 1

    def position(self, row: int) -> int:
        """The place in the tokens where the first conversation of a row starts."""
        return int(self.conversations.starts[self.members[self.first[row]]])

    def read(self, rows: np.ndarray) -> Batch:
        """Inputs, targets and documents, each (len(rows), block_size) int64."""
        shape = (len(rows), self.block_size)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.full(shape, -1, np.int64)  # padding
        for index, row in enumerate(rows):
            at = 0
            for number in self.members[self.first[row] : self.first[row + 1]]:
                start, end = map(int, self.conversations.starts[number : number + 2])
                count = min(end - start - 1, self.block_size)
                here, place = slice(at, at + count), slice(start + 1, start + 1 + count)
                inputs[index, here] = self.conversations.tokens[start : start + count]
                answers = self.conversations.is_answer[place] != 0
                targets[index, here][answers] = self.conversations.tokens[place][answers]
                documents[index, here] = start  # a different number for each conversation
                at += count
        largest = max(int(inputs.max(initial=0)), int(targets.max(initial=0)))
        if largest >= self.vocab_size:  # large datasets are not verified when a run starts
            name = getattr(self.conversations.tokens, "filename", "the data")
            raise Refused(
                f"{name} holds token id {largest}, beyond its vocabulary of {self.vocab_size}: "
                f"{AGAIN}"
            )
        return inputs, targets, documents


def pack(lengths: np.ndarray, size: int) -> np.ndarray:
    """The row of each of the ``lengths`` (1 .. size), so that no row has more than ``size``.

    Best fit decreasing: the longest is packed first, each into the row with the least space that
    is enough.
    """
    rows, count = np.empty(len(lengths), np.int64), 0
    waiting: list[list[int]] = [[] for _ in range(size + 1)]  # rows by their space
    spaces = 0  # bit n is set if a row has n places left
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1  # the lowest bit
            row = waiting[space].pop()
            if not waiting[space]:
                spaces ^= 1 << space
        else:
            space, row, count = size, count, count + 1
        rows[index] = row
        if space > length:
            waiting[space - length].append(row)
            spaces |= 1 << (space - length)
    return rows


class RowSampler:
    """Training batches of packed rows; the share ``mix_share`` of them are windows of ``text``.

    In each epoch every row is read once. As in :class:`llm.data.batches.BatchSampler`, the order
    is a keyed bijection, so that a batch is a pure function of (seed, step).
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        overfit_batches: int = 0,
        text: BatchSampler | None = None,
        mix_share: float = 0.0,
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.overfit_batches, self.text = overfit_batches, text
        self.parts = round(mix_share * PARTS) if text is not None else 0
        self.cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def batch(self, step: int) -> Batch:
        """Inputs, targets and documents of optimizer step ``step`` (from 1)."""
        places, is_text = self.places(step)
        packed = self.rows.read(places[~is_text])
        if self.text is None or not is_text.any():
            return packed
        shape = (self.batch_size, self.rows.block_size)
        sampler = self.text
        windows = read_windows(
            sampler.tokens, places[is_text], self.rows.block_size, sampler.vocab_size
        )
        one_document = np.zeros_like(windows[0])
        whole = tuple(np.empty(shape, np.int64) for _ in range(3))
        for array, row, window in zip(whole, packed, (*windows, one_document), strict=False):
            array[~is_text], array[is_text] = row, window
        return whole[0], whole[1], whole[2]

    def positions(self, step: int) -> np.ndarray:
        """Where each row starts in the tokens, or a window in its text: (batch_size,) int64."""
        places, is_text = self.places(step)
        found = [
            max(0, int(place)) if from_text else self.rows.position(place)
            for place, from_text in zip(places, is_text, strict=True)
        ]
        return np.array(found, np.int64)

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a step, its number or the start of its window of text, and whether it is
        text.
        """
        index = step - 1 if self.overfit_batches == 0 else (step - 1) % self.overfit_batches
        block, place = divmod(index, AHEAD)
        if self.cached is None or self.cached[0] != block:
            self.cached = block, *self._places_of_block(block)
        return self.cached[1][place], self.cached[2][place]

    def _places_of_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`places` of ``AHEAD`` steps: (AHEAD, batch_size)."""
        count = AHEAD * self.batch_size
        sequence = block * count + np.arange(count, dtype=np.int64)
        # Of the first n rows, floor(n * share) are text: the share is exact and evenly spread.
        before = sequence * self.parts // PARTS
        is_text = (sequence + 1) * self.parts // PARTS > before
        places = np.empty(count, np.int64)
        places[~is_text] = self._rows_of((sequence - before)[~is_text])
        if self.text is not None:
            places[is_text] = self.text.starts_of(before[is_text])
        shape = (AHEAD, self.batch_size)
        return places.reshape(shape), is_text.reshape(shape)

    def _rows_of(self, sequence: np.ndarray) -> np.ndarray:
        """The rows at these places in the order of training."""
        epoch, place = np.divmod(sequence.astype(np.uint64), np.uint64(len(self.rows)))
        key = mix(epoch + mix(np.uint64(self.seed)))
        return permute(place, len(self.rows), key).astype(np.int64)
