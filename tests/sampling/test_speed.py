"""What benchmark=true of run_sample.py measures."""

from llm.model.gpt import GPT
from llm.sampling.generate import SamplingOptions
from llm.sampling.speed import measure


def test_half_a_window_is_read_and_all_but_the_first_token_are_decoded(tiny_model: GPT) -> None:
    options = SamplingOptions(max_new_tokens=5)
    n_tokens = tiny_model.embed.num_embeddings
    speed = measure(tiny_model, [1, 2, 3], options, rows=2, n_tokens=n_tokens)
    assert speed.prefill_tokens == 2 * tiny_model.config.block_size // 2
    assert speed.decode_tokens == 2 * 4
    assert min(speed.prefill_rate, speed.decode_rate) > 0
