"""Optimizers, built over the parameters of a model."""

import math
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

PREFIX = "optimizer/"  # of the names of its tensors in a checkpoint
UNUSABLE = "the checkpoint holds no usable state of this optimizer"


class Optimizer:
    """Updates each group of parameters by its ``rule``: ``adamw`` or ``muon``. All parameters of
    a Muon group have the same shape.

    Not a subclass of torch.optim.Optimizer, whose first step imports the compiler: 1.5 s and 70 MiB
    more. Weights are float32, or bfloat16 (:mod:`llm.training.rounding`). With ``state_bits=8``
    AdamW keeps its running means in 8 bits (:mod:`llm.training.eight_bit`).
    """

    def __init__(
        self, model: nn.Module, groups: list[dict[str, Any]], state_bits: int = 32
    ) -> None:
        self.param_groups = groups
        for group in groups:
            group["base_lr"] = group["lr"]  # the schedule sets lr to a share of it
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.group_of = {p: n for n, group in enumerate(groups) for p in group["params"]}
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.names = {p: names[p] for p in self.group_of}
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
        """Update only these parameters, if they have a gradient. Each has its own step count."""
        by_group: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_group.setdefault(self.group_of[parameter], []).append(parameter)
        for number, members in by_group.items():
            group = self.param_groups[number]
            if group["rule"] == "muon":
                muon_step(members, [self.state_of(p)["momentum"] for p in members], group)
            else:
                self._adamw(members, group)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        together = []
        for parameter in parameters:
            if eight_bit := self._eight_bit(parameter):
                eight_bit.update(parameter, self.state_of(parameter), group)
            elif parameter.dtype == torch.float32:
                together.append(parameter)
            else:
                _adamw_in_portions(parameter, self.state_of(parameter), group)
        if together:
            gradients = [p.grad for p in together if p.grad is not None]
            states = [self.state_of(p) for p in together]
            means, squares, steps = (
                [s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            _adamw_step(together, gradients, means, squares, steps, group)

    def layout(self, parameter: Tensor) -> Layout:
        """Shape and type of the state of one parameter."""
        shape = tuple(parameter.shape)
        if self.param_groups[self.group_of[parameter]]["rule"] == "muon":
            return {"momentum": (shape, torch.float32)}
        means: Layout = {name: (shape, torch.float32) for name in ("exp_avg", "exp_avg_sq")}
        if eight_bit := self._eight_bit(parameter):
            means = eight_bit.layout(shape)
        return {"step": ((), torch.float32)} | means

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of one parameter; zeros before its first step."""
        state = self.state.setdefault(parameter, {})
        if not state:
            for name, (shape, dtype) in self.layout(parameter).items():
                device = self._device(parameter, name)
                # Under FakeTensorMode only tensors made by torch.tensor have a value, which the
                # count of steps needs.
                zero = torch.tensor(0.0, dtype=dtype, device=device)
                state[name] = zero.new_zeros(shape) if shape else zero
        return state

    def full_layout(self) -> Layout:
        """Shape and type of the whole state, known before the first step. Named as in a
        checkpoint: ``optimizer/embed.weight/exp_avg``.
        """
        return {
            f"{PREFIX}{name}/{key}": entry
            for parameter, name in self.names.items()
            for key, entry in self.layout(parameter).items()
        }

    def custom_layout(self) -> Layout | None:
        """:meth:`full_layout` of a custom optimizer; None for a built-in one."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """The state by parameter and key, named as in :meth:`full_layout`; empty before a step."""
        if not self.state:
            return {}
        return {
            f"{PREFIX}{name}/{key}": value
            for parameter, name in self.names.items()
            for key, value in self.state_of(parameter).items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore a :meth:`state_dict`; learning rates and other options stay as they are.

        Ignores other tensors, such as states of random generators. Raises
        :class:`llm.errors.Refused` unless the state is complete and of this optimizer.
        """
        saved = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        if saved:
            self.check({name: (tuple(t.shape), t.dtype) for name, t in saved.items()})
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            parameter, _, key = name.removeprefix(PREFIX).rpartition("/")
            states.setdefault(parameter, {})[key] = tensor
        self.state.clear()
        for parameter, name in self.names.items():
            if name in states:
                self.state[parameter] = self.restored(parameter, states[name])

    def check(self, saved: Layout) -> None:
        """Raise :class:`llm.errors.Refused` unless ``saved`` is the layout of this optimizer."""
        require(saved == self.full_layout(), UNUSABLE)

    def restored(self, parameter: Tensor, state: dict[str, Tensor]) -> dict[str, Any]:
        """The saved state of one parameter, on the right devices."""
        return {key: value.to(self._device(parameter, key)) for key, value in state.items()}

    def group_values(self) -> list[dict[str, Any]]:
        """The values in ``param_groups`` that steps change, for a checkpoint: none here."""
        return []

    def load_group_values(self, values: Any) -> None:
        """Restore :meth:`group_values`; :class:`llm.errors.Refused` if they do not fit."""
        require(not values, UNUSABLE)

    def _eight_bit(self, parameter: Tensor) -> EightBit | None:
        return self.eight_bit if parameter.numel() >= SMALLEST_8BIT else None

    def _device(self, parameter: Tensor, key: str) -> torch.device:
        # bitsandbytes takes the step count as a Python number; reading it from a GPU would wait.
        on_cpu = key == "step" and self._eight_bit(parameter)
        return torch.device("cpu") if on_cpu else parameter.device


def layout_bytes(layout: Layout) -> int:
    """Bytes of all tensors of a layout."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _adamw_in_portions(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    parts = portions(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
    for weights, gradient, mean, square in parts:
        step = state["step"].clone()  # adamw counts up the copy
        with in_float32(weights) as wide:
            _adamw_step([wide], [gradient.float()], [mean], [square], [step], group)
    state["step"] += 1


def _adamw_step(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor],
    steps: list[Tensor], group: dict[str, Any],
) -> None:  # fmt: skip
    adamw_step(
        parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False,
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

    Matrices and embeddings decay; norms, biases and the scalars of a layer do not.
    """
    matrices, embeddings, heads, others = split(model)
    rule = {"rule": "adamw", "lr": lr, "betas": betas, "eps": 1e-8}
    groups: list[dict[str, Any]] = [
        {"params": [*embeddings, *matrices, *heads], "weight_decay": weight_decay, **rule},
        {"params": others, "weight_decay": 0.0, **rule},
    ]
    return Optimizer(model, [group for group in groups if group["params"]], state_bits)


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
    """Muon at ``lr`` for the matrices of the layers, AdamW at multiples of it for the rest.

    The head's rate is divided by its width: a step of Adam moves every weight equally far, and an
    output that sums more weights moves further (Yang et al. 2022, arXiv:2203.03466).
    """
    matrices, embeddings, heads, others = split(model)
    shapes: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    options = {"momentum": momentum, "ns_steps": ns_steps, "weight_decay": weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": same_shape, "lr": lr, "rule": "muon", **options}
        for same_shape in shapes.values()
    ]
    readers = heads or embeddings or matrices
    head_lr_ratio /= readers[0].shape[1] if readers else 1  # none: only adapters are trained
    if not heads:  # tied: the embeddings are the head too
        embed_lr_ratio = min(embed_lr_ratio, head_lr_ratio)
    rule = {"rule": "adamw", "betas": betas, "eps": 1e-10}
    for parameters, ratio, decay in (
        (embeddings, embed_lr_ratio, weight_decay),
        (heads, head_lr_ratio, weight_decay),
        (others, vector_lr_ratio, 0.0),
    ):
        groups.append({"params": parameters, "lr": lr * ratio, "weight_decay": decay, **rule})
    return Optimizer(model, [group for group in groups if group["params"]], state_bits)
