"""Properties of the network; test_reference.py compares it with transformers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.functional import IGNORED
from llm.functional.rotary import rotate
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.model.layers import rotary_angles

SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_embed": 32, "head_size": 16, "block_size": 16, "vocab_size": 40,
}  # fmt: skip
STYLES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"qk_norm": True, "n_kv_head": 1, "tie_embeddings": False},
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True},
}
every_style = pytest.mark.parametrize("style", STYLES)


def build(style: str = "llama", **options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(**SHAPE | STYLES[style] | options).eval()


def some_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(SHAPE["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@every_style
def test_logits_are_float32_for_every_token_and_position(style: str) -> None:
    model = build(style)
    assert model(some_tokens(3, 9)).shape == (3, 9, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(some_tokens(3, 9))
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, model(some_tokens(3, 9)), atol=0.05)


@every_style
def test_a_later_token_changes_no_earlier_logits(style: str) -> None:
    model = build(style)
    tokens = some_tokens(1, 16)
    before = model(tokens)
    for place in (1, 7, 15):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 40
        after = model(changed)
        assert torch.allclose(before[0, :place], after[0, :place], atol=1e-6)
        assert not torch.allclose(before[0, place], after[0, place], atol=1e-3)


@every_style
def test_a_sequence_is_not_influenced_by_others_in_the_batch(style: str) -> None:
    model, tokens = build(style), some_tokens(4, 16)
    assert torch.allclose(model(tokens)[2], model(tokens[2:3])[0], atol=1e-6)


def test_the_loss_is_plain_cross_entropy_over_targets_that_are_not_ignored() -> None:
    model, tokens, targets = build(), some_tokens(3, 10), some_tokens(3, 10, seed=2)
    targets[0, 2:7] = targets[2] = IGNORED
    kept = targets != IGNORED
    each = F.cross_entropy(model(tokens)[kept], targets[kept], reduction="none")
    assert torch.allclose(model(tokens, targets), each.mean())
    assert torch.allclose(model(tokens, targets, reduction="mean"), each.mean())
    assert torch.allclose(model(tokens, targets, reduction="sum"), each.sum())
    of_all = model(tokens, targets, reduction="none")
    assert torch.allclose(of_all[kept.view(-1)], each)
    assert of_all[~kept.view(-1)].tolist() == [0.0] * int((~kept).sum())


@every_style
def test_dropout_acts_in_training_only(style: str) -> None:
    model, tokens = build(style, dropout=0.5), some_tokens(2, 8)
    without = build(style)
    assert torch.equal(model(tokens), without(tokens))
    model.train()
    first, second = model(tokens), model(tokens)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
def test_dropout_acts_at_each_of_its_places(place: str) -> None:
    model, tokens = build(dropout=0.5, n_layer=1).train(), some_tokens(2, 8)
    (block,) = model.blocks
    model.drop.p *= place == "embedding"
    block.attention.dropout *= place == "attention"
    block.drop.p *= place == "residual"
    assert not torch.equal(model(tokens), model(tokens))
    model.drop.p = block.attention.dropout = block.drop.p = 0.0
    assert torch.equal(model(tokens), model(tokens))


@every_style
def test_weights_start_as_gpt2s_do(style: str) -> None:
    model = build(style, n_layer=8, n_embed=128, vocab_size=500)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            residual = name.endswith((".o.weight", ".down.weight"))
            std = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


@every_style
def test_a_fresh_network_predicts_all_tokens_with_about_equal_probability(style: str) -> None:
    loss = build(style)(some_tokens(8, 16), some_tokens(8, 16, seed=2))
    assert loss.item() == pytest.approx(math.log(40), abs=0.1)


@every_style
def test_every_weight_learns(style: str) -> None:
    model = build(style)
    model(some_tokens(4, 16), some_tokens(4, 16, seed=2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_more_tokens_than_block_size_raise() -> None:
    model = build()
    assert model(some_tokens(1, 16)).shape[1] == 16
    with pytest.raises(ValueError, match="17 tokens are more than block_size=16"):
        model(some_tokens(1, 17))


def test_a_network_without_a_vocabulary_raises() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        GPT(n_layer=1, n_embed=32)


@every_style
def test_the_state_holds_each_weight_once_and_nothing_else(style: str) -> None:
    model = build(style)
    state = model.state_dict()
    assert set(state) == {name for name, _ in model.named_parameters()}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert sum(tensor.numel() for tensor in state.values()) == model.n_parameters()
    assert ("head.weight" in state) is (not model.config.tie_embeddings)


@settings(max_examples=25, deadline=None)
@given(
    first=st.integers(0, 30), second=st.integers(0, 30), shift=st.integers(0, 33),
    head_size=st.sampled_from([2, 8, 12]), seed=st.integers(0, 99),
)  # fmt: skip
def test_rotary_scores_depend_on_the_distance_only(
    first: int, second: int, shift: int, head_size: int, seed: int
) -> None:
    cos, sin = rotary_angles(GPTConfig(head_size=head_size, block_size=64))
    q, k = torch.randn(2, 1, 1, 1, head_size, generator=torch.Generator().manual_seed(seed))

    def rotated(x: Tensor, place: int) -> Tensor:
        return rotate(x, cos[place : place + 1], sin[place : place + 1])

    score = (rotated(q, first) * rotated(k, second)).sum()
    shifted = (rotated(q, first + shift) * rotated(k, second + shift)).sum()
    assert torch.allclose(score, shifted, atol=1e-4)
    assert torch.allclose(rotated(q, second).norm(), q.norm(), atol=1e-5)
