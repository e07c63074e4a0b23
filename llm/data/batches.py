"""Token files -> batches. A batch is a pure function of (seed, step): training can start anywhere.

In each epoch every token but the first is a target once. A keyed bijection gives the order of the
windows, in place of a shuffled list: no memory proportional to the data, and nothing to save in a
checkpoint.
"""

from typing import Any

import numpy as np

from llm.data.meta import AGAIN
from llm.errors import Refused, require
from llm.functional import IGNORED

Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets, both (B, T) int64
AHEAD = 64  # steps whose windows are computed at once: one by one, most of the time is overhead


class BatchSampler:
    """Training batches: ``batch(step)`` for steps 1, 2, 3, ... in any order.

    Window ``i`` of an epoch starts at ``i * block_size`` minus an offset, which is another in each
    epoch, so that not all windows begin at the same tokens. Side by side they cover every target
    once; the first and the last may reach beyond the text (see :func:`read_windows`). An id in a
    batch that is not below ``vocab_size`` is refused.
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
        require(
            len(tokens) > block_size,
            f"{len(tokens)} tokens are too few for block_size={block_size}",
        )
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.seed, self.overfit_batches, self.vocab_size = seed, overfit_batches, vocab_size
        self.known: tuple[int, np.ndarray] | None = None  # the last AHEAD steps and their windows
        # At least half a window more than the targets fill, so that there are offsets to choose.
        targets = len(tokens) - 1
        self.windows = -(-(targets + block_size // 2) // block_size)
        surplus = self.windows * block_size - targets
        # With a smaller offset the last window would hold no target, with a larger one the first.
        self.least, self.most = max(0, surplus - block_size + 1), min(block_size - 1, surplus)

    def batch(self, step: int) -> Batch:
        """Inputs and targets of optimizer step ``step`` (from 1): each (batch_size, block_size)
        int64, at least one target of each row not ignored.
        """
        return read_windows(self.tokens, self.starts(step), self.block_size, self.vocab_size)

    def positions(self, step: int) -> np.ndarray:
        """Where the rows of a batch start in the tokens: (batch_size,) int64."""
        return moved_inside(self.tokens, self.starts(step), self.block_size)

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step start, even if they reach beyond the text: (batch_size,)
        int64.
        """
        index = step - 1 if self.overfit_batches == 0 else (step - 1) % self.overfit_batches
        block, place = divmod(index, AHEAD)
        if self.known is None or self.known[0] != block:
            self.known = block, self._starts_of_block(block)
        starts: np.ndarray = self.known[1][place]
        return starts

    def _starts_of_block(self, block: int) -> np.ndarray:
        """The windows of ``AHEAD`` steps: (AHEAD, batch_size) int64."""
        count = AHEAD * self.batch_size
        sequence = np.arange(block * count, (block + 1) * count, dtype=np.uint64)
        epoch, place = np.divmod(sequence, np.uint64(self.windows))
        key = mix(epoch + mix(np.uint64(self.seed)))
        varied = mix(key + np.uint64(1)) % np.uint64(self.most - self.least + 1)
        offset = self.least + varied.astype(np.int64)
        window = permute(place, self.windows, key).astype(np.int64)
        starts: np.ndarray = window * self.block_size - offset
        return starts.reshape(AHEAD, self.batch_size)


def evaluation_batches(
    tokens: np.ndarray, block_size: int, batch_size: int, sequences: int | None
) -> list[np.ndarray]:
    """Where windows start, in batches: ``sequences`` windows at fixed places, spread evenly over a
    split.

    None: the whole split, in which every token but the first is a target once.
    """
    available = -(-max(0, len(tokens) - 1) // block_size)
    wanted = available if sequences is None else min(sequences, available)
    starts = np.arange(wanted) * available // wanted * block_size
    return [starts[i : i + batch_size] for i in range(0, wanted, batch_size)]


def read_windows(
    tokens: np.ndarray, starts: np.ndarray, block_size: int, vocab_size: int | None = None
) -> Batch:
    """Inputs and targets, each (len(starts), block_size) int64.

    A window that reaches beyond the text is moved inside, and the targets that it then shares with
    its neighbour are ignored: every row has the same length, and no target counts twice.
    Raises :class:`llm.errors.Refused` for an id that is not below ``vocab_size``.
    """
    inside = moved_inside(tokens, starts, block_size)
    rows: np.ndarray = tokens[inside[:, None] + np.arange(block_size + 1)].astype(np.int64)
    # A dataset that is too large to be verified at the start is checked as it is read.
    if vocab_size is not None and (largest := int(rows.max(initial=0))) >= vocab_size:
        name = getattr(tokens, "filename", "the data")
        raise Refused(f"{name} holds {beyond(largest, vocab_size)}")
    # Contiguous copies: a GPU copies a view with gaps only after waiting.
    inputs, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
    if (inside != starts).any():
        column = np.arange(block_size) - (starts - inside)[:, None]
        targets[(column < 0) | (column >= block_size)] = IGNORED
    return inputs, targets


def moved_inside(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> np.ndarray:
    """``starts`` of windows, moved so that all their inputs and targets are in ``tokens``."""
    inside: np.ndarray = np.clip(starts, 0, len(tokens) - 1 - block_size)
    return inside


def beyond(largest: int, vocab_size: int) -> str:
    """The end of a sentence about a file with an id that its tokenizer does not have."""
    return f"token id {largest}, beyond its vocabulary of {vocab_size}: {AGAIN}"


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment


def mix(x: np.ndarray | np.uint64) -> Any:
    """splitmix64's finaliser (Steele et al. 2014): each bit of a uint64 changes all others."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Apply a bijection of 0 .. size - 1, which depends on ``key``, to each ``index`` (uint64).

    A Feistel network over the next even power of two is a bijection whatever its round function
    (Luby & Rackoff 1988). Results beyond ``size`` go through it again until they are inside ("cycle
    walking", Black & Rogaway 2002): this is still a bijection.
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    result = index.copy()
    outside = np.ones(index.shape, dtype=bool)
    with np.errstate(over="ignore"):
        while outside.any():
            left, right = result[outside] >> half, result[outside] & mask
            round_key = key[outside] + GOLDEN  # seed 0 has the key 0: all rounds would be the same
            for n in range(6):
                change = mix(right + round_key * np.uint64(2 * n + 3)) & mask
                left, right = right, left ^ change
            result[outside] = left << half | right
            outside = result >= size
    return result
