"""What a number and a boolean may be, in every key that holds one."""

from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

from omegaconf import BooleanNode
from omegaconf.errors import ValidationError

from llm.config.own import Own
from llm.errors import require


def check_numbers(settings: Any, prefix: str = "", finite: bool = True) -> None:
    """Raise :class:`llm.errors.Refused` for a number that no run could compute with or that could
    not be read again from its ``config.yaml``: infinite, not a number, or beyond 64 bits.
    """
    for one in fields(settings):
        value, key = getattr(settings, one.name), prefix + one.name
        if is_dataclass(value):
            check_numbers(value, f"{key}.", not isinstance(value, Own))  # whose class knows
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int):
                require(abs(number) < 2**63, f"{key} has {len(str(number))} digits: give less")
            if isinstance(number, float):
                require(not finite or isfinite(number), f"{key}={number} must be a finite number")


def _strict(self: BooleanNode, value: Any) -> bool:
    if type(value) is int and value not in (0, 1):
        raise ValidationError("Value '$VALUE' must be true or false")
    return _lenient(self, value)


# OmegaConf takes any whole number for a boolean: trainer.compile=7 would be true.
_lenient = BooleanNode._validate_and_convert_impl
BooleanNode._validate_and_convert_impl = _strict  # type: ignore[method-assign]
