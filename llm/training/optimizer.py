"""Optimizers, built over the parameters of a model."""

import torch
from torch import nn

FUSED = ("cuda", "cpu", "mps")  # devices with a fused AdamW: one kernel for all parameters


def adamw(
    model: nn.Module, lr: float, weight_decay: float, betas: list[float], name: str = "adamw"
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) over the parameters of ``model``.

    Matrices and embeddings decay, norms and biases do not. ``base_lr`` in each group is the rate
    that the schedule scales.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    device = parameters[0].device.type
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=(betas[0], betas[1]),
        fused=device in FUSED,
    )
    for group in optimizer.param_groups:
        group["base_lr"] = lr
    return optimizer
