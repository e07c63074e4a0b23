"""Each token of a text counts once, with the context that window and stride give it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.tokenizer import ByteTokenizer, CharTokenizer
from llm.errors import Refused
from llm.evaluation.text import Windows, evaluate_tokens, text_tokens
from llm.functional import IGNORED
from llm.model.gpt import GPT

LENGTHS = np.arange(12)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(n_layer=1, n_embed=16, head_size=8, block_size=8, vocab_size=12)
    with torch.no_grad():
        model.embed.weight.mul_(50)
    return model.eval()


def ids(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(12, size=count).astype(np.uint16)


@torch.no_grad()
def nats(model: GPT, tokens: np.ndarray, size: int, stride: int) -> tuple[float, int]:
    """The sum over all targets, one forward pass for each."""
    total, n_bytes = 0.0, 0
    for target in range(1, len(tokens)):
        # The end of the first window that reaches the target, and of the text at most
        steps = max(0, -(-(target - size) // stride))
        end = min(size + steps * stride, len(tokens) - 1)
        start = max(0, end - size)
        window = torch.from_numpy(tokens[start:target].astype(np.int64))[None]
        expected = torch.tensor([int(tokens[target])])
        total += float(F.cross_entropy(model(window)[0, -1:], expected))
        n_bytes += int(LENGTHS[tokens[target]])
    return total, n_bytes


@settings(max_examples=30)
@given(count=st.integers(2, 60), size=st.integers(1, 8), data=st.data())
def test_each_token_but_the_first_counts_once_in_the_first_window_that_reaches_it(
    model: GPT, count: int, size: int, data: st.DataObject
) -> None:
    stride, rows = data.draw(st.integers(1, size)), data.draw(st.integers(1, 5))
    tokens = ids(count)
    found, windows = evaluate_tokens(model, tokens, LENGTHS, size, stride, rows)
    total, n_bytes = nats(model, tokens, size, stride)
    assert (found.tokens, found.bytes) == (count - 1, n_bytes)
    assert found.loss == pytest.approx(total / (count - 1), rel=1e-4)
    assert windows.size == min(size, count - 1)


@given(count=st.integers(2, 400), size=st.integers(1, 40), stride=st.integers(1, 40))
def test_the_windows_lie_inside_the_text_and_their_counted_targets_are_a_partition(
    count: int, size: int, stride: int
) -> None:
    size = min(size, count - 1)
    tokens = np.arange(count)
    _, batches = Windows(count, size, min(stride, size)).batches(tokens, 3)
    counted = [targets[targets != IGNORED] for _, targets in batches]
    assert np.concatenate(counted).tolist() == list(range(1, count))


def test_an_id_beyond_the_vocabulary_is_refused(model: GPT) -> None:
    with pytest.raises(Refused, match="token id 12 is beyond the vocabulary of 12"):
        evaluate_tokens(model, np.array([1, 12, 3, 4]), LENGTHS)
    with pytest.raises(Refused, match="fewer than two tokens"):
        evaluate_tokens(model, np.array([1]), LENGTHS)


def test_a_text_starts_with_the_end_of_the_text_before_it_if_there_is_such_a_token() -> None:
    assert text_tokens(ByteTokenizer(), "ab").tolist() == [256, 97, 98]
    assert text_tokens(CharTokenizer("ab"), "ab").tolist() == [0, 1]
