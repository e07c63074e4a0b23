"""The number format of a run: weights stay float32, matrix products may be 16-bit (AMP)."""

import torch

from llm.errors import require

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """(fp32, bf16 or fp16; why), where ``auto`` is what the device is fast and safe with."""
    if name != "auto":
        return name, "as asked for"
    if device.type != "cuda":
        return "fp32", f"16-bit is not faster on {device.type}"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU has it, and it needs no loss scaling"
    return "fp16", "this GPU has no bfloat16; the loss is scaled"


class Precision:
    """Autocast and gradient scaling of one run."""

    def __init__(self, name: str, device: torch.device) -> None:
        require(name in DTYPES, f"precision.name={name} is unknown: take auto, {', '.join(DTYPES)}")
        self.name, self.dtype = name, DTYPES[name]
        # Products that stay in float32: TensorFloat-32 on GPUs that have it, no change on a CPU.
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
        self.autocast = torch.autocast(device.type, dtype=self.dtype, enabled=name != "fp32")
        # Small gradients vanish in float16, so the loss is scaled up and the gradients down again
        # (Micikevicius et al. 2017, arXiv:1710.03740). Switched off, the scaler changes nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
