"""LoRA: the network's weights are frozen, and the memory that this saves."""

from dataclasses import replace

import pytest

from llm.memory.fit import fit
from llm.memory.predict import Setup, predict, training_step
from llm.memory.weights import for_memory, n_parameters, n_trained
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions


def test_only_trained_weights_have_gradients_and_optimizer_state() -> None:
    config = GPTConfig(n_layer=6, n_embed=256, vocab_size=5_000).resolve()
    whole = Setup(config, batch_size=2, micro_batch=2)
    lora = replace(whole, finetune=FinetuneOptions("lora"))
    numbers = n_trained(config, lora.finetune)
    most = max(training_step(lora).values(), key=lambda lines: sum(lines.values()))
    assert most["weights"] == pytest.approx(4 * n_parameters(config), rel=0.01)
    assert most["adapters"] == pytest.approx(4 * numbers, rel=0.01)
    assert most["optimizer state"] == pytest.approx(8 * numbers, rel=0.01)
    update = training_step(replace(lora, optimizer="muon"))["update"]
    assert update["gradients"] == pytest.approx(4 * numbers, rel=0.01)
    of_lora, of_whole = predict(lora, {}), predict(whole, {})
    assert of_lora.total < 0.65 * of_whole.total
    for moment in ("checkpoint", "evaluation"):
        assert "adapters" in of_lora.moments[moment]
        assert "adapters" not in of_whole.moments[moment]
    start = of_lora.moments["start"]
    assert start["weights read"] == 4 * (config.vocab_size * config.n_embed + numbers)
    assert start["weights"] == of_whole.moments["resume"]["weights"]


def test_a_base_in_a_file_of_another_program_is_quantised_as_it_is_read() -> None:
    config = GPTConfig(n_layer=6, n_embed=256, vocab_size=5_000).resolve()
    ours = Setup(config, finetune=for_memory(FinetuneOptions("qlora")), reads_whole=True)
    theirs = predict(replace(ours, reads_whole=False), {}).moments["start"]
    assert theirs["weights"] < 0.5 * predict(ours, {}).moments["start"]["weights"]
    assert theirs["weights"] == pytest.approx(theirs["weights read"] + 4.7e6 / 2 / 8 * 9, rel=0.2)


def test_fit_works_with_lora() -> None:
    config = GPTConfig(n_layer=8, n_embed=512, block_size=256, vocab_size=5_000).resolve()
    setup = Setup(config, batch_size=16, micro_batch=16, finetune=FinetuneOptions("lora"))
    budget = predict(setup, {}).total // 2
    found = fit(setup, budget, {})
    assert found and found.changes
    assert found.setup.finetune == setup.finetune
    assert found.prediction.total <= budget


def test_on_a_cpu_adapters_leave_gaps_in_the_heap_unless_memory_is_saved() -> None:
    config = GPTConfig(n_layer=2, n_embed=512, vocab_size=500).resolve()
    lora = Setup(config, finetune=FinetuneOptions("lora"))
    for setup, share in ((lora, 0.45), (replace(lora, precision="fp16"), 1.2)):
        lines = predict(setup, {}).lines
        come_and_go = sum(lines.values()) - lines["weights"] - lines["fragments"]
        assert lines["fragments"] == pytest.approx(share * come_and_go, rel=1e-3)
    for setup in (replace(lora, saves_memory=True), replace(lora, device="cuda")):
        predicted = predict(setup, {})
        assert predicted.lines["fragments"] == pytest.approx(0.03 * predicted.tensors, rel=1e-3)
