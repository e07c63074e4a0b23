"""The loss is the mean over all targets, however they are batched; evaluating changes nothing."""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.evaluation.loss import Evaluation, LossFunction, evaluate
from llm.functional import IGNORED
from llm.model.gpt import GPT

VOCABULARY = 12
ONE_BYTE_EACH = torch.ones(256, dtype=torch.int64)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_embed": 16, "head_size": 8, "block_size": 8}
    model = GPT(**shape, vocab_size=VOCABULARY, dropout=0.5)
    with torch.no_grad():
        model.embed.weight.mul_(50)
    return model.eval()


def evaluated(model: LossFunction, batches: Iterable[Sequence[Tensor]]) -> Evaluation:
    return evaluate(model, batches, nullcontext(), ONE_BYTE_EACH)


def some_batch(rows: int, ignored: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    tokens, targets = torch.randint(VOCABULARY, (2, rows, 8), generator=generator)
    targets.view(-1)[[place for place in ignored if place < targets.numel()]] = IGNORED
    return tokens, targets


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    ignored=st.lists(st.integers(0, 63), max_size=60),
)
def test_it_is_plain_cross_entropy_over_all_targets_however_they_are_batched(
    model: GPT, cuts: list[int], ignored: list[int]
) -> None:
    tokens, targets = some_batch(sum(cuts), [place for place in ignored if place != 0])
    with torch.no_grad():
        logits = model(tokens)
    wanted = F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1), ignore_index=IGNORED)
    batches = zip(tokens.split(cuts), targets.split(cuts), strict=True)
    found = evaluated(model, batches)
    assert found.loss == pytest.approx(wanted.item(), rel=1e-5)
    assert found.tokens == int((targets != IGNORED).sum())


def test_it_draws_no_random_number_and_computes_no_gradient(model: GPT) -> None:
    before = torch.get_rng_state()
    evaluated(model, [some_batch(4, [])])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autocast_decides_the_precision(model: GPT) -> None:
    batches = [some_batch(4, [])] * 2
    exact = evaluated(model, batches).loss
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    rounded = evaluate(model, batches, autocast, ONE_BYTE_EACH).loss
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("batches", [[], [some_batch(1, list(range(8)))]], ids=["none", "ignored"])
def test_nothing_to_evaluate_raises(model: GPT, batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluated(model, batches)


def test_a_uniform_guess_has_the_vocabulary_size_as_perplexity() -> None:
    def uniform(tokens: Tensor, targets: Tensor, reduction: str) -> Tensor:
        logits = torch.zeros(targets.numel(), 256)
        return F.cross_entropy(logits, targets.view(-1), reduction=reduction)

    assert evaluated(uniform, [some_batch(2, [])]).perplexity == pytest.approx(256, rel=1e-5)


def test_bits_per_byte_divide_by_the_bytes_of_the_evaluated_targets() -> None:
    def always(tokens: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return math.log(2) * (targets != IGNORED).sum()  # one bit a token

    lengths = torch.tensor([1, 2, 3, 0])
    targets = torch.tensor([[0, 1, IGNORED], [2, 2, 3]])
    found = evaluate(always, [(targets, targets)], nullcontext(), lengths)
    assert (found.tokens, found.bytes) == (5, 9)
    assert found.bits_per_byte == pytest.approx(5 / 9)
    marks = torch.full((1, 4), 3)
    assert evaluate(always, [(marks, marks)], nullcontext(), lengths).bits_per_byte is None


def test_a_perplexity_that_overflows_is_none() -> None:
    assert Evaluation(700.0, 1, 1).perplexity == math.exp(700.0)
    assert Evaluation(710.0, 1, 1).perplexity is None
