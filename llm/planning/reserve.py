"""Memory outside tensors, which a plan sets aside: measured, asked of a GPU, or assumed."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from llm.errors import require
from llm.experiment.console import warn
from llm.memory.options import MemoryOptions
from llm.memory.predict import Lines

# Bytes that a process on a CPU allocates later besides tensors: imports of the training loop,
# stacks of threads, workspaces (python -m benchmarks.memory, rows rss_*).
LIBRARIES, WANDB = 110 * 2**20, 40 * 2**20
GPU_TIMEOUT = 60  # seconds: some drivers hang
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
DEVICES = ("auto", "cuda", "mps", "cpu")


def measured_reserve(device: str, measured: int, wandb: bool) -> Lines:
    """The reserve on a ``device`` (cuda or another type of torch) where a process without tensors
    takes ``measured`` bytes; with or without W&B.
    """
    if device == "cuda":
        return {"CUDA context and others (measured)": measured}
    lines = {"process (measured)": measured, "libraries": LIBRARIES}
    return lines | {"W&B": WANDB} if wandb else lines


def reserve_lines(memory: MemoryOptions, measured: Lines | None) -> Lines:
    """The reserve: ``memory.reserve_mib``, else as ``measured``, else assumed."""
    if memory.reserve_mib is not None:
        return {"reserve (as given)": memory.assumed_reserve}
    return measured or {"reserve (assumed)": memory.assumed_reserve}


def planned_limits(memory: MemoryOptions, device: str) -> tuple[Lines, int]:
    """Reserve and budget of a plan for a ``trainer.device``, by the GPU's own figures if there is
    one: the budget is at most its memory.

    Raises :class:`llm.errors.Refused` where the reserve takes the whole budget.
    """
    gpu = ask_gpu(device) if planned_device(device) == "cuda" else None
    reserve = reserve_lines(memory, measured_reserve("cuda", gpu[0], wandb=False) if gpu else None)
    budget = min(memory.budget, gpu[1]) if gpu else memory.budget
    memory.check_reserve(sum(reserve.values()), budget)
    return reserve, budget


def planned_device(name: str) -> str:
    """``cuda`` or ``cpu`` for a ``trainer.device``, without torch."""
    kind = name.partition(":")[0]
    known = f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}"
    require(kind in DEVICES, f"trainer.device={name} is unknown: take {known}")
    if kind == "auto":
        return "cuda" if has_driver() else "cpu"
    return "cuda" if kind == "cuda" else "cpu"


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any(path.exists() for path in DRIVERS)


@cache
def ask_gpu(name: str) -> tuple[int, int] | None:
    """(bytes that tensors cannot have, bytes in all) of the GPU ``name``, as in trainer.device.

    Measured in another process, which takes some seconds: a CUDA context would stay in this one.
    None without a driver, where torch sees no GPU, and where the GPU does not answer.
    """
    if not has_driver():
        return None
    package = Path(__file__).resolve().parents[2]  # importable whatever the current folder is
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
