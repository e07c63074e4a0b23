"""Penalties and filters agree with transformers', and draws follow the probabilities."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from llm.sampling.choose import EXCLUDED, draw, filter_logits, penalise
from llm.sampling.options import SamplingOptions

V = 9
TEXT = [1, 2, 3, 1, 2, 4, 1, 2]
LOGITS = torch.randn(2, V, generator=torch.Generator().manual_seed(0)) * 3
logit_lists = st.lists(
    st.integers(-160, 160).map(lambda n: n / 8), min_size=1, max_size=30, unique=True
)
few = settings(max_examples=60, deadline=None)


def penalised(prompt: list[int], drawn: list[int], **how: Any) -> Tensor:
    options = SamplingOptions(**how)
    return penalise(LOGITS, options, [prompt + drawn, [0]], [len(prompt), 1])


def filtered(logits: Tensor, **how: Any) -> Tensor:
    """Logits (B, V) after the filters, in the whole vocabulary again."""
    options = SamplingOptions(**{"temperature": 1.0, "top_k": None} | how)
    values, ids = filter_logits(logits, options)
    assert torch.equal(ids, ids.sort(dim=-1).values)
    return torch.full_like(logits, EXCLUDED).scatter(1, ids, values)


def candidates(logits: Tensor) -> list[int]:
    return (logits[0] != EXCLUDED).nonzero().flatten().tolist()


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_agrees_with_transformers(penalty: float) -> None:
    found = penalised(TEXT[:3], TEXT[3:], repetition_penalty=penalty)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    assert torch.allclose(found[:1], theirs(torch.tensor([TEXT]), LOGITS[:1].clone()))
    assert torch.allclose(found[1:], theirs(torch.tensor([[0]]), LOGITS[1:].clone()))


@few
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 6))
def test_no_repeat_ngram_excludes_what_transformers_excludes(text: list[int], n: int) -> None:
    found = penalised(text[:1], text[1:], no_repeat_ngram=n)
    wanted = LOGITS[:1]
    if len(text) + 1 >= n:  # of a shorter text transformers reads beyond the start
        wanted = NoRepeatNGramLogitsProcessor(n)(torch.tensor([text]), LOGITS[:1].clone())
    assert torch.equal(found[:1], wanted)


def test_frequency_and_presence_penalties_do_not_count_the_prompt() -> None:
    wanted = LOGITS.clone()
    wanted[0, 3] -= 2 * 0.5 + 0.25
    wanted[0, 5] -= 0.5 + 0.25
    penalties = {"frequency_penalty": 0.5, "presence_penalty": 0.25}
    assert torch.allclose(penalised([1, 2], [3, 3, 5], **penalties), wanted)


def test_no_token_is_excluded_if_all_would_be() -> None:
    found = penalised(list(range(V)), [], no_repeat_ngram=1)
    assert torch.equal(found[0], LOGITS[0])
    assert found[1, 0] == EXCLUDED


def test_a_prompt_may_contain_ids_of_the_padded_vocabulary() -> None:
    how = {"repetition_penalty": 2.0, "no_repeat_ngram": 1, "presence_penalty": 1.0}
    assert torch.equal(penalised([V + 3, 1], [], **how), penalised([1], [], **how))


@few
@given(values=logit_lists, k=st.integers(1, 40))
def test_top_k_keeps_the_k_highest(values: list[float], k: int) -> None:
    highest = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    found = filtered(torch.tensor([values]), top_k=k)
    assert candidates(found) == sorted(highest)
    assert found[0, highest].tolist() == pytest.approx([values[i] - max(values) for i in highest])


@few
@given(
    values=logit_lists, p=st.floats(0.01, 0.99), least=st.floats(0.01, 1.0), heat=st.floats(0.3, 3)
)
def test_top_p_and_min_p_keep_what_transformers_keeps(
    values: list[float], p: float, least: float, heat: float
) -> None:
    logits = torch.tensor([values], dtype=torch.double)
    for theirs, how in [
        (TopPLogitsWarper(p), {"top_p": p}),
        (MinPLogitsWarper(least), {"min_p": least}),
    ]:
        wanted = theirs(torch.tensor([[0]]), logits / heat)
        assert candidates(filtered(logits, temperature=heat, **how)) == candidates(wanted)


@few
@given(values=logit_lists, temperature=st.floats(0.1, 10))
def test_the_temperature_flattens_or_sharpens_the_distribution(
    values: list[float], temperature: float
) -> None:
    logits = torch.tensor([values])
    found = filtered(logits, temperature=temperature).softmax(dim=-1)
    assert torch.allclose(found, (logits.double() / temperature).softmax(-1).float(), atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-45, 1e-300])
def test_a_tiny_temperature_leaves_the_most_likely(temperature: float) -> None:
    found = filtered(torch.tensor([[1.0, 80.0, -90.0]]), temperature=temperature).softmax(dim=-1)
    assert found.tolist() == [[0.0, 1.0, 0.0]]


def test_top_p_counts_shares_of_the_top_k_at_the_temperature() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert candidates(filtered(logits, top_k=2, top_p=0.55)) == [0]  # 4/7 of two, but 0.4 of all
    assert candidates(filtered(logits, top_p=0.55)) == [0, 1]
    assert candidates(filtered(logits, temperature=0.1, top_p=0.55)) == [0]
    assert candidates(filtered(logits, top_p=1.0)) == [0, 1, 2, 3]


def test_each_text_of_a_batch_is_filtered_alone() -> None:
    rows = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    how = {"top_k": 50, "top_p": 0.7, "min_p": 0.1}
    alone = torch.cat([filtered(row[None], **how) for row in rows])
    assert torch.equal(filtered(rows, **how), alone)


def test_draws_have_the_probabilities_of_the_logits() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.0, 0.3, 0.0]).log()
    uniform = torch.linspace(0, 1, 1001, dtype=torch.double)[:-1]
    found = torch.bincount(draw(logits.expand(1000, -1), uniform), minlength=6)
    assert (found - torch.tensor([200, 0, 500, 0, 300, 0])).abs().max() <= 1
    almost = torch.tensor([1 - 2.0**-53], dtype=torch.double)
    assert draw(logits[None], almost).tolist() == [4]
    assert draw(logits[None], torch.zeros(1)).tolist() == [0]
