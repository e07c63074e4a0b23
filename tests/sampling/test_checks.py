"""The computations of ``verify_cache=true`` and ``benchmark=true``."""

import pytest

from llm.model.gpt import GPT
from llm.sampling.cache import KVCache
from llm.sampling.checks import compare_with_uncached, measure_speed
from llm.sampling.options import SamplingOptions


def test_a_wrong_cache_is_noticed(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SamplingOptions(max_new_tokens=40, temperature=1.0)
    n_tokens = tiny_model.embed.num_embeddings
    result = compare_with_uncached(tiny_model, [3], options, 0, n_tokens)
    assert (result.tokens, result.differs) == (40, False)
    assert 0 <= result.largest_difference < 1e-4
    step = KVCache.step
    monkeypatch.setattr(
        KVCache, "step", lambda self, new, at, masked: step(self, new, (at - 1).clamp(0), masked)
    )
    result = compare_with_uncached(tiny_model, [3], options, 0, n_tokens)
    assert result.differs or result.largest_difference > 1e-3


def test_half_a_window_is_read_and_all_but_the_first_token_are_decoded(tiny_model: GPT) -> None:
    options = SamplingOptions(max_new_tokens=5)
    n_tokens = tiny_model.embed.num_embeddings
    speeds = measure_speed(tiny_model, [1, 2, 3], options, rows=2, n_tokens=n_tokens)
    (prefill_tokens, prefill_rate), (decode_tokens, decode_rate) = speeds
    assert prefill_tokens == 2 * tiny_model.config.block_size // 2
    assert decode_tokens == 2 * 4
    assert min(prefill_rate, decode_rate) > 0
