"""The number format of a run: matrix products may be 16-bit (AMP), and even the weights."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from llm.errors import Diverged, require
from llm.options import option

Network = TypeVar("Network", bound=nn.Module)
# Types of the matrix products. Weights are float32, except with the last name.
DTYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "bf16_weights": torch.bfloat16,
}  # fmt: skip
# Instructions of x86 and ARM for each type, named as in torch.cpu.get_capabilities.
INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
# As torch.amp.GradScaler has them.
FIRST_SCALE, STEPS_TO_GROW = 2.0**16, 2000


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """(a name of ``DTYPES``, the reason); ``auto`` is fast and safe on the device."""
    if name != "auto":
        return name, "as asked for"
    if device.type != "cuda":
        return "fp32", f"16-bit is not faster on {device.type}"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU has it, and it needs no loss scaling"
    return "fp16", "this GPU has no bfloat16; the loss is scaled"


def slow_products(name: str, device: torch.device) -> list[str]:
    """A warning if the CPU has no instructions for the 16-bit format ``name``."""
    known = INSTRUCTIONS.get(DTYPES[name], ())
    found = torch.cpu.get_capabilities() if device.type == "cpu" else dict.fromkeys(known, True)
    if not known or any(found.get(instruction) for instruction in known):
        return []
    return [
        f"precision={name}: this CPU has no instructions for it, so a step takes several times as "
        "long as in float32: take precision=fp32"
    ]


@dataclass
class LossScale:
    """Small gradients vanish in float16, so the loss is scaled up and the gradients down again
    (Micikevicius et al. 2017, arXiv:1710.03740). In other formats the scale is 1.

    torch.amp.GradScaler follows the same rule. It finds overflows on the device and hides them; the
    loop reads the gradient norm at every step anyway.
    """

    scale: float = option(1.0, at_least=1)
    finite_steps: int = option(0, at_least=0)  # since the scale last changed

    def update(self, step: int, is_finite: bool) -> None:
        """Halve the scale after gradients that are not finite, double it after many that are.

        Raises :class:`llm.errors.Diverged` when it falls below 1: at 0 it would put NaN into the
        weights with the next finite step (0 * 1 / 0).
        """
        self.finite_steps = self.finite_steps + 1 if is_finite else 0
        if not is_finite:
            self.scale /= 2
        elif self.finite_steps == STEPS_TO_GROW:
            self.scale, self.finite_steps = 2 * self.scale, 0
        if self.scale < 1:
            raise Diverged(
                f"step {step}: float16 gradients overflow even at a loss scale of {self.scale:g}: "
                "try a lower optimizer.lr, or precision=bf16",
                step=step,
            )


class Precision:
    """Autocast and loss scale of a run, and the type of its ``weights`` (:func:`to_precision`)."""

    def __init__(self, name: str, device: torch.device) -> None:
        require(name in DTYPES, f"precision.name={name} is unknown: take auto, {', '.join(DTYPES)}")
        self.name, self.dtype = name, DTYPES[name]
        self.weights = torch.bfloat16 if name == "bf16_weights" else torch.float32
        # Float32 products use TensorFloat-32 on GPUs that have it; nothing changes on a CPU.
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
        mixed = self.dtype != self.weights
        # The cache would keep 16-bit copies of all weights until the end of a forward pass. Each is
        # used only once.
        self.autocast = torch.autocast(
            device.type, dtype=self.dtype, enabled=mixed, cache_enabled=False
        )
        self.is_scaled = name == "fp16"
        self.loss_scale = LossScale(FIRST_SCALE if self.is_scaled else 1.0)


def to_precision(model: Network, dtype: torch.dtype) -> Network:
    """``model`` with its parameters converted in place, so that they stay the same objects.

    Buffers such as the rotary angles stay in float32: bfloat16 counts positions only up to 256.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
