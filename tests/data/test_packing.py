"""Conversations are packed without loss, and batches of rows are a function of the step."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.batches import BatchSampler
from llm.data.packing import Conversations, Rows, RowSampler, pack
from llm.errors import Refused
from llm.functional import IGNORED

quick = settings(max_examples=60, deadline=None, database=None)
SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30)


def made(shapes: list[tuple[int, int]]) -> Conversations:
    """Conversations of (tokens of the question, tokens of the answer); token ids count up."""
    count = sum(map(sum, shapes))
    is_answer = np.concatenate([np.repeat([0, 1], shape) for shape in shapes]).astype(np.uint8)
    starts = np.concatenate([[0], np.cumsum([sum(shape) for shape in shapes])]).astype("<u8")
    return Conversations(np.arange(count, dtype="<u2"), is_answer, starts)


@quick
@given(lengths=st.lists(st.integers(1, 20), max_size=60), size=st.integers(20, 30))
def test_no_row_is_overfull_and_packing_is_close_to_the_least(
    lengths: list[int], size: int
) -> None:
    rows = pack(np.array(lengths, np.int64), size)
    filled = np.bincount(rows, weights=lengths, minlength=0) if lengths else np.zeros(0)
    assert (filled <= size).all()
    least = -(-sum(lengths) // size)
    assert (
        len(filled) <= 11 / 9 * least + 1 or len(filled) <= sum(n > size / 2 for n in lengths) * 2
    )
    assert np.array_equal(rows, pack(np.array(lengths, np.int64), size))


def test_packing_a_hundred_thousand_lengths_leaves_hardly_any_space() -> None:
    lengths = np.random.default_rng(1).integers(5, 400, 100_000)
    started = time.perf_counter()
    rows = pack(lengths, 512)
    assert time.perf_counter() - started < 10  # a generous bound against quadratic time
    assert lengths.sum() / ((rows.max() + 1) * 512) > 0.99


@quick
@given(shapes=SHAPES, block_size=st.integers(1, 20))
def test_every_answer_that_fits_is_a_target_once(
    shapes: list[tuple[int, int]], block_size: int
) -> None:
    conversations = made(shapes)
    rows = Rows(conversations, block_size, 1000)
    inputs, targets, documents = rows.read(np.arange(len(rows)))
    expected, start = [], 0
    for question, answer in shapes:
        whole = range(start, start + question + answer)
        expected += [i for i in whole[: block_size + 1] if i >= start + question]
        start += question + answer
    learned = targets != IGNORED
    assert sorted(targets[learned].tolist()) == expected
    assert (inputs[learned] + 1 == targets[learned]).all()  # each after the token before it
    starts = conversations.starts.astype(np.int64)
    number = np.searchsorted(starts, inputs[learned], "right") - 1
    assert (starts[number] == documents[learned]).all()  # in its own document
    assert rows.cut == sum(sum(shape) - 1 > block_size for shape in shapes)
    assert rows.left_out == sum(question > block_size for question, _ in shapes)
    assert learned.any(axis=1).all()


def test_the_size_that_keeps_a_share_of_conversations_whole() -> None:
    conversations = made([(1, length) for length in range(1, 101)])
    size = conversations.size_for(0.95)
    assert (conversations.lengths - 1 <= size).mean() >= 0.95
    assert (conversations.lengths - 1 <= size - 1).mean() < 0.95


def sampler(seed: int = 1, overfit: int = 0, share: float = 0.0, batch_size: int = 4) -> RowSampler:
    rows = Rows(made([(2, 1 + n % 5) for n in range(60)]), 8, 1000)
    text = BatchSampler(np.arange(500, 900), 8, 1, seed, vocab_size=1000) if share else None
    return RowSampler(rows, batch_size, seed, overfit, text, share)


def test_each_epoch_reads_every_row_once_in_an_order_of_its_own() -> None:
    one = sampler(batch_size=1)
    count = len(one.rows)
    epochs = [[int(one.places(step)[0][0]) for step in range(1 + n * count, 1 + (n + 1) * count)]
              for n in range(3)]  # fmt: skip
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [int(sampler(seed=2, batch_size=1).places(s)[0][0]) for s in range(1, 9)] != epochs[0][
        :8
    ]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_batch_depends_only_on_the_step(share: float) -> None:
    in_order = sampler(share=share)
    expected = [in_order.batch(step) for step in range(1, 200)]
    anew = sampler(share=share)
    for step in (150, 3, 64, 65, 1):
        for mine, theirs in zip(anew.batch(step), expected[step - 1], strict=True):
            assert np.array_equal(mine, theirs)
        assert len(anew.positions(step)) == 4


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.9])
def test_the_share_of_text_is_exact_and_each_source_is_read_evenly(share: float) -> None:
    one, rows, text = sampler(share=share), 0, list[int]()
    steps = 600
    for step in range(1, steps + 1):
        inputs, targets, documents = one.batch(step)
        is_text = inputs[:, 0] >= 500
        assert not documents[is_text].any()
        assert (targets[is_text] != IGNORED).any(axis=1).all()
        rows += int(is_text.sum())
        text += inputs[one.places(step)[1]][:, 0].tolist()
    wanted = round(share * 1_000_000) * 4 * steps // 1_000_000
    assert sum(int(one.places(step)[1].sum()) for step in range(1, steps + 1)) == wanted
    assert rows == wanted
    assert min(text) < 510 and max(text) > 880


def test_overfitting_repeats_the_first_batches() -> None:
    few, whole = sampler(overfit=3), sampler()
    for step in range(1, 8):
        assert np.array_equal(few.batch(step)[0], whole.batch((step - 1) % 3 + 1)[0])


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    rows = Rows(made([(2, 3)]), 8, vocab_size=4)
    with pytest.raises(Refused, match="token id 4, beyond its vocabulary of 4"):
        rows.read(np.arange(1))
