"""What an optimizer of the user's own keeps, and what a step takes: measured, by letting it step.

A small network with the same kinds of weights as the real one takes a few steps with random
gradients. No two dimensions of a matrix in it are equal, so that those of what is kept for a weight
tell which of its own they follow.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm.errors import Refused, require
from llm.memory.kept import NUMBERS, Entry, Kept, alike
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.training.signature import takes

STEPS = 11  # some classes keep more every few steps
SMALL = {
    "n_embed": 23, "n_head": 4, "head_size": 6, "intermediate_size": 47, "block_size": 71,
    "vocab_size": 89,
}  # fmt: skip
OTHER = SMALL | {"n_embed": 29, "head_size": 10, "intermediate_size": 53, "vocab_size": 97}
PYTHON = {bool: torch.bool, int: torch.int64, float: torch.float64}  # as tensors of a checkpoint


def made(make: Callable[..., Any], keys: dict[str, Any], model: nn.Module) -> Any:
    """What a class or function makes of the weights of ``model`` that are trained.

    It is called with ``model=`` if it takes that, else with two groups, of matrices and of vectors.
    Vectors do not decay.
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


def measure(
    where: str, make: Callable[..., Any], keys: dict[str, Any], config: GPTConfig,
    device: torch.device, foreach: bool = False,
) -> Kept:  # fmt: skip
    """What is kept for each kind of weight of a network like ``config``.

    ``foreach``: as torch's own classes update weights on a GPU, if this one can. Raises
    :class:`llm.errors.Refused`, with ``where`` in it, for a class that cannot be used here.
    """
    if foreach and takes(make, "foreach") and "foreach" not in keys and not keys.get("fused"):
        keys = keys | {"foreach": True}
    few, more, other = (
        _Steps(where, make, keys, small(config, layers, sizes), device)
        for layers, sizes in ((1, SMALL), (3, SMALL), (1, OTHER))
    )
    differing = [name for name, kept in few.kept.items() if other.kept[name] != kept]
    require(
        not differing,
        f"{where}: the shapes of what it keeps for {differing[:1]} do not follow from the weight's",
    )
    of_all = max(0, round((more.temporaries - few.temporaries) / (more.numbers - few.numbers)))
    of_largest = max(0, round((few.temporaries - of_all * few.numbers) / few.largest))
    return Kept(tuple(few.kept.items()), few.changing, of_largest, of_all)


def small(config: GPTConfig, n_layer: int, sizes: dict[str, int]) -> GPTConfig:
    """The options of ``config`` at other sizes."""
    shared = config.n_kv_head is not None and config.n_kv_head != config.n_head
    own = {"n_layer": n_layer, "n_kv_head": 2 if shared else 4}
    return replace(config, **(sizes | own))  # type: ignore[arg-type]  # sizes


class _Steps:
    """A few steps, and what they leave."""

    def __init__(
        self, where: str, make: Callable[..., Any], keys: dict[str, Any], config: GPTConfig,
        device: torch.device,
    ) -> None:  # fmt: skip
        with torch.random.fork_rng():
            model = GPT(**asdict(config)).to(device)
            parameters = [p for p in model.parameters() if p.requires_grad]
            self.numbers = sum(p.numel() for p in parameters)
            self.largest = max(p.numel() for p in parameters)
            optimizer = made(make, keys, model)
            require_interface(where, optimizer, model)
            groups = [_values(group) for group in optimizer.param_groups]
            early: set[tuple[str, str]] = set()
            for step in range(STEPS):
                for parameter in parameters:
                    parameter.grad = torch.randn_like(parameter)
                with torch.no_grad(), _Peak() as peak:
                    optimizer.step()
                if step == 0:
                    early = {(n, k) for n, p in _named(model) for k in optimizer.state.get(p, {})}
            self.temporaries = peak.most - peak.held
            changed = [
                key
                for before, group in zip(groups, optimizer.param_groups, strict=True)
                for key, value in before.items()
                if key != "lr"  # which the schedule sets
                if type(group[key]) is not type(value) or group[key] != value
            ]
            self.changing = tuple(dict.fromkeys(changed))
            self.kept = {}
            for name, p in _named(model):
                state = optimizer.state.get(p, {})
                self.kept[alike(name)] = tuple(
                    _entry(where, name, p, key, value, (name, key) in early)
                    for key, value in state.items()
                )


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _values(group: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a group."""
    plain = (bool, int, float, str, type(None))
    return {key: value for key, value in group.items() if isinstance(value, plain)}


def require_interface(where: str, optimizer: Any, model: nn.Module) -> None:
    """Raise :class:`llm.errors.Refused` unless this is an optimizer of the weights of ``model``."""
    for name in ("param_groups", "state", "step"):
        require(hasattr(optimizer, name), f"{where} makes a {type(optimizer).__name__}, no {name}")
    groups = optimizer.param_groups
    require(all("lr" in g for g in groups), f"{where}: its param_groups have no lr to schedule")
    held = [p for group in groups for p in group["params"]]
    wanted = [p for _, p in _named(model)]
    once = len(held) == len(wanted) and {id(p) for p in held} == {id(p) for p in wanted}
    require(once, f"{where} does not update each weight of the network once")


def _entry(where: str, weight: str, p: Tensor, key: object, value: Any, at_once: bool) -> Entry:
    named = isinstance(key, str) and key.isidentifier()
    require(named, f"{where} keeps {key!r} for {weight}, which is not a name")
    name = str(key)
    if value is None or type(value) in PYTHON:
        kind = "None" if value is None else type(value).__name__
        return Entry(name, (), kind, 0, at_once=at_once)
    if not isinstance(value, Tensor):
        raise Refused(f"{where} keeps {name} for {weight}, a {type(value).__name__}: neither a "
                      "tensor nor a number")  # fmt: skip
    dims = tuple(_dim(size, place, p) for place, size in enumerate(value.shape))
    on_cpu = value.device.type == "cpu" and p.device.type != "cpu"
    kind = str(value.dtype).removeprefix("torch.")
    return Entry(name, dims, kind, value.dtype.itemsize, on_cpu, at_once)


def _dim(size: int, place: int, p: Tensor) -> str | int:
    """What a dimension of something kept follows: the same one of the weight, if it can be that."""
    order = sorted(range(p.dim()), key=lambda axis: axis != place)
    same = [str(axis) for axis in order if p.shape[axis] == size]
    if same:
        return same[0]
    return NUMBERS if size == math.prod(p.shape) else size


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Bytes of tensors that operations make: ``held`` at the end, and ``most`` at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.held = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(s) for s in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in before and storage not in self.known:
                self.known.add(storage)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.held)
        return out

    def _freed(self, size: int) -> None:
        self.held -= size


def _storages(values: Any) -> list[Any]:
    if isinstance(values, Tensor):
        return [values.untyped_storage()]
    if isinstance(values, dict):
        values = list(values.values())
    return [s for one in values for s in _storages(one)] if isinstance(values, list | tuple) else []
