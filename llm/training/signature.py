"""What a class or function of the user's own can be called with."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def takes(target: Callable[..., Any], name: str) -> bool:
    """Whether it has a parameter of that name."""
    signature = _signature(target)
    return signature is not None and name in signature.parameters


def require_arguments(target: Callable[..., Any], keys: Iterable[str], *first: object) -> None:
    """Raise ``TypeError`` unless it takes ``first`` and these keys."""
    signature = _signature(target)
    if signature is not None:
        signature.bind(*first, **dict.fromkeys(keys))


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # some that are written in C tell nothing
        return None
