"""No option of the network lets a token see a later one, and a network that does is found."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.evaluation.causal import is_causal, largest_change
from llm.model.config import MLPS, NORMS, POSITIONS
from llm.model.gpt import GPT

EXTRAS: list[dict[str, Any]] = [
    {}, {"qk_norm": True}, {"smear": 3}, {"residual_scalars": True}, {"n_kv_head": 1},
    {"bias": True, "qkv_bias": True, "tie_embeddings": False},
    {"qk_norm": True, "smear": 1, "residual_scalars": True, "n_kv_head": 1},
]  # fmt: skip


def network(**options: Any) -> GPT:
    """A network whose every weight is large enough to show in the logits."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embed": 16, "head_size": 8, "block_size": 12, "vocab_size": 11}
    model = GPT(**shape, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_no_option_lets_a_token_see_a_later_one(extra: dict[str, Any]) -> None:
    for mlp, norm, position in product(MLPS, NORMS, POSITIONS):
        change, scale = largest_change(network(mlp=mlp, norm=norm, position=position, **extra))
        assert scale > 0.5
        assert is_causal(change, scale), (mlp, norm, position, change)


def test_a_network_that_sees_the_next_token_or_the_mean_of_the_text_is_found() -> None:
    def shifted(hidden: Tensor) -> Tensor:
        return hidden + 0.01 * hidden.roll(-1, dims=1)

    def mean(hidden: Tensor) -> Tensor:
        return hidden + 0.01 * hidden.mean(dim=1, keepdim=True)

    for broken in (shifted, mean, lambda hidden: hidden * torch.nan):
        model = network()
        model.norm.register_forward_hook(lambda _, __, out, broken=broken: broken(out))
        assert not is_causal(*largest_change(model))


def test_a_network_whose_logits_are_not_finite_does_not_pass() -> None:
    for value in (torch.inf, -torch.inf, torch.nan):
        model = network()
        model.norm.register_forward_hook(lambda _, __, out, value=value: out * value)
        assert not is_causal(*largest_change(model))
    assert not is_causal(0.1, torch.inf) and not is_causal(torch.inf, torch.inf)


@pytest.mark.parametrize("shape", [{"block_size": 1}, {"block_size": 2}, {"vocab_size": 1}])
def test_the_smallest_networks_are_causal(shape: dict[str, int]) -> None:
    small = {"n_layer": 1, "n_embed": 8, "head_size": 4, "block_size": 4, "vocab_size": 5}
    assert is_causal(*largest_change(GPT(**small | shape).eval()))
