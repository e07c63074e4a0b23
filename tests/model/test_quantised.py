"""Frozen matrices of 8 or 4 bits: their numbers, their gradients, and adapters beside them."""

from dataclasses import asdict

import pytest
import torch

from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from llm.model.lora import adapt, merge, merged_weights, trained_weights
from llm.model.quantised import NF4, Quantised, rounded

CONFIG = GPTConfig(n_layer=2, n_embed=48, head_size=16, block_size=16, vocab_size=50).resolve()
TOKENS = torch.arange(32).view(2, 16)


def matrix(rows: int = 24, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def test_8_bits_round_to_a_127th_of_the_largest_number_of_each_row() -> None:
    weight = matrix()
    error = (Quantised(weight, 8).dense() - weight).abs()
    assert bool((error <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all())


def test_4_bits_are_the_nearest_of_16_numbers_in_each_block() -> None:
    weight = matrix(24, 43)  # 1032 numbers: the last block is not full
    flat, dense = weight.flatten(), Quantised(weight, 4).dense().flatten()
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        choices = torch.tensor(NF4) * block.abs().max()
        nearest = choices[(block[:, None] - choices).abs().argmin(1)]
        torch.testing.assert_close(dense[start : start + 64], nearest)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_twice_changes_nothing_and_zeros_stay_zeros(bits: int) -> None:
    once = rounded(matrix(), bits)
    torch.testing.assert_close(rounded(once, bits), once)
    assert not rounded(torch.zeros(3, 64), bits).any()


def base_and_qlora(bits: int) -> tuple[dict[str, torch.Tensor], GPT, FinetuneOptions]:
    torch.manual_seed(0)
    model, options = GPT(**asdict(CONFIG)), FinetuneOptions("qlora", 4, bits=bits)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapt(model, options)
    for name, weight in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(weight, std=0.1)
    return base, model, options


@pytest.mark.parametrize("bits", [8, 4])
def test_loss_and_gradients_are_those_of_lora_on_the_rounded_matrices(bits: int) -> None:
    base, model, options = base_and_qlora(bits)
    dense = adapt(GPT(**asdict(CONFIG)), FinetuneOptions("lora", 4))
    is_target = {name: options.adapts(name.removesuffix(".weight")) for name in base}
    weights = {n: rounded(w, bits) if is_target[n] else w for n, w in base.items()}
    dense.load_state_dict(weights | trained_weights(model))
    losses = [one(TOKENS, TOKENS) for one in (model, dense)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    expected = {name: p.grad for name, p in dense.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_merged_weights_compute_what_was_trained(bits: int) -> None:
    base, model, options = base_and_qlora(bits)
    logits, trained = model(TOKENS), trained_weights(model)
    plain = GPT(**asdict(CONFIG))
    plain.load_state_dict(merged_weights(base, trained, options))
    torch.testing.assert_close(plain(TOKENS), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merge(model)(TOKENS), logits, atol=1e-5, rtol=1e-4)


def test_the_matrices_take_the_bits_that_were_asked_for_and_are_in_no_checkpoint() -> None:
    _, model, _ = base_and_qlora(4)
    up = model.blocks[0].mlp.up
    assert up.weight.packed.numel() == up.in_features * up.out_features // 2
    assert not any("packed" in name or name.endswith("up.weight") for name in model.state_dict())


def test_4_bits_equal_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = matrix(32, 64)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    own = Quantised(weight, 4)
    assert torch.equal(own.packed, packed.flatten())
    assert torch.equal(own.scales.flatten(), state.absmax)
