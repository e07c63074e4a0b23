"""The number format of a run: matrix products may be 16-bit (AMP), and even the weights."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from torch import nn

from llm.errors import Diverged
from llm.options import option

Network = TypeVar("Network", bound=nn.Module)
# Types of the matrix products. The weights are float32, except with bf16_weights.
DTYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "bf16_weights": torch.bfloat16,
}  # fmt: skip
# Instructions of x86 and ARM for each type, named as in torch.cpu.get_capabilities.
INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """(a key of ``DTYPES``, the reason); ``auto`` is the fastest safe one on the device."""
    if name != "auto":
        return name, "as configured"
    if device.type != "cuda":
        return "fp32", f"16-bit is not faster on {device.type}"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU has it, and it needs no loss scaling"
    return "fp16", "this GPU has no bfloat16; the loss is scaled"


def slow_products(name: str, device: torch.device) -> list[str]:
    """A warning if the CPU has no instructions for the 16-bit format ``name``."""
    if device.type != "cpu" or name == "fp32":
        return []
    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(instruction) for instruction in INSTRUCTIONS[DTYPES[name]]):
        return []
    return [
        f"precision={name}: this CPU has no instructions for it, so a step takes several times as "
        "long as in float32: take precision=fp32"
    ]


@dataclass
class LossScale:
    """The state of a GradScaler in a checkpoint; a scale of 1 if the loss is not scaled."""

    scale: float = option(1.0, at_least=1)
    finite_steps: int = option(0, at_least=0)  # since the scale last changed


class Precision:
    """Autocast and loss scale of a run, and the type of its ``weights`` (:func:`to_precision`)."""

    def __init__(self, name: str, device: torch.device) -> None:
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
        # Small gradients vanish in float16, so the loss is scaled up and the gradients down again
        # (Micikevicius et al. 2017, arXiv:1710.03740).
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        self.norm = nn.Parameter(torch.zeros((), device=device))

    def adapt_scale(self, step: int, grad_norm: float) -> None:
        """Lower the loss scale after a gradient norm that is not finite, raise it after many finite
        ones.

        Raises :class:`llm.errors.Diverged` when the scale falls below 1: a scale of 0 would put
        NaN into the weights with the next finite step (0 * 1 / 0).
        """
        if not self.scaler.is_enabled():
            return
        # The norm is finite only if all gradients are. So the scaler looks at the norm alone, which
        # also works in UpdateInBackward, where the gradients are never all in memory.
        self.norm.grad = torch.full_like(self.norm, grad_norm)
        self.scaler.unscale_(cast(Any, SimpleNamespace(param_groups=[{"params": [self.norm]}])))
        self.scaler.update()
        if (scale := self.scaler.get_scale()) < 1:
            raise Diverged(
                f"step {step}: float16 gradients overflow even at a loss scale of {scale:g}: "
                "try a lower optimizer.lr, or precision=bf16",
                step=step,
            )

    @property
    def loss_scale(self) -> LossScale:
        """The scaler's state."""
        if not self.scaler.is_enabled():
            return LossScale()
        state = self.scaler.state_dict()
        return LossScale(state["scale"], state["_growth_tracker"])

    @loss_scale.setter
    def loss_scale(self, saved: LossScale) -> None:
        changed = {"scale": saved.scale, "_growth_tracker": saved.finite_steps}
        self.scaler.load_state_dict(self.scaler.state_dict() | changed)


def to_precision(model: Network, dtype: torch.dtype) -> Network:
    """``model`` with its parameters converted in place, so that they stay the same objects.

    Buffers such as the rotary angles stay in float32: bfloat16 counts positions only up to 256.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
