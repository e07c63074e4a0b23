"""Which version this is, and of what it is made; nothing of that is imported."""

import platform
from importlib.metadata import PackageNotFoundError, version

from llm import __version__


def version_line() -> str:
    """``llm 0.1.0 (torch 2.13.0, hydra-core 1.3.8, Python 3.11.7)``"""
    found = [f"{name} {_version(name)}" for name in ("torch", "hydra-core")]
    return f"llm {__version__} ({', '.join(found)}, Python {platform.python_version()})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
