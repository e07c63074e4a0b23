"""Measure the state of a custom optimizer, and the memory of its steps, on small networks.

The networks have the same kinds of weights as the real one. All their sizes are different, so the
size of each dimension of the state tells which dimension of the weight it follows.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.errors import Refused, require
from llm.memory.custom import NUMBERS, CustomState, StateEntry
from llm.memory.weights import without_layer
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.training.signature import takes

STEPS = 11  # some optimizers add to their state every few steps
SMALL = {
    "n_embed": 23, "n_head": 4, "head_size": 6, "intermediate_size": 47, "block_size": 71,
    "vocab_size": 89,
}  # fmt: skip
OTHER_SIZES = SMALL | {"n_embed": 29, "head_size": 10, "intermediate_size": 53, "vocab_size": 97}
PYTHON = {bool: torch.bool, int: torch.int64, float: torch.float64}  # their dtype in a checkpoint


def build_custom(make: Callable[..., Any], keys: dict[str, Any], model: nn.Module) -> Any:
    """Call a class or function for an optimizer of the trained weights of ``model``.

    It gets ``model=`` if it has such a parameter, else two groups: matrices, and vectors, which do
    not decay.
    """
    if takes(make, "model"):
        return make(model=model, **keys)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2]},
        {"params": [p for p in parameters if p.dim() < 2]},
    ]
    if takes(make, "weight_decay") or "weight_decay" in keys:
        groups[1]["weight_decay"] = 0.0
    return make([group for group in groups if group["params"]], **keys)


def require_interface(where: str, optimizer: Any, model: nn.Module) -> None:
    """Raise :class:`llm.errors.Refused` unless ``optimizer`` updates the weights of ``model``."""
    for name in ("param_groups", "state", "step"):
        require(
            hasattr(optimizer, name), f"{where} makes a {type(optimizer).__name__} without {name}"
        )
    groups = optimizer.param_groups
    require(all("lr" in g for g in groups), f"{where}: its param_groups have no lr to schedule")
    updated = sorted(id(p) for group in groups for p in group["params"])
    trained = sorted(id(p) for p in model.parameters() if p.requires_grad)
    require(updated == trained, f"{where} does not update each weight of the network once")


def measure(
    where: str, make: Callable[..., Any], keys: dict[str, Any], config: GPTConfig,
    device: torch.device, foreach: bool = False,
) -> CustomState:  # fmt: skip
    """The state of the optimizer that ``make`` builds, for a network like ``config``.

    With ``foreach``, torch's classes update all weights at once, as on a GPU. Raises
    :class:`llm.errors.Refused`, naming ``where``, for an optimizer that cannot be used.
    """
    if foreach and takes(make, "foreach") and "foreach" not in keys and not keys.get("fused"):
        keys = keys | {"foreach": True}
    with torch.random.fork_rng():
        few = _steps(where, make, keys, small(config, 1, SMALL), device)
        more = _steps(where, make, keys, small(config, 3, OTHER_SIZES), device)
    for name, entries in few.state.items():
        follows = entries == more.state[name]
        require(follows, f"{where}: the shape of its state for {name} does not follow the weight's")
    # temporaries = of_largest * largest + of_all * total: two equations for two unknowns
    growth = more.largest / few.largest
    of_all = (more.temporaries - growth * few.temporaries) / (more.total - growth * few.total)
    of_all = max(0, round(of_all))
    of_largest = max(0, round((few.temporaries - of_all * few.total) / few.largest))
    return CustomState(few.state, few.changing, of_largest, of_all)


def small(config: GPTConfig, n_layer: int, sizes: dict[str, int]) -> GPTConfig:
    """``config`` with other sizes."""
    shared = config.n_kv_head is not None and config.n_kv_head != config.n_head
    heads = {"n_layer": n_layer, "n_kv_head": 2 if shared else 4}
    return replace(config, **(sizes | heads))  # type: ignore[arg-type]  # sizes


@dataclass
class _Steps:
    """Observations from a few steps on a small network."""

    total: int  # elements of all weights
    largest: int  # elements of the largest weight
    temporaries: int  # bytes
    state: dict[str, tuple[StateEntry, ...]]
    changing: tuple[str, ...]


def _steps(
    where: str, make: Callable[..., Any], keys: dict[str, Any], config: GPTConfig,
    device: torch.device,
) -> _Steps:  # fmt: skip
    model = GPT(**asdict(config)).to(device)
    optimizer = build_custom(make, keys, model)
    require_interface(where, optimizer, model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = [dict(group) for group in optimizer.param_groups]
    first: dict[str, set[object]] = {}
    for _ in range(STEPS):
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        with torch.no_grad(), _Peak() as peak:
            optimizer.step()
        first = first or {name: set(optimizer.state.get(p, {})) for name, p in named.items()}
    state = {
        without_layer(name): tuple(
            _entry(where, name, p, key, value, key in first[name])
            for key, value in optimizer.state.get(p, {}).items()
        )
        for name, p in named.items()
    }
    changing = {
        key: True
        for old, group in zip(before, optimizer.param_groups, strict=True)
        for key, value in old.items()
        if key != "lr" and isinstance(value, bool | int | float | str | None)
        if type(group[key]) is not type(value) or group[key] != value
    }  # the schedule sets lr
    sizes = [p.numel() for p in named.values()]
    return _Steps(sum(sizes), max(sizes), peak.most - peak.now, state, tuple(changing))


def _entry(where: str, weight: str, p: Tensor, key: object, value: Any, first: bool) -> StateEntry:
    if not (isinstance(key, str) and key.isidentifier()):
        raise Refused(f"{where} keeps {key!r} for {weight}, which is not a name")
    if value is None or type(value) in PYTHON:
        return StateEntry(key, (), type(value).__name__, 0, from_first_step=first)
    if not isinstance(value, Tensor):
        raise Refused(f"{where} keeps {key} for {weight}, a {type(value).__name__}: neither a "
                      "tensor nor a number")  # fmt: skip
    dims = tuple(_dim(size, place, p) for place, size in enumerate(value.shape))
    on_cpu = value.device.type == "cpu" and p.device.type != "cpu"
    kind = str(value.dtype).removeprefix("torch.")
    return StateEntry(key, dims, kind, value.dtype.itemsize, on_cpu, first)


def _dim(size: int, place: int, p: Tensor) -> str | int:
    """The dimension of the weight that has this size, preferably the one at the same place."""
    axes = [axis for axis in range(p.dim()) if p.shape[axis] == size]
    if axes:
        return str(place if place in axes else axes[0])
    return NUMBERS if size == math.prod(p.shape) else size


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the bytes of new tensors: those alive ``now``, and the ``most`` at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in inputs and storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
