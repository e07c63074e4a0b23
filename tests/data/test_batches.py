"""Batches depend on seed and step only, cover every token once an epoch and need no memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data.batches import (
    BatchSampler,
    evaluation_batches,
    evaluation_windows,
    permute,
    read_windows,
)
from llm.functional import IGNORED

quick = settings(max_examples=80, deadline=None, database=None)
SIZES = st.integers(1, 5000)
KEYS = st.integers(0, 2**64 - 1)


def permuted(size: int, key: int) -> list[int]:
    index = np.arange(size, dtype=np.uint64)
    return permute(index, size, np.full(size, key, np.uint64)).tolist()


def sampler(length: int, block_size: int = 8, batch_size: int = 4, seed: int = 1) -> BatchSampler:
    return BatchSampler(np.arange(length), block_size, batch_size, seed)


@pytest.mark.parametrize("block_size", [1, 8, 99])
def test_targets_are_the_inputs_one_token_later(block_size: int) -> None:
    many = sampler(100, block_size)
    x, y = many.batch(3)
    assert x.shape == y.shape == (4, block_size)
    assert x.dtype == y.dtype == np.int64
    assert ((y == x + 1) | (y == IGNORED)).all()  # tokens that count up
    assert (y != IGNORED).any(axis=1).all()
    assert x[:, 0].tolist() == many.positions(3).tolist()


@quick
@given(st.integers(9, 400), st.integers(1, 7), KEYS, st.lists(st.integers(1, 200), max_size=5))
def test_a_batch_depends_on_seed_and_step_and_not_on_how_it_was_reached(
    length: int, batch_size: int, seed: int, detours: list[int]
) -> None:
    in_order = sampler(length, batch_size=batch_size, seed=seed)
    expected = [in_order.batch(step)[0].tolist() for step in range(1, 10)][-1]
    other = sampler(length, batch_size=batch_size, seed=seed)
    for step in detours:
        other.batch(step)
    assert other.batch(9)[0].tolist() == expected


def counted(y: np.ndarray) -> list[int]:
    """The targets that are not ignored, sorted."""
    return sorted(y[y != IGNORED].tolist())


@quick
@given(st.integers(2, 150), st.integers(1, 20), st.integers(2, 9), KEYS)
@example(100, 8, 4, 0)
@example(97, 8, 4, 0)  # 96 targets: twelve windows would hold them, and leave no offset
@example(9, 8, 2, 0)
def test_every_token_but_the_first_is_a_target_once_an_epoch(
    length: int, block_size: int, batch_size: int, seed: int
) -> None:
    block_size = min(block_size, length - 1)
    tried = sampler(length, block_size, batch_size, seed)
    windows = tried.windows
    assert windows - 1 <= -(-(length - 1) // block_size) <= windows
    steps = range(1, 3 * windows // batch_size + 2)
    rows = np.concatenate([tried.batch(step)[1] for step in steps])
    for epoch in range(3):
        targets = rows[epoch * windows : (epoch + 1) * windows]
        assert counted(targets) == list(range(1, length))
        assert (targets != IGNORED).any(axis=1).all()  # no window is read in vain


@quick
@given(size=SIZES, key=KEYS)
@example(1, 0)
@example(4097, 2**64 - 1)
def test_permute_is_a_bijection_of_any_size(size: int, key: int) -> None:
    assert sorted(permuted(size, key)) == list(range(size))


def indices(one: BatchSampler, step: int) -> np.ndarray:
    """Which windows of their epochs are in the batch of a step."""
    windows: np.ndarray = (one.starts(step) + one.most) // one.block_size
    return windows


@pytest.mark.parametrize("windows", [10, 100, 3000])
def test_every_seed_and_every_epoch_has_an_order_of_its_own(windows: int) -> None:
    orders = []
    for seed in (0, 1, 2, 1337, 2**63 - 1):
        one = sampler((windows - 1) * 8 + 4, batch_size=windows, seed=seed)
        assert one.windows == windows
        orders += [tuple(indices(one, epoch).tolist()) for epoch in (1, 2, 3)]
    assert len(set(orders)) == 15
    for order in orders:  # by chance, one window in all is followed by the next of the text
        assert sorted(order) == list(range(windows))
        assert np.count_nonzero(np.diff(order) == 1) <= 5


@pytest.mark.parametrize("tail", range(8))
def test_windows_of_two_epochs_start_at_different_tokens(tail: int) -> None:
    one = sampler(73 + tail)
    starts = np.concatenate([one.starts(step) for step in range(1, 100)])
    assert len({int(start) % 8 for start in starts}) >= 4


def test_every_window_comes_first_in_about_as_many_epochs() -> None:
    epochs = sampler(19 * 8 + 4, batch_size=20 * 2000)
    assert epochs.windows == 20
    firsts = indices(epochs, 1)[::20]
    counts = np.bincount(firsts, minlength=20)
    assert (len(counts), counts.sum()) == (20, 2000)
    assert counts.min() > 55 and counts.max() < 145  # 100 +- 4.6 standard deviations


def test_a_billion_tokens_are_sampled_without_memory_for_them(tmp_path: Path) -> None:
    with open(tmp_path / "train.bin", "wb") as file:
        file.truncate(2_000_000_000)  # a sparse file, without blocks on the disk
    tokens = np.memmap(tmp_path / "train.bin", dtype="<u2", mode="r")
    tracemalloc.start()
    try:
        huge = BatchSampler(tokens, block_size=128, batch_size=8, seed=0)
        for step in (1, 10**4, 10**9, 10**12):
            assert huge.batch(step)[0].shape == (8, 128)
        assert np.ptp(huge.positions(1)) > 10**8
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # bytes


def test_overfit_batches_repeats_the_first_batches_of_the_run() -> None:
    all_data = sampler(1000)
    few = BatchSampler(all_data.tokens, 8, 4, seed=1, overfit_batches=3)
    expected = [all_data.batch(step)[0].tolist() for step in (1, 2, 3)]
    assert len({str(batch) for batch in expected}) == 3
    assert [few.batch(step)[0].tolist() for step in range(1, 8)] == (expected * 3)[:7]


@quick
@given(st.integers(0, 700), st.integers(1, 20), st.integers(1, 9), st.none() | st.integers(0, 60))
def test_evaluation_windows_are_fixed_spread_evenly_and_do_not_overlap(
    length: int, block_size: int, batch_size: int, sequences: int | None
) -> None:
    length = max(length, block_size + 1) if length > 1 else length  # 0, 1: no window fits
    tokens = np.arange(length)
    batches = evaluation_batches(tokens, block_size, batch_size, sequences)
    starts = [int(start) for batch in batches for start in batch]
    whole = evaluation_batches(tokens, block_size, 1000, sequences)
    available = -(-max(0, length - 1) // block_size)
    assert starts == [int(start) for batch in whole for start in batch]
    assert len(starts) == (available if sequences is None else min(available, sequences))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    count, stride = evaluation_windows(length, block_size, sequences)
    assert count == len(starts)
    if starts:
        assert stride == pytest.approx(available * block_size / len(starts))
        assert sequences is not None or stride == block_size
        ends = [*starts[1:], available * block_size]
        gaps = {end - start for start, end in zip(starts, ends, strict=True)}
        assert starts[0] == 0
        assert min(gaps) >= block_size
        assert max(gaps) - min(gaps) <= block_size
    for batch in batches:
        x, y = read_windows(tokens, batch, block_size)
        assert (x[:-1, 0] == batch[:-1]).all()  # only the last window may have been moved
        assert ((y == x + 1) | (y == IGNORED)).all()
        assert (y != IGNORED).any(axis=1).all()
    if sequences is None and length > 1:
        read = [read_windows(tokens, batch, block_size)[1] for batch in batches]
        assert counted(np.concatenate(read)) == list(range(1, length))
