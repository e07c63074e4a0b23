"""The versions of this program, of its packages (without importing them) and of Python."""

import platform
from importlib.metadata import version

from llm import __version__


def version_line() -> str:
    """``llm 0.2.0 (torch 2.13.0, hydra-core 1.3.8, Python 3.11.7)``"""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "hydra-core"))
    return f"llm {__version__} ({packages}, Python {platform.python_version()})"
