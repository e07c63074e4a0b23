"""Products and weights have the format asked for, and float16 scales its loss."""

import random

import pytest
import torch

from llm.model.gpt import GPT
from llm.training.precision import (
    DTYPES,
    Precision,
    resolve_precision,
    slow_products,
    to_precision,
)
from tests.training.conftest import MakeTrainer

CPU = torch.device("cpu")


def test_a_named_format_is_taken_and_auto_on_a_cpu_is_fp32() -> None:
    assert resolve_precision("bf16", CPU) == ("bf16", "as configured")
    assert resolve_precision("auto", CPU) == ("fp32", "16-bit is not faster on cpu")


@pytest.mark.parametrize(("has_bf16", "wanted"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_bf16_where_it_is_native(
    has_bf16: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_precision("auto", torch.device("cuda"))[0] == wanted


@pytest.mark.parametrize("name", ["bf16", "bf16_weights", "fp16"])
def test_a_cpu_without_16_bit_instructions_is_warned_about(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    (warning,) = slow_products(name, CPU)
    assert warning.startswith(f"precision={name}: this CPU has no instructions for it")
    assert warning.endswith("take precision=fp32")
    assert slow_products("fp32", CPU) == slow_products(name, torch.device("cuda")) == []
    other = {"amx_fp16": True} if name == "fp16" else {"bf16": True}  # of x86, and of ARM
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: other)
    assert slow_products(name, CPU) == []


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_products_and_weights_have_their_formats(name: str, dtype: torch.dtype) -> None:
    precision = Precision(name, CPU)
    assert precision.weights == (torch.bfloat16 if name == "bf16_weights" else torch.float32)
    linear = torch.nn.Linear(4, 4)
    to_precision(linear, precision.weights)
    inputs = torch.ones(2, 4, dtype=precision.weights)
    with precision.autocast:
        assert linear(inputs).dtype == dtype
    assert linear(inputs).dtype == precision.weights


def test_only_parameters_are_converted_and_stay_the_same_objects(tiny_model: GPT) -> None:
    before = list(tiny_model.parameters())
    to_precision(tiny_model, torch.bfloat16)
    for was, parameter in zip(before, tiny_model.parameters(), strict=True):
        assert was is parameter and parameter.dtype == torch.bfloat16
    assert tiny_model.cos.dtype == tiny_model.sin.dtype == torch.float32
    tokens = torch.arange(16).view(1, 16)
    assert tiny_model(tokens, tokens).dtype == torch.float32


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 0.02), ("fp16", 0.005)])
def test_training_in_16_bits_comes_out_near_float32(
    make_trainer: MakeTrainer, name: str, tolerance: float
) -> None:
    losses = []
    for precision in ("fp32", name):
        trainer = make_trainer(precision, precision=precision, max_steps=30, lr=3e-3)
        losses.append(trainer.fit().val_loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_the_scale_of_the_norm_is_that_of_a_scaler_which_sees_every_gradient() -> None:
    ours, weight = Precision("fp16", torch.device("cpu")), torch.zeros(1, requires_grad=True)
    theirs, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD([weight], lr=0.1)
    generator = random.Random(3)
    for step in range(1, 5001):
        is_finite = step > 4900 or step % 2100 > 5 or generator.random() < 0.5
        loss = torch.ones(())
        assert theirs.scale(loss) == ours.scaler.scale(loss)
        weight.grad = torch.tensor([1.0 if is_finite else torch.inf])
        theirs.step(optimizer)
        theirs.update()
        ours.adapt_scale(step, 1.0 if is_finite else torch.inf)
        assert ours.scaler.state_dict() == theirs.state_dict()
    assert ours.scaler.get_scale() != 2.0**16
