"""Predictions compared with torch's MemTracker on the real network, optimizer and update. They rest
on the operations in llm/memory/operations.py.
"""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.tracked import MODEL, RUN, drawn, tracked_evaluation, tracked_peak, tracked_sample
from llm.functional.sizes import SMALLEST_8BIT
from llm.memory.predict import Setup, predict, training_step
from llm.memory.updates import state_bytes
from llm.memory.weights import ALL, Weight, without_layer
from llm.model.config import GPTConfig
from llm.model.finetune import TARGETS, FinetuneOptions
from llm.model.gpt import GPT
from llm.training import optimizer as optimizers
from llm.training.optimizer import layout_bytes

SETUPS = drawn()


def values_of(setup: Setup) -> set[tuple[str, str]]:
    """The values of all options, once for training all weights and once for training a part."""
    options = {name: getattr(setup.model, name) for name in MODEL}
    options |= {name: getattr(setup, name) for name in (*RUN, "finetune", "documents")}
    how = "" if setup.finetune == ALL else "finetune: "
    return {(how + name, str(value)) for name, value in options.items()}


def representative() -> list[int]:
    """Setups that have every value of every option together; small networks come first."""
    missing = set().union(*map(values_of, SETUPS))
    chosen: list[int] = []
    while missing:
        new = [len(values_of(one) & missing) / (1 + one.model.n_layer) for one in SETUPS]
        chosen.append(max(range(len(SETUPS)), key=new.__getitem__))
        missing -= values_of(SETUPS[chosen[-1]])
    return sorted(chosen)


CHOSEN = representative()


# Each takes up to seconds, so the others are slow tests.
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[] if number in CHOSEN else pytest.mark.slow)
        for number in range(len(SETUPS))
    ],
)
def test_the_peak_of_a_training_step_is_predicted_as_memtracker_sees_it(number: int) -> None:
    setup = SETUPS[number]
    predicted = max(sum(lines.values()) for lines in training_step(setup).values())
    error = predicted / tracked_peak(setup) - 1
    assert -0.01 <= error <= 0.005, f"{error:+.2%} for {setup}"


SMALL_PASS: dict[str, Any] = {"block_size": 16, "head_size": 64, "loss": "chunked"}
UPDATES = {
    "rounding in portions": Setup(
        GPTConfig(1, 64, vocab_size=20_000, **SMALL_PASS), precision="bf16_weights"),
    "stacked matrices": Setup(GPTConfig(4, 768, vocab_size=96, **SMALL_PASS), optimizer="muon"),
    "a tall matrix, rounded": Setup(
        GPTConfig(1, 512, vocab_size=96, intermediate_size=8192, **SMALL_PASS),
        optimizer="muon", precision="bf16_weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_the_peak_of_an_update_is_predicted_as_memtracker_sees_it(name: str) -> None:
    setup = replace(UPDATES[name], model=UPDATES[name].model.resolve(), batch_size=1, micro_batch=1)
    moments = {phase: sum(lines.values()) for phase, lines in training_step(setup).items()}
    assert max(moments, key=moments.__getitem__) == "update"
    error = moments["update"] / tracked_peak(setup) - 1
    assert -0.01 <= error <= 0.005, f"{error:+.2%}"


@pytest.mark.parametrize(("method", "precision"), [("qlora", "fp32"), ("dora", "bf16_weights")])
def test_the_temporaries_of_one_adapted_matrix_are_predicted_as_memtracker_sees_them(
    method: str, precision: str
) -> None:
    setup = Setup(
        GPTConfig(1, 768, vocab_size=96, **SMALL_PASS).resolve(), precision=precision,
        batch_size=1, micro_batch=1, finetune=FinetuneOptions(method, 4, targets=list(TARGETS)),
    )  # fmt: skip
    moments = {phase: sum(lines.values()) for phase, lines in training_step(setup).items()}
    assert "block 0" in max(moments, key=moments.__getitem__)
    error = max(moments.values()) / tracked_peak(setup) - 1
    assert -0.01 <= error <= 0.005, f"{error:+.2%}"


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_of_each_weight_is_predicted_as_the_optimizer_stores_it(
    name: str, bits: int
) -> None:
    model = GPT(n_layer=2, n_embed=64, head_size=32, vocab_size=71, block_size=8, bias=True)
    options = {"lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95]}
    layout = getattr(optimizers, name)(model, **options, state_bits=bits).full_layout()
    sizes = {name: Weight(without_layer(name), (*p.shape,)) for name, p in model.named_parameters()}
    assert {one.numbers < SMALLEST_8BIT for one in sizes.values()} == {True, False}
    for weight, one in sizes.items():
        start = f"optimizer/{weight}/"
        entries = [entry for entry in layout if entry.startswith(start) and entry != f"{start}step"]
        stored = layout_bytes({entry: layout[entry] for entry in entries})
        assert state_bytes(name, bits, one) == stored, weight


def moment(name: str, setup: Setup) -> int:
    lines = predict(replace(setup, samples=True), {}).moments[name]
    return sum(lines.values()) - lines["fragments"]


@pytest.mark.parametrize("number", range(0, len(SETUPS), 4))
def test_the_peak_of_an_evaluation_is_predicted_as_memtracker_sees_it(number: int) -> None:
    setup = SETUPS[number]
    error = moment("evaluation", setup) / tracked_evaluation(setup) - 1
    assert -0.02 <= error <= 0.03, f"{error:+.2%} for {setup}"


# Sampling computes real numbers, so the networks are small; the last one has LoRA.
SMALL = [
    number
    for number, one in enumerate(SETUPS)
    if one.model.n_embed < 768 and one.model.n_layer < 4 and one.model.block_size < 256
]
WITH_LORA = next(n for n in SMALL if SETUPS[n].finetune.name == "lora")


@pytest.mark.parametrize("number", sorted({*SMALL[:16:4], WITH_LORA}))
def test_a_text_takes_no_more_than_predicted(number: int) -> None:
    setup = SETUPS[number]
    error = moment("sample", setup) / tracked_sample(setup) - 1
    # The prediction assumes a full window, so it is an upper bound.
    assert 0 <= error <= 0.1, f"{error:+.2%} for {setup}"


def test_the_parts_of_a_plan_have_the_same_order_in_every_process() -> None:
    parts = list(predict(SETUPS[0], {}).lines)
    assert parts[:3] == ["weights", "optimizer state", "gradients"]


def test_reading_a_checkpoint_counts_its_weights_twice() -> None:
    setup = replace(SETUPS[0], eval_only=True, micro_batch=1)
    moments = predict(setup, {}).moments
    assert "optimizer state" not in {k for k, size in moments["evaluation"].items() if size}
    resume = moments["resume"]
    assert resume["weights read"] == pytest.approx(resume["weights"], rel=0.01)
