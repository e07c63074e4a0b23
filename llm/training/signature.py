"""The parameters of a custom class or function."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def takes(target: Callable[..., Any], name: str) -> bool:
    """Whether ``target`` has a parameter ``name``."""
    signature = _signature(target)
    return signature is not None and name in signature.parameters


def require_arguments(target: Callable[..., Any], keys: Iterable[str]) -> None:
    """Raise ``TypeError`` unless ``target`` can be called with these keywords."""
    signature = _signature(target)
    if signature is not None:
        signature.bind(**dict.fromkeys(keys))


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return None
