"""Optimizers, built over the parameters of a model."""

import torch
from torch import Tensor, nn

from llm.training.muon import Muon, split

FUSED = ("cuda", "cpu", "mps")  # devices with a fused AdamW: one kernel for all parameters


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: list[float],
    state_bits: int = 32,
    name: str = "adamw",
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
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=(betas[0], betas[1]),
        fused=_is_fused(model),
    )
    for group in optimizer.param_groups:
        group["base_lr"] = lr
    return optimizer


def muon(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: list[float],
    momentum: float = 0.9,
    ns_steps: int = 5,
    embed_lr_ratio: float = 0.5,
    head_lr_ratio: float = 64.0,
    vector_lr_ratio: float = 1.5,
    state_bits: int = 32,
    name: str = "muon",
) -> Muon:
    """Muon at ``lr`` for the matrices of the layers, AdamW at shares of it for everything else.

    The head's rate is divided by its width, because a step of Adam moves every weight by as much,
    and the more of them an output sums, the further it moves (Yang et al. 2022, arXiv:2203.03466).
    """
    matrices, embeddings, heads, others = split(model)
    shapes: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    orthogonal = {
        "muon": True,
        "momentum": momentum,
        "ns_steps": ns_steps,
        "weight_decay": weight_decay,
    }
    groups = [{"params": found, "base_lr": lr, **orthogonal} for found in shapes.values()]
    width = (heads or embeddings or matrices)[0].shape[1]
    head_lr_ratio /= width
    if not heads:  # the embeddings are the head too
        embed_lr_ratio = min(embed_lr_ratio, head_lr_ratio)
    adam = {"muon": False, "betas": (betas[0], betas[1]), "fused": _is_fused(model)}
    for parameters, ratio, decay in (
        (embeddings, embed_lr_ratio, weight_decay),
        (heads, head_lr_ratio, weight_decay),
        (others, vector_lr_ratio, 0.0),
    ):
        if parameters:
            own = {"base_lr": lr * ratio, "weight_decay": decay}
            groups.append({"params": parameters, **own, **adam})
    for group in groups:
        group["lr"] = group["base_lr"]
    return Muon(groups)


def _is_fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in FUSED
