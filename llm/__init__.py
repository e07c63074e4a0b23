"""Train, sweep and sample small GPT-style language models on one GPU or a CPU.

From Python: ``import llm; run = llm.train(["model=nano"])``; docs/python.md has examples.

The package is a house with floors (see README, "The files"): a room imports only from lower floors.
Only ``llm/config/`` and the ``run_*.py`` scripts know Hydra; everything below takes plain Python
values.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and mypy; at run time, __getattr__ imports a name when it is used
    from llm.api import (
        DiskError,
        Diverged,
        Interrupted,
        OutOfMemory,
        Refused,
        Run,
        Stop,
        load,
        plan,
        runs,
        sweep,
        train,
    )

__version__ = "0.2.0"
__all__ = [
    "DiskError", "Diverged", "Interrupted", "OutOfMemory", "Refused", "Run", "Stop",
    "load", "plan", "runs", "sweep", "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llm import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
