"""From gradients to weights: all at once, or each weight in the middle of the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

from llm.training.optimizer import Optimizer
from llm.training.precision import Precision


class Update:
    """One step: ``backward`` for each micro-batch, ``norm``, perhaps ``step``, and ``end``."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, precision: Precision, grad_clip: float
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer, self.precision = optimizer, precision
        self.grad_clip = grad_clip or torch.inf

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss."""
        self.precision.scaler.scale(loss).backward()

    def norm(self) -> Tensor:
        """The norm of all gradients (), which are clipped to ``grad_clip`` from here on."""
        self.precision.scaler.unscale_(self.optimizer)
        if self.precision.weights == torch.float32:
            return nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        norms = [measured(p.grad) for p in self.parameters if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        return norm

    def step(self) -> None:
        """Change the weights."""
        self.precision.scaler.step(self.optimizer)

    def end(self) -> None:
        """Free the gradients, whether or not the step was made."""
        self.precision.scaler.update()
        self.drop()

    def drop(self) -> None:
        """Free the gradients of a step that is given up."""
        self.optimizer.zero_grad()


class Probe:
    """What a GradScaler takes for an optimizer, in whose gradients it looks for overflows: there is
    one, the norm of all others, which is finite if they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.norm = torch.zeros((), device=device, requires_grad=True)
        self.param_groups = [{"params": [self.norm]}]

    def step(self) -> None:
        """Nothing is left to be done."""


class UpdateInBackward(Update):
    """The same step with one gradient at a time (Lv et al. 2023, arXiv:2306.09782, section 3).

    Clipping needs the norm of all gradients before the first weight changes: with ``first`` they
    are computed twice, and first only measured. Without, a weight is changed as soon as its
    gradient is there, unless that is not finite. Not for several micro-batches, whose gradients
    would have to be kept to be summed.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, precision: Precision, grad_clip: float,
        first: bool,
    ) -> None:  # fmt: skip
        super().__init__(model, optimizer, precision, grad_clip)
        self.first = first or self.grad_clip < torch.inf
        self.probe = Probe(self.parameters[0].device)
        self.squares: list[Tensor] = []
        self.loss: Tensor | None = None
        self.changes: bool | None = None  # in this backward pass; None: nothing is measured either
        self.factor: Tensor = torch.ones(())
        for parameter in self.parameters:
            hook: Any = parameter.register_post_accumulate_grad_hook  # torch has no types for it
            hook(self.arrived)

    def backward(self, loss: Tensor) -> None:
        """Remember the loss; its gradients come later."""
        self.loss = self.precision.scaler.scale(loss)

    def norm(self) -> Tensor:
        """As :meth:`Update.norm`; without ``first``, this is the step as well."""
        assert self.loss is not None
        scale = self.precision.scaler.get_scale()
        self.factor = torch.full((), 1 / scale, device=self.loss.device)
        if self.first or is_finite(self.loss):
            self.run(changes=not self.first)
        norm = torch.stack(self.squares or [self.loss.detach()]).sum().sqrt()
        self.squares.clear()
        self.probe.norm.grad = norm
        self.precision.scaler.unscale_(self.probe)  # in place
        self.factor *= (self.grad_clip / (norm + 1e-6)).clamp(max=1)
        return norm

    def step(self) -> None:
        """Change the weights in a second pass, where the first one only measured."""
        assert self.probe.norm.grad is not None
        if self.first and is_finite(self.probe.norm.grad):
            self.run(changes=True)
        self.precision.scaler.step(self.probe)

    def drop(self) -> None:
        """Free what a backward pass would need."""
        self.loss = None
        self.squares.clear()

    def run(self, changes: bool) -> None:
        """One backward pass, after which no gradient is left."""
        assert self.loss is not None
        self.changes = changes
        try:
            self.loss.backward(retain_graph=not changes)  # type: ignore[no-untyped-call]  # torch's
        finally:
            self.changes = None

    def arrived(self, parameter: Tensor) -> None:
        """The whole gradient of a parameter is there."""
        gradient = parameter.grad
        if self.changes is None or gradient is None:
            return
        norm = measured(gradient)
        if not (self.changes and self.first):
            self.squares.append(norm.square())
        if self.changes and (self.first or is_finite(norm)):
            gradient.mul_(self.factor)
            self.optimizer.update([parameter])
        parameter.grad = None


def measured(gradient: Tensor) -> Tensor:
    """The norm of a gradient () in float32, whatever its own type."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float32)
    return norm


def is_finite(value: Tensor) -> bool:
    """Whether a single number is one; waits for the device."""
    return bool(value.isfinite())


def choose_update(
    model: nn.Module, optimizer: Optimizer, precision: Precision, grad_clip: float,
    in_backward: bool, skip_spikes: bool,
) -> Update:  # fmt: skip
    """The one that the trainer's options ask for."""
    if not in_backward:
        return Update(model, optimizer, precision, grad_clip)
    # Where gradients overflow now and then, the whole step is left out, as without.
    first = skip_spikes or precision.scaler.is_enabled()
    return UpdateInBackward(model, optimizer, precision, grad_clip, first)
