"""An optimizer of the user's own, as the trainer knows one.

Its class is one of torch's kind: made from groups of parameters, with ``param_groups``, ``state``
and ``step()``. All that it needs to go on from must be in its state and its param_groups, as for
torch's ``state_dict()``: tensors, numbers and None. It is saved in tensors by the name of the
weight, and restored only where names, shapes and types are what the class was measured to keep.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llm.checkpoint.tensors import MOST_STATE
from llm.errors import Refused, require
from llm.memory.kept import Entry, Kept
from llm.model.gpt import GPT
from llm.training.measure import PYTHON, made, measure, require_interface
from llm.training.optimizer import PREFIX, UNUSABLE, Layout, Optimizer, layout_bytes

NAMED = {kind.__name__: dtype for kind, dtype in PYTHON.items()}


class Adapted(Optimizer):
    """``inner`` behind the interface of :class:`Optimizer`."""

    def __init__(self, where: str, inner: Any, model: nn.Module, kept: Kept) -> None:
        super().__init__(model, inner.param_groups)
        self.where, self.inner, self.measured = where, inner, kept
        self.state = inner.state
        self.is_known = False  # that what is kept is what was measured

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        with torch.no_grad():
            self.inner.step()
        if not self.is_known:
            for parameter in self.group_of:
                self.state_of(parameter)
            self.is_known = True

    def update(self, parameters: Iterable[Tensor]) -> None:
        """Only all at once, by :meth:`step`."""
        raise NotImplementedError

    def entries(self, parameter: Tensor) -> dict[str, Entry]:
        """What is kept for a parameter and has a value, by name."""
        found = self.measured.entries(self.names[parameter])
        return {entry.name: entry for entry in found if entry.kind != "None"}

    def layout(self, parameter: Tensor) -> Layout:
        """Shape and type of all that may be kept for a parameter from step to step."""
        return {
            name: (entry.shape(tuple(parameter.shape)), _dtype(entry))
            for name, entry in self.entries(parameter).items()
        }

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept for a parameter, numbers as tensors; nothing before the first step."""
        layout, found = self.layout(parameter), {}
        for name, value in self.state.get(parameter, {}).items():
            if value is None:
                continue
            dtype = PYTHON.get(type(value))
            tensor = value if dtype is None else torch.tensor(value, dtype=dtype)
            known = isinstance(tensor, Tensor) and (tuple(tensor.shape), tensor.dtype)
            if known != layout.get(name):
                raise Refused(
                    f"{self.where} keeps {name} for {self.names[parameter]}, which it did not do "
                    "when it was measured with small weights: it cannot be saved"
                )
            found[name] = tensor
        return found

    def restored(self, parameter: Tensor, state: dict[str, Tensor]) -> dict[str, Any]:
        """The saved state of one parameter as the class keeps it: tensors, numbers and None."""
        return {
            entry.name: self._value(entry, state, parameter)
            for entry in self.measured.entries(self.names[parameter])
            if entry.kind == "None" or entry.name in state
        }

    def _value(self, entry: Entry, state: dict[str, Tensor], parameter: Tensor) -> Any:
        if entry.kind == "None":
            return None
        tensor = state[entry.name]
        if entry.kind in NAMED:
            return tensor.item()
        return tensor.to("cpu" if entry.on_cpu else parameter.device)

    def custom_layout(self) -> Layout:
        """Shape and type of all that may be saved, by name."""
        return self.full_layout()

    def check(self, saved: Layout) -> None:
        """Raise :class:`llm.errors.Refused` unless ``saved`` is the layout of such a state."""
        needed = {
            f"{PREFIX}{name}/{key}"
            for parameter, name in self.names.items()
            for key, entry in self.entries(parameter).items()
            if entry.at_once
        }
        known = saved.items() <= self.full_layout().items()
        require(known and needed <= saved.keys(), UNUSABLE)

    def group_values(self) -> list[dict[str, Any]]:
        """The values of each group that steps change, for a checkpoint."""
        keys = self.measured.changing
        return [{k: group[k] for k in keys if k in group} for group in self.param_groups if keys]

    def load_group_values(self, values: Any) -> None:
        """Undo :meth:`group_values`; :class:`llm.errors.Refused` for another optimizer's."""
        now = self.group_values()
        right = isinstance(values, list) and len(values) == len(now)
        right = right and all(_same_kinds(*pair) for pair in zip(values, now, strict=True))
        require(right, f"the checkpoint holds no usable param_groups of {self.where}")
        for group, saved in zip(self.param_groups, values, strict=False):
            group.update(saved)


def _same_kinds(found: Any, wanted: dict[str, Any]) -> bool:
    same = isinstance(found, dict) and found.keys() == wanted.keys()
    return same and all(
        type(found[key]) is type(value)
        or {type(found[key]), type(value)} <= {int, float, type(None)}
        for key, value in wanted.items()
    )


def _dtype(entry: Entry) -> torch.dtype:
    found: torch.dtype = NAMED.get(entry.kind) or getattr(torch, entry.kind)
    return found


def adapted(where: str, make: Callable[..., Any], keys: dict[str, Any], model: GPT) -> Optimizer:
    """The optimizer that ``make`` makes of ``keys`` for ``model``; ``where`` names it in a refusal.

    What makes one of ours is taken as it is.
    """
    inner = made(make, keys, model)
    if isinstance(inner, Optimizer):
        return inner
    require_interface(where, inner, model)
    device = next(model.parameters()).device
    optimizer = Adapted(where, inner, model, measure(where, make, keys, model.config, device))
    each = layout_bytes(optimizer.full_layout()) / model.n_parameters()
    require(
        each <= MOST_STATE,
        f"{where} keeps {each:.0f} bytes for each weight, and a checkpoint may hold {MOST_STATE}",
    )
    return optimizer
