"""Token files -> batches. A batch is a pure function of (seed, step): training can start anywhere.

In each epoch every token except the first is a target once. The order of the windows comes from a
keyed bijection instead of a shuffled list: it needs no memory proportional to the data, and
nothing has to be saved in a checkpoint.
"""

from typing import Any, Protocol

import numpy as np

from llm.data.meta import AGAIN
from llm.errors import Refused
from llm.functional import IGNORED

# Inputs and targets, both (B, T) int64. The rows of conversations have a third array, which numbers
# the conversations that are packed into a row.
Batch = tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray]
AHEAD = 64  # steps whose windows are computed at once; step by step, numpy's overhead dominates


class Sampler(Protocol):
    """Training batches, a pure function of the step."""

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step ``step`` (from 1)."""

    def positions(self, step: int) -> np.ndarray:
        """Where its rows start in the tokens: (batch_size,) int64."""


class BatchSampler:
    """Training batches: ``batch(step)`` for steps 1, 2, 3, ... in any order.

    Window ``i`` of an epoch starts at ``i * block_size`` minus an offset. The offset changes with
    the epoch, so that windows do not always start at the same tokens. The windows cover every
    target once; the first and the last may reach beyond the text (see :func:`read_windows`).
    """

    def __init__(
        self,
        tokens: np.ndarray,
        block_size: int,
        batch_size: int,
        seed: int,
        overfit_batches: int = 0,
        vocab_size: int | None = None,
    ) -> None:
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.seed, self.overfit_batches, self.vocab_size = seed, overfit_batches, vocab_size
        # Number and windows of the block of AHEAD steps that was computed last.
        self.cached: tuple[int, np.ndarray] | None = None
        # At least half a window more than the targets fill, so that the offset can vary.
        targets = len(tokens) - 1
        self.windows = -(-(targets + block_size // 2) // block_size)
        surplus = self.windows * block_size - targets
        # A smaller offset would leave the last window without a target, a larger one the first.
        self.least, self.most = max(0, surplus - block_size + 1), min(block_size - 1, surplus)

    def batch(self, step: int) -> Batch:
        """Inputs and targets of optimizer step ``step`` (from 1), each (batch_size, block_size)
        int64. At least one target of each row is not ``IGNORED``.
        """
        return read_windows(self.tokens, self.starts(step), self.block_size, self.vocab_size)

    def positions(self, step: int) -> np.ndarray:
        """Where the rows of a batch start in the tokens: (batch_size,) int64."""
        return moved_inside(self.tokens, self.starts(step), self.block_size)

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step start, perhaps outside the text: (batch_size,) int64."""
        index = step - 1 if self.overfit_batches == 0 else (step - 1) % self.overfit_batches
        block, place = divmod(index, AHEAD)
        if self.cached is None or self.cached[0] != block:
            self.cached = block, self._starts_of_block(block)
        starts: np.ndarray = self.cached[1][place]
        return starts

    def _starts_of_block(self, block: int) -> np.ndarray:
        """Where the windows of ``AHEAD`` steps start: (AHEAD, batch_size) int64."""
        count = AHEAD * self.batch_size
        return self.starts_of(block * count + np.arange(count)).reshape(AHEAD, self.batch_size)

    def starts_of(self, sequence: np.ndarray) -> np.ndarray:
        """Where windows start, by their numbers (from 0) in the order of training: int64."""
        sequence = sequence.astype(np.uint64)
        epoch, place = np.divmod(sequence, np.uint64(self.windows))
        key = mix(epoch + mix(np.uint64(self.seed)))
        random = mix(key + np.uint64(1)) % np.uint64(self.most - self.least + 1)
        offset = self.least + random.astype(np.int64)
        window = permute(place, self.windows, key).astype(np.int64)
        starts: np.ndarray = window * self.block_size - offset
        return starts


def evaluation_batches(
    tokens: np.ndarray, block_size: int, batch_size: int, sequences: int | None
) -> list[np.ndarray]:
    """Where windows start, in batches: ``sequences`` windows at fixed places, evenly spread.

    None: the whole split, so that every token except the first is a target once.
    """
    available = _available(len(tokens), block_size)
    wanted = available if sequences is None else min(sequences, available)
    starts = np.arange(wanted) * available // wanted * block_size
    return [starts[i : i + batch_size] for i in range(0, wanted, batch_size)]


def evaluation_windows(n_tokens: int, block_size: int, sequences: int | None) -> tuple[int, float]:
    """How many windows :func:`evaluation_batches` reads, and the mean distance of their starts in
    tokens: ``block_size`` for the whole split, more if the windows are spread.
    """
    available = _available(n_tokens, block_size)
    wanted = available if sequences is None else min(sequences, available)
    return wanted, available * block_size / max(1, wanted)


def _available(n_tokens: int, block_size: int) -> int:
    """The number of windows that fill a split."""
    return -(-max(0, n_tokens - 1) // block_size)


def read_windows(
    tokens: np.ndarray, starts: np.ndarray, block_size: int, vocab_size: int | None = None
) -> Batch:
    """Inputs and targets, each (len(starts), block_size) int64.

    A window that reaches beyond the text is moved inside, so that all rows have the same length.
    The targets that it then shares with its neighbour become ``IGNORED``, so that none counts
    twice. Raises :class:`llm.errors.Refused` for an id that is not below ``vocab_size``.
    """
    inside = moved_inside(tokens, starts, block_size)
    rows: np.ndarray = tokens[inside[:, None] + np.arange(block_size + 1)].astype(np.int64)
    # A large dataset is not verified at the start, so ids are checked here.
    if vocab_size is not None and (largest := int(rows.max(initial=0))) >= vocab_size:
        name = getattr(tokens, "filename", "the data")
        raise Refused(
            f"{name} holds token id {largest}, beyond its vocabulary of {vocab_size}: {AGAIN}"
        )
    # Contiguous copies: the transfer of a strided view to a GPU would block.
    inputs, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
    if (inside != starts).any():
        column = np.arange(block_size) - (starts - inside)[:, None]
        targets[(column < 0) | (column >= block_size)] = IGNORED
    return inputs, targets


def moved_inside(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> np.ndarray:
    """``starts``, moved so that each window lies inside ``tokens``."""
    inside: np.ndarray = np.clip(starts, 0, len(tokens) - 1 - block_size)
    return inside


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment


def mix(x: np.ndarray | np.uint64) -> Any:
    """splitmix64's finaliser (Steele et al. 2014): each bit of a uint64 changes all others."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Apply the bijection of 0 .. size - 1 with the key ``key`` to each ``index`` (uint64).

    A Feistel network over the next even power of two is a bijection for any round function (Luby &
    Rackoff 1988). A result outside 0 .. size - 1 goes through it again until it is inside, which is
    still a bijection ("cycle walking", Black & Rogaway 2002).
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    result = index.copy()
    outside = np.ones(index.shape, dtype=bool)
    with np.errstate(over="ignore"):
        while outside.any():
            left, right = result[outside] >> half, result[outside] & mask
            round_key = key[outside] + GOLDEN  # with key 0 all rounds would be the same
            for n in range(6):
                change = mix(right + round_key * np.uint64(2 * n + 3)) & mask
                left, right = right, left ^ change
            result[outside] = left << half | right
            outside = result >= size
    return result
