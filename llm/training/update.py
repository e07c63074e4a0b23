"""From gradients to weights: all at once, or one weight after another in the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

from llm.training.optimizer import Optimizer
from llm.training.precision import Precision


class Update:
    """One step: ``backward`` for each micro-batch, ``norm``, then ``step`` unless the norm is not
    finite, and ``drop``.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, precision: Precision, grad_clip: float
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer, self.precision = optimizer, precision
        self.grad_clip = grad_clip or torch.inf

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss ()."""
        self.precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's

    def norm(self) -> Tensor:
        """The norm of all gradients (), which are clipped to ``grad_clip`` from here on."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm, factor = self._clipping(norms_of(gradients))
        torch._foreach_mul_(gradients, factor)
        return norm

    def step(self) -> None:
        """Change the weights."""
        self.optimizer.step()

    def drop(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad()

    def _clipping(self, norms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The norm of the unscaled gradients (), and the factor () that unscales and clips them."""
        scale = self.precision.scaler.get_scale()
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) / scale
        return norm, (self.grad_clip / (norm + 1e-6)).clamp(max=1) / scale


class UpdateInBackward(Update):
    """The same step, with the gradient of one weight in memory at a time.

    Each weight is updated as soon as its gradient is computed (Lv et al. 2023, arXiv:2306.09782,
    section 3). Clipping needs the norm of all gradients first, so the backward pass runs twice:
    once to measure, once to update. The gradients of several micro-batches cannot be summed.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, precision: Precision, grad_clip: float
    ) -> None:
        super().__init__(model, optimizer, precision, grad_clip)
        self.loss: Any = None
        self.norms: list[Tensor] = []
        self.factor: Tensor | None = None  # None: the next backward pass measures the norms
        for parameter in self.parameters:
            register: Any = parameter.register_post_accumulate_grad_hook  # torch has no types
            register(self._use_gradient)

    def backward(self, loss: Tensor) -> None:
        """Remember the loss; ``norm`` and ``step`` compute its gradients."""
        self.loss = self.precision.scaler.scale(loss)

    def norm(self) -> Tensor:
        """As :meth:`Update.norm`, by the first backward pass."""
        self.loss.backward(retain_graph=True)
        norm, self.factor = self._clipping(self.norms)
        return norm

    def step(self) -> None:
        """Change the weights, in the second backward pass."""
        self.loss.backward()

    def drop(self) -> None:
        """Free the activations that a backward pass would need."""
        self.loss, self.norms, self.factor = None, [], None

    def _use_gradient(self, parameter: Tensor) -> None:
        """Called in the backward pass, as soon as the gradient of ``parameter`` is complete."""
        assert parameter.grad is not None
        if self.factor is None:
            self.norms += norms_of([parameter.grad])
        else:
            parameter.grad.mul_(self.factor)
            self.optimizer.update([parameter])
        parameter.grad = None


def norms_of(gradients: list[Tensor]) -> list[Tensor]:
    """The norm of each gradient (), in float32 also where the gradient is bfloat16."""
    return list(torch._foreach_norm(gradients, 2, torch.float32))
