"""Text is drawn from the distribution of the model, reproducibly and within the limits."""

from typing import Any

import pytest
import torch

from llm.model.gpt import GPT
from llm.sampling.generate import generate, score_tokens
from llm.sampling.options import SamplingOptions

VOCABULARY, BLOCK = 40, 16
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": None}


@pytest.fixture
def model() -> GPT:
    """A network with clear preferences, unlike a fresh one."""
    torch.manual_seed(0)
    model = GPT(
        n_layer=1, n_embed=32, head_size=16, block_size=BLOCK, vocab_size=VOCABULARY,
        tie_embeddings=False,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.dim() > 1 else 1)
    return model.eval()


def drawn(
    model: GPT, prompt: list[int], seed: int = 0, n_tokens: int = VOCABULARY,
    end: int | None = None, **options: Any,
) -> list[int]:  # fmt: skip
    chosen = SamplingOptions(**options)
    return [token for token, _ in generate(model, prompt, chosen, seed, n_tokens, end)]


def window(tokens: list[int], prompt: int) -> list[int]:
    """The tokens that the model sees after a prompt of ``prompt`` tokens, by counting."""
    seen = min(prompt, BLOCK)
    for _ in range(len(tokens) - prompt):
        seen = seen + 1 if seen < BLOCK else BLOCK // 2
    return tokens[-seen:]


@torch.no_grad()
def log_probabilities(model: GPT, tokens: list[int], prompt: int | None = None) -> torch.Tensor:
    """Of the token after ``tokens``, straight from the network."""
    seen = window(tokens, len(tokens) if prompt is None else prompt)
    return model(torch.tensor([seen]))[0, -1].log_softmax(dim=-1)


def test_temperature_zero_always_takes_the_most_likely_also_past_block_size(model: GPT) -> None:
    tokens = [3, 1]
    for _ in range(3 * BLOCK):
        tokens.append(int(log_probabilities(model, tokens, 2).argmax()))
    assert drawn(model, [3, 1], temperature=0, max_new_tokens=3 * BLOCK) == tokens[2:]
    assert drawn(model, [3, 1], seed=9, temperature=0, max_new_tokens=3 * BLOCK) == tokens[2:]


def test_only_the_last_block_size_tokens_of_a_prompt_count(model: GPT) -> None:
    prompt = [token % VOCABULARY for token in range(7, 60)]
    options = PLAIN | {"max_new_tokens": 5}
    assert drawn(model, prompt, **options) == drawn(model, prompt[-BLOCK:], **options)


def test_draws_follow_the_models_probabilities(model: GPT) -> None:
    probability = log_probabilities(model, [5, 9]).exp()
    first = [drawn(model, [5, 9], seed, max_new_tokens=1, **PLAIN)[0] for seed in range(1000)]
    found = torch.bincount(torch.tensor(first), minlength=VOCABULARY) / len(first)
    assert probability.max() > 0.1
    # Five standard deviations of a share of 1000 draws.
    assert ((found - probability).abs() < 5 * (probability / 1000).sqrt() + 1e-3).all()


def test_a_seed_gives_the_same_text_and_leaves_torchs_random_state_alone(
    model: GPT,
) -> None:
    once = drawn(model, [5], seed=3, max_new_tokens=30, **PLAIN)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert drawn(model, [5], seed=3, max_new_tokens=30, **PLAIN) == once
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn(model, [5], seed=4, max_new_tokens=30, **PLAIN) != once


def test_a_text_ends_after_max_new_tokens_or_before_the_end_token(model: GPT) -> None:
    whole = drawn(model, [5], max_new_tokens=30, **PLAIN)
    assert len(whole) == 30
    end = whole[12]
    until_end = whole[: whole.index(end)]
    assert drawn(model, [5], max_new_tokens=30, end=end, **PLAIN) == until_end


@pytest.mark.parametrize("options", [PLAIN, {"temperature": 0}, {"temperature": 1.0, "top_k": 5}])
def test_ids_of_the_padded_vocabulary_are_never_drawn(model: GPT, options: dict[str, Any]) -> None:
    assert model.head is not None
    with torch.no_grad():
        model.head.weight[30:] *= 10  # now they are the likely ones
    assert max(drawn(model, [5], max_new_tokens=50, **options)) >= 30
    assert max(drawn(model, [5], max_new_tokens=50, n_tokens=30, **options)) < 30


@pytest.mark.parametrize("n_tokens", [VOCABULARY, 30])
def test_log_probabilities_do_not_depend_on_the_filters(model: GPT, n_tokens: int) -> None:
    options = SamplingOptions(max_new_tokens=2 * BLOCK, temperature=0.5, top_k=4, top_p=0.9)
    tokens = [5, 9]
    for token, value in generate(model, tokens, options, seed=0, n_tokens=n_tokens):
        wanted = log_probabilities(model, tokens, 2)[token].item()
        assert value == pytest.approx(wanted, abs=1e-5)
        tokens = [*tokens, token]
    assert len(tokens) == 2 + 2 * BLOCK


def test_score_is_the_log_probability_of_each_token_after_the_first(model: GPT) -> None:
    tokens = [5, 9, 0, 39, 39, 7]
    found = score_tokens(model, tokens)
    wanted = [log_probabilities(model, tokens[:i])[tokens[i]].item() for i in range(1, 6)]
    assert found[0] is None
    assert found[1:] == pytest.approx(wanted, abs=1e-5)


def test_score_is_none_for_tokens_before_the_window(model: GPT) -> None:
    tokens = [token % VOCABULARY for token in range(BLOCK + 4)]
    found = score_tokens(model, tokens)
    assert found[:5] == [None] * 5
    assert found[5:] == score_tokens(model, tokens[-BLOCK:])[1:]
    assert score_tokens(model, [3]) == [None]
