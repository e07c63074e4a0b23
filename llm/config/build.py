"""The one place where a configuration becomes an object."""

import inspect
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import hydra.utils

NOT_BUILT = "not an argument"  # in the metadata of a field that is a setting and nothing else


def build(section: Any, **runtime: Any) -> Any:
    """Call the ``_target_`` of a section with its other keys and with the objects in ``runtime``.

    Hydra's own blocklist is no security boundary, as its maintainers say, so a target must be a
    class or function that is defined in ``llm``, and no value may hold an interpolation or a target
    of its own.
    """
    if is_dataclass(section) and not isinstance(section, type):
        settings = {field.name for field in fields(section) if NOT_BUILT in field.metadata}
        plain = {key: value for key, value in asdict(section).items() if key not in settings}
    else:
        plain = dict(section)
    check_target(plain["_target_"])
    for key, value in plain.items():
        _check_plain(key, value)
    target = hydra.utils.get_object(plain.pop("_target_"))
    return target(**plain, **runtime)


def check_target(name: str) -> None:
    """Raise ``ValueError`` unless ``name`` is a class or function whose code is in this package."""
    if not name.startswith("llm."):
        raise ValueError(f"_target_ {name!r} is not inside llm")
    found = hydra.utils.get_object(name)
    real = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    if not (inspect.isclass(found) or inspect.isfunction(found)) or real != name:
        raise ValueError(f"_target_ {name!r} is {real}, not a class or function defined there")


def _check_plain(key: str, value: Any) -> None:
    if isinstance(value, dict):
        raise ValueError(f"{key} is a nested configuration: pass what it would build instead")
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str | int | float | bool | None):
            raise ValueError(f"{key}={item!r} is not a plain value")
