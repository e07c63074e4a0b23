"""Options as dataclasses: bounds stand beside their field, and one function checks them all.

    n_layer: int = option(4, at_least=1, at_most=512)
    norm: str = option("rmsnorm", one_of=NORMS)
    betas: list[float] = option([0.9, 0.95], at_least=0, less_than=1)    each number of the list

A rule between several fields is code: a method ``cross_check(self) -> None`` of the dataclass,
which raises :class:`llm.errors.Refused` and which :func:`validate` calls after the bounds.
"""

from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from math import isfinite
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from llm.errors import Refused, require

T = TypeVar("T")
BOUNDS = "bounds"  # key in the metadata of a field
TYPE_NAMES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
    list: "a list", tuple: "a list", dict: "a section", NoneType: "null",
}  # fmt: skip
SHORT = Repr()  # stops early: a list from a pickle may have itself endlessly often inside
SHORT.maxlevel, SHORT.maxlist, SHORT.maxdict = 3, 9, 9


@dataclass(frozen=True)
class Bounds:
    """The values that an option may have; None: no such bound."""

    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    one_of: Collection[str | int] | None = None

    def allow(self, value: Any) -> bool:
        """Whether ``value``, of the right type, is within the bounds."""
        return (
            (self.one_of is None or value in self.one_of)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )

    def instead_of(self, value: Any) -> list[Any]:
        """The allowed values; of numbers, the bound that ``value`` is beyond, if it is allowed."""
        if self.one_of is not None:
            return list(self.one_of)
        bounds = (self.at_least, self.at_most)
        nearest = [one for one in bounds if one is not None and self.allow(one)]
        return sorted(nearest, key=lambda one: abs(one - value))[:1]

    def __str__(self) -> str:
        """``at least 1 and at most 512``"""
        if self.one_of is not None:
            return f"one of {', '.join(map(str, self.one_of))}"
        limits = {name: limit for name, limit in vars(self).items() if limit is not None}
        return " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())


def option(default: Any = MISSING, **bounds: Any) -> Any:
    """A dataclass field with :class:`Bounds`, which hold for each item of a list or dict; None is
    always allowed.
    """
    metadata = {BOUNDS: Bounds(**bounds)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_length(key: str, text: str | None, at_most: int) -> None:
    """Raise :class:`llm.errors.Refused` for a text of more than ``at_most`` characters."""
    length = len(text or "")
    require(length <= at_most, f"{key} has {length} characters: give at most {at_most}")


def bounds_of(section: Any, key: str) -> Bounds:
    """The bounds of one field of a dataclass."""
    return next(bounds for name, _, bounds in _bounded(section) if name == key)


def validate(section: Any, prefix: str = "", only: Collection[str] | None = None) -> None:
    """Check the type and bounds of every field, in nested dataclasses, lists and dicts as well.

    ``prefix`` stands before the key in a message: ``trainer.``. ``only``: the fields to check, if
    the others have been checked before. Raises :class:`llm.errors.Refused` naming the first wrong
    key, its value and the allowed values. Integers must fit into 64 bits; floats must be finite,
    except in fields of type Any.
    """
    cls: Any = type(section)
    for name, kind, bounds in _bounded(cls):
        if only is None or name in only:
            _check(getattr(section, name), kind, bounds, prefix + name)
    if hasattr(section, "cross_check"):
        section.cross_check()


def from_plain(cls: type[T], values: Any, prefix: str) -> T:
    """The dataclass ``cls`` from JSON that may come from a stranger.

    ``prefix`` stands before the key in a message: ``x/checkpoint.json: model.``. A missing key gets
    the default of its field: an earlier version may have written the file. Lists become tuples
    and objects become dataclasses where the type of the field says so. Raises
    :class:`llm.errors.Refused` for an unknown key, a missing one without a default, a wrong type
    and a value out of bounds.
    """
    section = _built(cls, values, prefix)
    validate(section, prefix)
    return section


@cache  # with the next two, a sweep of 5,000 jobs is checked in half the time
def _bounded(cls: Any) -> list[tuple[str, Any, Bounds]]:
    """The name, type and bounds of each field of a dataclass."""
    kinds = get_type_hints(cls)
    return [(one.name, kinds[one.name], one.metadata.get(BOUNDS, Bounds())) for one in fields(cls)]


@cache
def _alternatives(kind: Any) -> tuple[Any, ...]:
    """``(int, NoneType)`` of ``int | None``"""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _check(value: Any, kind: Any, bounds: Bounds, key: str) -> None:
    kinds = _alternatives(kind)
    kind = next((one for one in kinds if _has_type(value, one)), None)
    if kind is None:
        names = [TYPE_NAMES.get(get_origin(one) or one, "a section") for one in kinds]
        raise _wrong(key, value, f"must be {' or '.join(names)}")
    if is_dataclass(value):
        validate(value, f"{key}.")
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, (*get_args(kind), Any)[0], bounds, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(item, (*get_args(kind), Any, Any)[1], bounds, f"{key}.{name}")
    elif value is not None:
        _check_scalar(value, kind, bounds, key, " or null" * (NoneType in kinds))


def _check_scalar(value: Any, kind: Any, bounds: Bounds, key: str, or_null: str) -> None:
    if isinstance(value, int) and abs(value) >= 2**63:  # Python does not print 5,000 digits
        raise Refused(f"{key} has more than 63 bits: give a smaller number")
    if isinstance(value, float) and not isfinite(value) and kind is not Any:
        raise _wrong(key, value, "must be a finite number")
    if not bounds.allow(value):
        raise _wrong(key, value, f"must be {bounds}{or_null}", bounds.instead_of(value))


def _wrong(key: str, value: Any, text: str, instead: Collection[Any] = ()) -> Refused:
    """The refusal of a value; ``instead``: values to suggest."""
    message = f"{key}={_shown(value)} {text}"
    if " " in key:  # the name of a file comes first, so nobody has typed the key
        return Refused(message)
    return Refused(message, key=key, suggestions=[f"{key}={_shown(one)}" for one in instead])


@cache
def _class_of(kind: Any) -> Any:
    """``list`` of ``list[float]``"""
    return get_origin(kind) or kind


def _has_type(value: Any, kind: Any) -> bool:
    kind = _class_of(kind)
    if kind is Any:
        return True
    if kind is float:
        return type(value) in (int, float)
    return type(value) is int if kind is int else isinstance(value, kind)  # True is no int here


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.60}" if isinstance(value, str) else f"{SHORT.repr(value):.60}"


def _built(cls: type[T], values: Any, prefix: str) -> T:
    require(isinstance(values, dict), f"{prefix.rstrip(' .:')} must be a section of keys")
    known = {one.name: one for one in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    kinds = get_type_hints(cls)
    for key in values:
        require(key in known, f"{prefix}{key:.60} is an unknown key")
    for key, one in known.items():
        has_default = one.default is not MISSING or one.default_factory is not MISSING
        require(key in values or has_default, f"{prefix}{key} is missing")
    return cls(**{key: _converted(v, kinds[key], prefix + key) for key, v in values.items()})


def _converted(value: Any, kind: Any, key: str) -> Any:
    """``value`` for a field of type ``kind``; :func:`validate` refuses a wrong type later."""
    for one in _alternatives(kind):
        origin, inside = get_origin(one), get_args(one)
        if isinstance(one, type) and is_dataclass(one) and isinstance(value, dict):
            return _built(one, value, f"{key}.")
        if origin in (list, tuple) and isinstance(value, list):
            return origin(_converted(item, inside[0], key) for item in value)
        if origin is dict and isinstance(value, dict):
            return {name: _converted(v, inside[1], f"{key}.{name}") for name, v in value.items()}
    return value
