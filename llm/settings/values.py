"""What a number may be in every key that holds one, and the values in plain lists and dicts."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

from llm.errors import require
from llm.settings.own import Own


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


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What is in plain lists and dicts, each with its dotted key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, key)
    else:
        yield key, value
