"""The options of the fast recipe do what their descriptions say."""

from typing import Any

import torch
import torch.nn.functional as F

from llm.model.gpt import GPT
from llm.model.layers import smeared

SHAPE = {"n_layer": 2, "n_embed": 32, "head_size": 16, "block_size": 16, "vocab_size": 40}


def network(**options: object) -> GPT:
    torch.manual_seed(4)
    return GPT(**SHAPE | options)


def block(model: GPT, number: int = 0) -> Any:
    """A block, as Any: ModuleList has no type for its items."""
    return model.blocks[number]


def some_tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(40, (2, length), generator=torch.Generator().manual_seed(7))


def test_smear_is_a_causal_convolution_per_channel() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn((2, 9, 5), generator=generator), torch.randn((3, 5))
    kernel = torch.cat([torch.ones(1, 5), weights]).flip(0).t()[:, None, :]
    wanted = F.conv1d(F.pad(x.mT, (3, 0)), kernel, groups=5).mT
    assert torch.allclose(smeared(x, weights), wanted, atol=1e-5)


def test_no_option_lets_a_position_see_later_tokens() -> None:
    model = network(smear=3, residual_scalars=True, mlp="relu2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 40
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-2)


def test_residual_scalars_bring_the_embedding_back_into_every_layer() -> None:
    model, tokens = network(residual_scalars=True), some_tokens()
    with torch.no_grad():
        for layer in model.blocks:  # each layer adds nothing
            layer.attention.o.weight.zero_()
            layer.mlp.down.weight.zero_()
        block(model, 1).mix.copy_(torch.tensor([0.0, 3.0]))
    assert torch.allclose(model.hidden(tokens), model.norm(3.0 * model.embed(tokens)), atol=1e-6)


def test_relu2_squares_what_relu_keeps() -> None:
    mlp = block(network(mlp="relu2")).mlp
    x = torch.randn((3, 32), generator=torch.Generator().manual_seed(2))
    wanted = F.linear(F.relu(F.linear(x, mlp.up.weight)) ** 2, mlp.down.weight)
    assert torch.allclose(mlp(x), wanted, atol=1e-6)
    assert mlp.up.weight.shape == (128, 32)
