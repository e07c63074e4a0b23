"""The reserve: memory outside tensors, measured in this process or on the GPU, or assumed."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from llm.errors import require
from llm.experiment.console import warn
from llm.memory.options import MemoryOptions
from llm.memory.predict import Lines

# Bytes that a process on a CPU allocates outside tensors after it is measured: imports of the
# training loop, stacks of threads, workspaces (python -m benchmarks.memory, rows rss_*).
LIBRARIES, WANDB = 110 * 2**20, 40 * 2**20
TOKENIZER = 2000  # bytes per token of a vocabulary: init_from's and the data's, each with its text
GPU_TIMEOUT = 60  # seconds: some drivers hang
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))


def measured_reserve(device: str, measured: int, wandb: bool, tokens: int = 0) -> Lines:
    """The reserve on a ``device`` (a torch device type) where a process without tensors takes
    ``measured`` bytes. ``tokens``: the vocabulary of ``init_from``.
    """
    if device == "cuda":
        return {"CUDA context and others (measured)": measured}
    lines = {"process (measured)": measured, "libraries": LIBRARIES}
    if tokens:
        lines["tokenizers"] = TOKENIZER * tokens
    return lines | {"W&B": WANDB} if wandb else lines


def reserve_lines(memory: MemoryOptions, measured: Lines | None) -> Lines:
    """``memory.reserve_mib`` if it is set, else the measured reserve, else an assumed one."""
    if memory.reserve_mib is not None:
        return {"reserve (as given)": memory.assumed_reserve}
    return measured or {"reserve (assumed)": memory.assumed_reserve}


def planned_limits(memory: MemoryOptions, device: str) -> tuple[Lines, int]:
    """Reserve and budget of a plan for ``trainer.device``. A GPU's reserve is measured, and its
    memory limits the budget.

    Raises :class:`llm.errors.Refused` if the reserve takes the whole budget.
    """
    reserve, budget = unchecked_limits(memory, device)
    memory.check_reserve(sum(reserve.values()), budget)
    return reserve, budget


def unchecked_limits(memory: MemoryOptions, device: str) -> tuple[Lines, int]:
    """The same, even if the reserve takes the whole budget: then nothing fits."""
    gpu = ask_gpu(device) if planned_device(device) == "cuda" else None
    reserve = reserve_lines(memory, measured_reserve("cuda", gpu[0], wandb=False) if gpu else None)
    return reserve, min(memory.budget, gpu[1]) if gpu else memory.budget


def planned_device(name: str) -> str:
    """``cuda`` or ``cpu`` for a ``trainer.device``, without torch."""
    kind = name.partition(":")[0]
    known = kind in ("auto", "cuda", "mps", "cpu")
    require(known, f"trainer.device={name} is unknown: take auto, cuda, mps or cpu")
    if kind == "auto":
        return "cuda" if has_driver() else "cpu"
    return "cuda" if kind == "cuda" else "cpu"


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any(path.exists() for path in DRIVERS)


@cache
def ask_gpu(name: str) -> tuple[int, int] | None:
    """(bytes outside tensors, bytes in total) of the GPU ``name`` (a ``trainer.device``).

    A process of its own measures it in some seconds: in this one, the CUDA context would stay. None
    without a driver, if torch sees no GPU, and if the GPU does not answer.
    """
    if not has_driver():
        return None
    package = Path(__file__).resolve().parents[2]  # to import llm from any current folder
    command = [sys.executable, "-m", "llm.device", name]
    try:
        done = subprocess.run(
            command, cwd=package, capture_output=True, text=True, timeout=GPU_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        warn(f"{name} has not answered for {GPU_TIMEOUT:g} s: planned as if it were not there")
        return None
    if done.returncode:
        return None
    kind, outside_tensors, total = json.loads(done.stdout.splitlines()[-1])
    return (outside_tensors, total) if kind == "cuda" else None
