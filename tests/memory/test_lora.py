"""LoRA: the network's weights are frozen, and the memory that this saves."""

from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.tracked import adapt
from llm.memory.fit import fit
from llm.memory.lora import LoRA
from llm.memory.predict import Setup, predict, training_step
from llm.memory.weights import n_parameters, n_trained
from llm.model.config import GPTConfig
from llm.model.gpt import GPT


def test_the_reference_is_lora() -> None:
    # y = W x + (B A x) alpha / rank, and nothing else learns (Hu et al. 2021, section 4.1).
    config, tokens = GPTConfig(vocab_size=60).resolve(), torch.arange(12)[None]
    torch.manual_seed(0)
    plain, model = GPT(**asdict(config)), GPT(**asdict(config))
    adapt(model, LoRA(4, ("down",)))
    model.load_state_dict(plain.state_dict(), strict=False)
    for block, own in zip(model.blocks, plain.blocks, strict=True):
        low = block.mlp.down.lora_B.weight @ block.mlp.down.lora_A.weight
        own.mlp.down.weight.data += 2 * low.detach()
    torch.testing.assert_close(model(tokens), plain(tokens))
    model(tokens, tokens).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name


def test_only_trained_weights_have_gradients_and_optimizer_state() -> None:
    config = GPTConfig(n_layer=6, n_embed=256, vocab_size=5_000).resolve()
    whole = Setup(config, batch_size=2, micro_batch=2)
    lora = replace(whole, lora=LoRA(8))
    numbers = n_trained(config, lora.lora)
    most = max(training_step(lora).values(), key=lambda lines: sum(lines.values()))
    assert most["weights"] == pytest.approx(4 * n_parameters(config), rel=0.01)
    assert most["LoRA weights"] == pytest.approx(4 * numbers, rel=0.01)
    assert most["optimizer state"] == pytest.approx(8 * numbers, rel=0.01)
    update = training_step(replace(lora, optimizer="muon"))["update"]
    assert update["gradients"] == pytest.approx(4 * numbers, rel=0.01)
    of_lora, of_whole = predict(lora, {}), predict(whole, {})
    assert of_lora.total < 0.65 * of_whole.total
    for moment in ("checkpoint", "evaluation"):
        assert "LoRA weights" in of_lora.moments[moment]
        assert "LoRA weights" not in of_whole.moments[moment]
    assert of_lora.moments["resume"]["weights read"] == 4 * (n_parameters(config) + numbers)


def test_fit_works_with_lora() -> None:
    config = GPTConfig(n_layer=8, n_embed=512, block_size=256, vocab_size=5_000).resolve()
    setup = Setup(config, batch_size=16, micro_batch=16, lora=LoRA(8))
    budget = predict(setup, {}).total // 2
    found = fit(setup, budget, {})
    assert found and found.changes
    assert found.setup.lora == setup.lora
    assert found.prediction.total <= budget
