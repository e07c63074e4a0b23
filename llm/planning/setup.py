"""From the settings of a run to all that its memory depends on, and back; without torch."""

import json
import subprocess
import sys
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

from llm.data.config import DataConfig
from llm.data.meta import read_meta
from llm.errors import Refused, require
from llm.experiment.console import warn
from llm.memory.fit import Fitted
from llm.memory.options import MemoryOptions
from llm.memory.predict import Lines, Setup
from llm.planning.probe import kept_by
from llm.settings.custom import Custom, state_bits
from llm.settings.schema import Optimizer, TrainSettings

# Bytes that a process on a CPU comes to hold later on besides tensors: what is imported for the
# loop, stacks of threads, workspaces (python -m benchmarks.memory, rows rss_*).
LIBRARIES, WANDB = 110 * 2**20, 40 * 2**20
PATIENCE = 60  # seconds for a GPU to answer in: some hang
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))


def watches_memory(settings: TrainSettings) -> bool:
    """Whether narrow networks too have their memory mapped (:func:`llm.device.tune_allocator`).

    ``trainer.step_in_backward`` is a reason as well: its two backward passes leave more gaps in
    the heap than it saves.
    """
    return settings.memory.is_enforced or settings.trainer.step_in_backward


def setup_of(settings: TrainSettings, device: str) -> Setup:
    """All that the memory of a run on ``device`` (a torch device's type) depends on.

    Raises :class:`llm.errors.Refused` where the vocabulary is not known before the text is read.
    """
    size = vocabulary(settings)
    if size is None:
        raise Refused(
            "data.vocab_size is not known before the text is read: give data.vocab_size=N"
        )
    cuda, precision = device == "cuda", settings.precision.name
    if precision == "auto":
        precision = "bf16" if cuda else "fp32"  # as a GPU since 2020 will have it
    resolved = settings.resolve(size, precision)
    trainer, own = resolved.trainer, resolved.optimizer
    return Setup(
        model=resolved.model,
        optimizer=own.option if isinstance(own, Custom) else own.name,
        kept=kept_by(own, resolved.model, cuda),
        state_bits=state_bits(own),
        precision=precision,
        batch_size=trainer.batch_size,
        micro_batch=trainer.micro_batch,
        activation_checkpointing=trainer.activation_checkpointing,
        step_in_backward=trainer.step_in_backward,
        compile=trainer.compile,
        device="cuda" if cuda else "cpu",
        samples=trainer.sample_interval is not None,
        eval_only=trainer.eval_only,
        closely=watches_memory(settings),
    )


def apply(settings: TrainSettings, fitted: Fitted) -> TrainSettings:
    """``settings`` with what was changed so that the run fits."""
    setup = fitted.setup
    optimizer = settings.optimizer
    if isinstance(optimizer, Optimizer):
        optimizer = replace(optimizer, state_bits=setup.state_bits)
    return replace(
        settings,
        model=replace(settings.model, loss=setup.model.loss),
        optimizer=optimizer,
        trainer=replace(
            settings.trainer,
            micro_batch_size=setup.micro_batch,
            activation_checkpointing=setup.activation_checkpointing,
            step_in_backward=setup.step_in_backward,
        ),
    )


def vocabulary(settings: TrainSettings) -> int | None:
    """Tokens in the vocabulary: declared, or of the prepared dataset; None: not known yet."""
    try:
        return settings.data.declared_vocab_size() or _prepared_vocabulary(astuple(settings.data))
    except Refused:  # there is no such dataset, or no such text
        return None


@cache  # only what is found; the digest of the text is the same for all points of a grid
def _prepared_vocabulary(data: tuple[Any, ...]) -> int:
    from llm.data.prepare import folder_of

    return read_meta(folder_of(DataConfig(*data))).vocab_size


def planned_device(name: str) -> str:
    """``cuda`` or ``cpu``, for a ``trainer.device`` and without torch."""
    kind = name.partition(":")[0]
    known = ("auto", "cuda", "mps", "cpu")
    require(
        kind in known,
        f"trainer.device={name} is unknown: take {', '.join(known[:3])} or {known[3]}",
    )
    if kind == "auto":
        return "cuda" if _has_driver() else "cpu"
    return "cuda" if kind == "cuda" else "cpu"


def _has_driver() -> bool:
    return any(path.exists() for path in DRIVERS)


def measured(kind: str, held: int, wandb: bool = True) -> Lines:
    """What ``held`` bytes that are no tensor stand for on a device of that kind, with or without
    W&B.
    """
    if kind == "cuda":
        return {"CUDA context and others (measured)": held}
    lines = {"process (measured)": held, "libraries": LIBRARIES}
    return lines | {"W&B": WANDB} if wandb else lines


@cache
def ask_gpu(name: str) -> tuple[int, int] | None:
    """Bytes of the GPU ``name`` (a trainer.device) that tensors cannot have, and all it has.

    A process with torch measures them, which takes some seconds. None without a driver, where torch
    sees no GPU, or where there is no answer for a minute.
    """
    if not _has_driver():
        return None
    # The process finds this package whatever the folder is that the user stands in.
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "llm.device", name]
    try:
        asked = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        warn(f"{name} has not answered for {PATIENCE:g} s: planned as if it were not there")
        return None
    if asked.returncode:
        return None
    kind, held, total = json.loads(asked.stdout.splitlines()[-1])
    return (held, total) if kind == "cuda" else None


def reserve_of(memory: MemoryOptions, found: Lines | None) -> Lines:
    """What is set aside for what is no tensor: as given, else as ``found``, else assumed."""
    if memory.reserve_mib is not None:
        return {"reserve (as given)": memory.assumed_reserve}
    return found or {"reserve (assumed)": memory.assumed_reserve}


def limits_of(memory: MemoryOptions, device: str) -> tuple[Lines, int]:
    """The reserve and the budget of a plan, as measured where there is a GPU to ask.

    The budget is no more than that GPU has. Raises :class:`llm.errors.Refused` where the reserve
    leaves nothing of it.
    """
    gpu = ask_gpu(device) if planned_device(device) == "cuda" else None
    reserve = reserve_of(memory, measured("cuda", gpu[0]) if gpu else None)
    budget = min(memory.budget, gpu[1]) if gpu else memory.budget
    memory.check_reserve(sum(reserve.values()), budget)
    return reserve, budget
