"""The names in ``import llm``: train, plan and read runs from Python.

These functions call the same code as the commands. Each imports torch or Hydra when it needs them.
"""

from llm.api.call import plan, sweep, train
from llm.api.run import Run, load, runs
from llm.errors import DiskError, Diverged, Interrupted, OutOfMemory, Refused, Stop

__all__ = [
    "DiskError", "Diverged", "Interrupted", "OutOfMemory", "Refused", "Run", "Stop",
    "load", "plan", "runs", "sweep", "train",
]  # fmt: skip
