"""Penalties and bars agree with transformers', and with what OpenAI's interface promises."""

from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from llm.model.gpt import GPT
from llm.sampling.filters import draw, min_p
from llm.sampling.generate import SamplingOptions, generate
from llm.sampling.repetition import Repetition
from tests.model.test_reference import randomised

V = 9
TEXT = [1, 2, 3, 1, 2, 4, 1, 2]
LOGITS = torch.randn(2, V, generator=torch.Generator().manual_seed(0)) * 3


def said(prompt: list[int], drawn: list[int], **how: Any) -> Repetition:
    chosen = {"repetition": 1.0, "frequency": 0.0, "presence": 0.0, "no_repeat_ngram": 0} | how
    found = Repetition([prompt, [0]], V, **chosen)
    for token in drawn:
        found.add(0, token)
    return found


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    found = said(TEXT[:3], TEXT[3:], repetition=penalty).apply(LOGITS)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    assert torch.allclose(found[:1], theirs(torch.tensor([TEXT]), LOGITS[:1].clone()))
    assert torch.allclose(found[1:], theirs(torch.tensor([[0]]), LOGITS[1:].clone()))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("length", range(1, 9))
def test_no_repeat_ngram_bars_what_transformers_bars(n: int, length: int) -> None:
    found = said(TEXT[:1], TEXT[1:length], no_repeat_ngram=n).apply(LOGITS)
    text = torch.tensor([TEXT[:length]])
    if length + 1 < n:  # transformers' own answer for shorter text is to bar nothing
        wanted = LOGITS[:1]
    else:
        wanted = NoRepeatNGramLogitsProcessor(n)(text, LOGITS[:1].clone())
    assert torch.equal(found[:1], wanted)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(p: float) -> None:
    theirs = MinPLogitsWarper(p)(torch.tensor([[0], [0]]), LOGITS.clone())
    assert torch.equal(min_p(LOGITS, p), theirs)


def test_frequency_and_presence_count_what_was_drawn_and_not_the_prompt() -> None:
    found = said([1, 2], [3, 3, 5], frequency=0.5, presence=0.25).apply(LOGITS)
    wanted = LOGITS.clone()
    wanted[0, 3] -= 2 * 0.5 + 0.25
    wanted[0, 5] -= 0.5 + 0.25
    assert torch.allclose(found, wanted)


def test_where_every_token_is_barred_none_is() -> None:
    found = said(list(range(V)), [], no_repeat_ngram=1).apply(LOGITS)
    assert torch.equal(found[0], LOGITS[0])
    assert found[1, 0] == float("-inf")


def test_generated_text_repeats_no_ngram_and_the_log_probabilities_stay_the_models() -> None:
    model = randomised(
        GPT(n_layer=1, n_embed=16, head_size=8, block_size=8, vocab_size=61, tie_embeddings=False)
    )
    plain = SamplingOptions(max_new_tokens=40, temperature=0)
    free = [token for token, _ in generate(model, [1], plain, 0, 61)]
    assert len(set(free)) < 40, "it repeats itself when it may"
    options = SamplingOptions(max_new_tokens=40, temperature=0, no_repeat_ngram=1)
    pairs = list(generate(model, [1], options, 0, 61))
    assert len({1, *(token for token, _ in pairs)}) == 41
    with torch.no_grad():
        own = model(torch.tensor([[1]]))[0, -1].log_softmax(dim=-1)
    assert pairs[0][1] == pytest.approx(own[pairs[0][0]].item(), abs=1e-5)


def test_a_draw_has_the_probability_of_its_logits_and_never_none() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.0, 0.3, 0.0]).log()
    uniform = torch.linspace(0, 1, 1001, dtype=torch.double)[:-1]
    found = torch.bincount(draw(logits.expand(1000, -1), uniform), minlength=6)
    assert (found - torch.tensor([200, 0, 500, 0, 300, 0])).abs().max() <= 1
    almost = torch.tensor([1 - 2.0**-53], dtype=torch.double)
    assert draw(logits[None], almost).tolist() == [4]
    assert draw(logits[None], torch.zeros(1)).tolist() == [0]
