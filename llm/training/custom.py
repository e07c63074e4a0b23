"""A custom optimizer behind the interface of the built-in ones.

It has ``param_groups``, ``state`` and ``step()`` like torch's. A checkpoint holds the tensors and
numbers in its state, and the values in its groups that steps change. Saved state is restored only
if it has the names, shapes and types that were measured before the run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm.checkpoint.tensors import MOST_STATE
from llm.errors import require
from llm.memory.custom import CustomState, StateEntry
from llm.model.gpt import GPT
from llm.training.measure import PYTHON, build_custom, measure, require_interface
from llm.training.optimizer import PREFIX, UNUSABLE, Layout, Optimizer, layout_bytes

NUMBERS = {kind.__name__: dtype for kind, dtype in PYTHON.items()}
NONE = type(None).__name__


class CustomOptimizer(Optimizer):
    """``inner`` as an :class:`Optimizer`; ``measured`` describes its state."""

    def __init__(self, where: str, inner: Any, model: nn.Module, measured: CustomState) -> None:
        super().__init__(model, inner.param_groups)
        self.where, self.inner, self.measured = where, inner, measured
        self.state = inner.state
        self.has_stepped = False

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        with torch.no_grad():
            self.inner.step()
        if not self.has_stepped:
            self.state_dict()  # refuses state that cannot be saved, before more steps are lost
            self.has_stepped = True

    def _entries(self, parameter: Tensor) -> tuple[StateEntry, ...]:
        return self.measured.entries(self.names[parameter])

    def layout(self, parameter: Tensor) -> Layout:
        """Shape and type of the state of one parameter, including entries that appear later."""
        shape = tuple(parameter.shape)
        return {
            one.name: (one.shape(shape), NUMBERS.get(one.kind) or getattr(torch, one.kind))
            for one in self._entries(parameter)
            if one.kind != NONE
        }

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of one parameter, numbers as tensors; empty before the first step."""
        layout, tensors = self.layout(parameter), {}
        for name, value in self.state.get(parameter, {}).items():
            if value is None:
                continue
            dtype = PYTHON.get(type(value))
            tensor = value if dtype is None else torch.tensor(value, dtype=dtype)
            known = isinstance(tensor, Tensor) and (tuple(tensor.shape), tensor.dtype)
            require(
                known == layout.get(name),
                f"{self.where} keeps {name} for {self.names[parameter]}, but kept nothing like it "
                "for small weights: it cannot be saved",
            )
            tensors[name] = tensor
        return tensors

    def restored(self, parameter: Tensor, state: dict[str, Tensor]) -> dict[str, Any]:
        """The saved state of one parameter, as tensors, Python numbers and None."""
        values: dict[str, Any] = {}
        for one in self._entries(parameter):
            if one.kind == NONE:
                values[one.name] = None
            elif one.name in state and one.kind in NUMBERS:
                values[one.name] = state[one.name].item()
            elif one.name in state:
                device = "cpu" if one.on_cpu else parameter.device
                values[one.name] = state[one.name].to(device)
        return values

    def custom_layout(self) -> Layout:
        """:meth:`full_layout`: checkpoints are read by it."""
        return self.full_layout()

    def check(self, saved: Layout) -> None:
        """Raise :class:`llm.errors.Refused` unless ``saved`` is a layout of this optimizer."""
        needed = {
            f"{PREFIX}{name}/{one.name}"
            for parameter, name in self.names.items()
            for one in self._entries(parameter)
            if one.from_first_step and one.kind != NONE
        }
        known = saved.items() <= self.full_layout().items()
        require(known and needed <= saved.keys(), UNUSABLE)

    def group_values(self) -> list[dict[str, Any]]:
        """The values in ``param_groups`` that steps change, for a checkpoint."""
        keys = self.measured.changing
        return [{k: group[k] for k in keys if k in group} for group in self.param_groups if keys]

    def load_group_values(self, values: Any) -> None:
        """Restore :meth:`group_values`; :class:`llm.errors.Refused` if they do not fit."""
        now = self.group_values()
        is_usable = len(values) == len(now) and all(map(_is_alike, values, now))
        require(is_usable, f"the checkpoint holds no usable param_groups of {self.where}")
        for group, saved in zip(self.param_groups, values, strict=False):
            group.update(saved)


def _is_alike(saved: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether both have the same names and types; a number may replace None, and vice versa."""
    kinds = [{type(saved.get(key)), type(value)} for key, value in group.items()]
    numbers = {int, float, type(None)}
    return saved.keys() == group.keys() and all(len(k) == 1 or k <= numbers for k in kinds)


def custom_optimizer(
    where: str, make: Callable[..., Any], keys: dict[str, Any], model: GPT
) -> Optimizer:
    """The optimizer that ``make`` builds from ``keys`` for ``model``; errors call it ``where``.

    Raises :class:`llm.errors.Refused` for an optimizer that cannot be used.
    """
    inner = build_custom(make, keys, model)
    if isinstance(inner, Optimizer):  # a function that returns a built-in one
        return inner
    require_interface(where, inner, model)
    device = next(model.parameters()).device
    measured = measure(where, make, keys, model.config, device)
    optimizer = CustomOptimizer(where, inner, model, measured)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    each = layout_bytes(optimizer.full_layout()) / trained
    require(
        each <= MOST_STATE,
        f"{where} keeps {each:.0f} bytes for each weight, and a checkpoint may hold {MOST_STATE}",
    )
    return optimizer
