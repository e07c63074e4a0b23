"""The cache never changes the text: alone, in a batch and past the window."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llm.model.gpt import GPT
from llm.model.layers import SwiGLU
from llm.sampling.cache import ContinuedCache, KVCache, Uncached, slide
from llm.sampling.generate import generate, generate_batch
from llm.sampling.layout import lay_out_for_decoding
from llm.sampling.options import SamplingOptions
from tests.model.test_reference import GPT2_STYLE, as_gpt2, filled, randomised

SHAPE: dict[str, Any] = {
    "n_layer": 3, "n_embed": 48, "n_head": 4, "head_size": 12, "block_size": 24, "vocab_size": 61,
}  # fmt: skip
FAST = {"smear": 3, "residual_scalars": True, "mlp": "relu2",
        "qk_norm": True, "tie_embeddings": False, "n_kv_head": 2}  # fmt: skip
KINDS = [
    pytest.param({}, id="llama"),
    pytest.param({"n_kv_head": 2, "qk_norm": True}, id="qwen3, grouped"),
    pytest.param({"n_kv_head": 1, "bias": True, "tie_embeddings": False}, id="one key head"),
    pytest.param(GPT2_STYLE, id="gpt2"),
    pytest.param(FAST, id="fast"),
    pytest.param(FAST | {"position": "learned"}, id="fast, learned positions"),
    pytest.param({"block_size": 1}, id="a window of one"),
    pytest.param(FAST | {"block_size": 4}, id="fast, in a short window"),
    pytest.param({"block_size": 2}, id="a window of two"),
    pytest.param({"block_size": 3, "position": "learned"}, id="a window of three"),
]
LENGTH = 45  # nearly two windows
GREEDY = SamplingOptions(max_new_tokens=LENGTH, temperature=0)
DRAWN = SamplingOptions(max_new_tokens=LENGTH, temperature=1.0, top_k=20, min_p=0.01)
PROMPTS = [[3], list(range(20)), [5, 9, 60], [(7 * i) % 61 for i in range(40)], [1, 1]]


def made(options: dict[str, Any]) -> GPT:
    return randomised(GPT(**SHAPE | options))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads, so that products with one row are divided as on a user's machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def texts(
    reader: Any, prompts: list[list[int]], options: SamplingOptions, end: int | None = None
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for pairs in generate_batch(reader, prompts, options, range(len(prompts)), 61, end):
        for text, pair in zip(found, pairs, strict=True):
            text += [] if pair is None else [pair[0]]
    return found


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_same_with_and_without_a_cache_even_past_block_size(
    kind: dict[str, Any], options: SamplingOptions
) -> None:
    model = made(kind)
    for prompt in PROMPTS[:2]:
        prompts = [prompt]
        found = texts(KVCache(model), prompts, options)
        assert found == texts(Uncached(model), prompts, options)
        assert len(found[0]) == LENGTH


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", KINDS[:6])
def test_each_text_is_the_same_in_a_batch_and_alone(
    kind: dict[str, Any], options: SamplingOptions
) -> None:
    model = made(kind)
    together = texts(KVCache(model), PROMPTS, options)
    for seed, (prompt, found) in enumerate(zip(PROMPTS, together, strict=True)):
        assert found == [token for token, _ in generate(model, prompt, options, seed, 61)]


def test_a_text_that_ends_does_not_disturb_the_others() -> None:
    model = made({})
    whole = texts(KVCache(model), PROMPTS, DRAWN)
    end = whole[0][10]
    until = [text[: text.index(end)] if end in text else text for text in whole]
    assert len({len(text) for text in until}) > 2
    assert texts(KVCache(model), PROMPTS, DRAWN, end) == until


def test_greedy_text_is_the_same_as_in_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = made(GPT2_STYLE | {"block_size": 64})
    config = GPT2Config(
        vocab_size=61, n_positions=64, n_embd=48, n_layer=3, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = filled(GPT2LMHeadModel(config), as_gpt2(ours))
    prompt = torch.tensor([[5, 9, 60]])
    wanted = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=50, do_sample=False,
        pad_token_id=0,
    )[0, 3:].tolist()  # fmt: skip
    options = SamplingOptions(max_new_tokens=50, temperature=0)
    assert [token for token, _ in generate(ours, [5, 9, 60], options, 0, 61)] == wanted


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [*KINDS[:6], pytest.param({"head_size": 24}, id="tall queries")])
def test_a_layout_for_decoding_changes_no_weight_and_no_text(
    kind: dict[str, Any], count: int, two_threads: None
) -> None:
    model, other = made(kind), made(kind)
    lay_out_for_decoding(other)
    lay_out_for_decoding(other)
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    prompts = PROMPTS[-count:]
    assert texts(KVCache(other), prompts, GREEDY) == texts(KVCache(model), prompts, GREEDY)
    storages = [tensor.untyped_storage() for tensor in other.state_dict().values()]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(sizes.values()) == 4 * model.n_parameters(), "no weight is stored twice"
    assert len(sizes) < len(storages), "queries, keys and values share a matrix"
    mlp = other.blocks[0].mlp
    if isinstance(mlp, SwiGLU):
        assert mlp.gate_up[0].data_ptr() == mlp.gate.weight.data_ptr()


@pytest.mark.parametrize("kind", KINDS[:6])
def test_static_shapes_give_the_same_text(kind: dict[str, Any]) -> None:
    model = made(kind)
    static = KVCache(model)
    static.static = True  # as on a GPU
    assert texts(static, PROMPTS, GREEDY) == texts(KVCache(model), PROMPTS, GREEDY)


def test_the_cache_is_allocated_once() -> None:
    model = made({"n_kv_head": 2})
    cache = KVCache(model)
    with torch.inference_mode():
        cache.read(PROMPTS)
        before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
        for _ in range(50):
            cache.add([1] * len(PROMPTS))
    assert before == [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    assert cache.layers[0].keys.numel() == len(PROMPTS) * 2 * 24 * 12


def test_a_full_window_keeps_its_newest_half() -> None:
    seen: list[int] = []
    dropped = [slide(seen, token, 6) for token in range(8)]
    assert dropped == [False] * 6 + [True, False]
    assert seen == [4, 5, 6, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_prompt_continues_in_the_cache_and_reads_only_its_new_tokens(
    kind: dict[str, Any],
) -> None:
    model, prompt = made(kind), [5, 9]
    kept, read = ContinuedCache(model), list[int]()
    hidden = model.hidden
    model.hidden = lambda tokens, *more: read.append(tokens.shape[1]) or hidden(tokens, *more)  # type: ignore[method-assign, func-returns-value]
    options = SamplingOptions(max_new_tokens=4, temperature=0)
    for more in ([7], [1, 2, 3], [60, 0]):
        prompt += more
        fits = len(prompt) + 4 <= model.config.block_size
        read.clear()
        (answer,) = texts(kept, [prompt], options)
        assert not fits or read[0] == (len(prompt) if more == [7] else len(more) + 1)
        assert [answer] == texts(KVCache(model), [prompt], options)
        prompt += answer


def test_a_prompt_that_differs_early_is_read_again_from_there() -> None:
    model, options = made(FAST), SamplingOptions(max_new_tokens=3, temperature=0)
    kept = ContinuedCache(model)
    for prompt in ([1, 2, 3, 4], [1, 2, 9, 4, 5], [1, 2], [8, 8], list(range(40))):
        assert texts(kept, [prompt], options) == texts(Uncached(model), [prompt], options)
