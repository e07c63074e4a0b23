"""Optimizers, built over the parameters of a model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

from llm.checkpoint.tensors import Layout as Layout
from llm.errors import require
from llm.functional.sizes import SMALLEST_8BIT
from llm.training.eight_bit import EightBit
from llm.training.muon import muon_step, split
from llm.training.rounding import in_float32, portions

FUSED = ("cuda", "cpu", "mps")  # devices with a fused AdamW: one kernel for all parameters


class Optimizer:
    """Updates the parameters of each group by the group's ``rule``: ``adamw``, or ``muon``, which
    wants one shape a group.

    Not one of torch's, whose base class imports the compiler: seconds, and tens of MiB. Weights are
    float32, or bfloat16 that is updated as :mod:`llm.training.rounding` says. With ``state_bits``
    of 8, AdamW keeps its running means as :mod:`llm.training.eight_bit` does.
    """

    is_own = False  # a class of the user's: llm.training.adapted

    def __init__(self, groups: list[dict[str, Any]], state_bits: int = 32) -> None:
        self.param_groups = groups  # as a GradScaler knows them
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.group_of = {p: n for n, group in enumerate(self.param_groups) for p in group["params"]}
        device = next(iter(self.group_of)).device
        self.eight_bit = EightBit(device) if state_bits == 8 else None

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        self.update(self.group_of)

    def zero_grad(self) -> None:
        """Free all gradients."""
        for parameter in self.group_of:
            parameter.grad = None

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor]) -> None:
        """Update those of ``parameters`` that have a gradient, and no other: each counts its steps
        for itself.
        """
        by_group: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_group.setdefault(self.group_of[parameter], []).append(parameter)
        for number, found in by_group.items():
            group = self.param_groups[number]
            if group["rule"] == "muon":
                muon_step(found, [self.kept(p)["momentum"] for p in found], group)
            else:
                self._adamw(found, group)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        whole = []
        for parameter in parameters:
            if eight_bit := self._eight_bit(parameter):
                eight_bit.update(parameter, self.kept(parameter), group)
            elif parameter.dtype == torch.float32:
                whole.append(parameter)
            else:
                _adamw_in_portions(parameter, self.kept(parameter), group)
        if whole:
            gradients = [p.grad for p in whole if p.grad is not None]
            states = [self.kept(p) for p in whole]
            means, squares, steps = (
                [s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            _adamw_step(whole, gradients, means, squares, steps, group)

    def layout(self, parameter: Tensor) -> Layout:
        """Shape and type of all that is kept for a parameter from step to step."""
        shape = tuple(parameter.shape)
        if self.param_groups[self.group_of[parameter]]["rule"] == "muon":
            return {"momentum": (shape, torch.float32)}
        means: Layout = {name: (shape, torch.float32) for name in ("exp_avg", "exp_avg_sq")}
        if eight_bit := self._eight_bit(parameter):
            means = eight_bit.layout(shape)
        return {"step": ((), torch.float32)} | means

    def kept(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept for a parameter; zeros at first."""
        state = self.state.setdefault(parameter, {})
        if not state:
            for name, (shape, dtype) in self.layout(parameter).items():
                device = self._device(parameter, name)
                # Under FakeTensorMode only what torch.tensor made has a value, as a count needs.
                zero = torch.tensor(0.0, dtype=dtype, device=device)
                state[name] = zero.new_zeros(shape) if shape else zero
        return state

    def accepts(self, found: list[Layout]) -> bool:
        """Whether states of such shapes and types, in the order of ``group_of``, are its own."""
        return found == [self.layout(parameter) for parameter in self.group_of]

    def tensors_of(self) -> Layout | None:
        """Shape and type of all tensors that a checkpoint may hold of it, by their names there;
        None: as all of ours.
        """
        return None

    def changed_values(self) -> list[dict[str, Any]]:
        """Values of ``param_groups`` that a checkpoint has to hold: ours follow from the step."""
        return []

    def restore_values(self, plain: Any) -> None:
        """Undo :meth:`changed_values`; :class:`llm.errors.Refused` if these are others."""
        require(not plain, "the checkpoint holds values of another optimizer")

    def restore(self, states: Iterable[dict[str, Tensor]]) -> None:
        """Go on from what was kept, given in the order of ``group_of``."""
        for parameter, state in zip(self.group_of, states, strict=True):
            self.state[parameter] = {
                name: tensor.to(self._device(parameter, name)) for name, tensor in state.items()
            }

    def _eight_bit(self, parameter: Tensor) -> EightBit | None:
        return self.eight_bit if parameter.numel() >= SMALLEST_8BIT else None

    def _device(self, parameter: Tensor, name: str) -> torch.device:
        # bitsandbytes wants the count as a number, for which a GPU would have to be waited for.
        on_cpu = name == "step" and self._eight_bit(parameter)
        return torch.device("cpu") if on_cpu else parameter.device


def _adamw_in_portions(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    parts = portions(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
    for weights, gradient, mean, square in parts:
        step = state["step"].clone()  # each portion counts a copy on by one
        with in_float32(weights) as wide:
            _adamw_step([wide], [gradient.float()], [mean], [square], [step], group)
    state["step"] += 1


def _adamw_step(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor],
    steps: list[Tensor], group: dict[str, Any],
) -> None:  # fmt: skip
    adamw_step(
        parameters, gradients, means, squares, [], steps, fused=group["fused"], amsgrad=False,
        beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
        weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
    )  # fmt: skip


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: list[float],
    state_bits: int = 32,
    name: str = "adamw",
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) over the parameters of ``model``.

    Matrices and embeddings decay; norms, biases and the scalars of a layer do not, as under Muon.
    ``base_lr`` in each group is the rate that the schedule scales.
    """
    matrices, embeddings, heads, others = split(model)
    rule = {"rule": "adamw", "betas": (betas[0], betas[1]), "eps": 1e-8, "fused": _is_fused(model)}
    groups = [
        {"params": [*embeddings, *matrices, *heads], "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    own = {"lr": lr, "base_lr": lr}
    return Optimizer([group | rule | own for group in groups if group["params"]], state_bits)


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
) -> Optimizer:
    """Muon at ``lr`` for the matrices of the layers, AdamW at shares of it for everything else.

    The head's rate is divided by its width, because a step of Adam moves every weight by as much,
    and the more of them an output sums, the further it moves (Yang et al. 2022, arXiv:2203.03466).
    """
    matrices, embeddings, heads, others = split(model)
    shapes: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    orthogonal = {
        "rule": "muon",
        "momentum": momentum,
        "ns_steps": ns_steps,
        "weight_decay": weight_decay,
    }
    groups = [{"params": found, "base_lr": lr, **orthogonal} for found in shapes.values()]
    width = (heads or embeddings or matrices)[0].shape[1]
    head_lr_ratio /= width
    if not heads:  # the embeddings are the head too
        embed_lr_ratio = min(embed_lr_ratio, head_lr_ratio)
    adam = {"rule": "adamw", "betas": (betas[0], betas[1]), "eps": 1e-10, "fused": _is_fused(model)}
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
    return Optimizer(groups, state_bits)


def _is_fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in FUSED
