"""Before anything is read or written: will this run fit, and what to change where it would not."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llm.config.plan import apply, has_eight_bit, setup_of, vocabulary
from llm.config.schema import TrainSettings
from llm.config.settings import load_plain
from llm.device import held_before, limit_memory, release_memory
from llm.disk import mib
from llm.errors import OutOfMemory, Refused
from llm.experiment.console import warn
from llm.experiment.rundir import CONFIG
from llm.memory.fit import Fitted, cheapest_changes, fit
from llm.memory.predict import Lines, Prediction, Setup, predict
from llm.sealed import Plain

# Bytes that a process on a CPU comes to hold later on besides tensors: what is imported for the
# loop, stacks of threads, workspaces (python -m benchmarks.memory, rows rss_*).
LIBRARIES = 120 * 2**20
# What `auto` decides, and a run that goes on keeps.
LEVERS = {
    "trainer": ("micro_batch_size", "activation_checkpointing", "step_in_backward"),
    "model": ("loss",),
    "optimizer": ("state_bits",),
}


@dataclass(frozen=True)
class Planned:
    """What is known of a run's memory before it starts."""

    prediction: Prediction
    setup: Setup
    budget: int
    changes: tuple[str, ...]  # that memory.fit=auto has made

    def with_micro_batch(self, size: int) -> "Planned":
        """The same with fewer sequences at a time."""
        setup = replace(self.setup, micro_batch=size)
        changes = [c for c in self.changes if not c.startswith("trainer.micro_batch_size=")]
        return Planned(
            predict(setup, self.prediction.reserve), setup, self.budget,
            (f"trainer.micro_batch_size={size}", *changes),
        )  # fmt: skip

    @property
    def facts(self) -> Plain:
        """For ``summary.json``."""
        return {"predicted_memory_bytes": self.prediction.total, "memory_changes": [*self.changes]}

    @property
    def sentence(self) -> str:
        """For the first panel: the peak, the budget, and what was changed for it."""
        lines = self.prediction.lines
        most = max(lines, key=lambda name: lines[name])
        text = (
            f"{mib(self.prediction.total)} predicted, of {mib(self.budget)}; "
            f"most are {most} ({mib(lines[most])})"
        )
        return f"{text}; to fit: {' '.join(self.changes)}" if self.changes else text


def fit_memory(
    settings: TrainSettings, device: torch.device, known: Planned | None = None
) -> tuple[TrainSettings, Planned | None]:
    """The settings to run with, by ``memory.fit``, and their peak.

    None where the vocabulary is not known before the data is read; call it again then. Raises
    :class:`llm.errors.Refused` naming the largest consumer and the cheapest changes where the run
    would not fit and ``fit`` is not off.
    """
    if known is not None:
        return settings, known
    options = settings.memory
    if options.fit == "auto":
        settings = _as_begun(settings)
    if vocabulary(settings) is None:
        return settings, None
    reserve = _reserve(settings, device)
    options.check_reserve(sum(reserve.values()))
    setup, budget = setup_of(settings, device.type), options.budget
    prediction = predict(setup, reserve)
    changes: tuple[str, ...] = ()
    if options.fit != "off" and prediction.total > budget:
        fitted = fit(setup, budget, reserve, has_eight_bit()) if options.fit == "auto" else None
        if fitted is None:
            raise Refused(too_large(prediction, budget, cheapest_changes(setup, budget, reserve)))
        settings, setup, changes = apply(settings, fitted), fitted.setup, fitted.changes
        prediction = fitted.prediction
    if options.enforce or (options.enforce is None and options.fit != "off" and _is_gpu(device)):
        limit_memory(device, budget - sum(reserve.values()))
    return settings, Planned(prediction, setup, budget, changes)


def once_more_with_half(
    settings: TrainSettings, plan: Planned,
    attempt: Callable[[TrainSettings, Planned], float | None],
) -> float | None:  # fmt: skip
    """``attempt(settings, plan)``; where ``memory.fit=auto`` ran out of memory after all, once more
    from the last checkpoint with half the micro-batch.
    """
    try:
        return attempt(settings, plan)
    except OutOfMemory as error:
        size = _half(settings)
        if size is None or error.folder is None:
            raise
        warn(f"{error}: once more, with trainer.micro_batch_size={size}")
        folder = str(error.folder)
    gc.collect()  # all that the first attempt has held
    release_memory()
    run = settings.run if settings.run.name else replace(settings.run, dir=folder)
    smaller = replace(settings, run=run, trainer=replace(settings.trainer, micro_batch_size=size))
    return attempt(smaller, plan.with_micro_batch(size))


def _half(settings: TrainSettings) -> int | None:
    """The largest micro-batch of at most half the size, if there may be one."""
    options = settings.trainer
    sizes = [n for n in range(1, options.micro_batch // 2 + 1) if options.batch_size % n == 0]
    may = settings.memory.fit == "auto" and sizes and not options.step_in_backward
    return sizes[-1] if may else None


def _reserve(settings: TrainSettings, device: torch.device) -> Lines:
    if settings.memory.reserve_mib is not None:
        return {"reserve (as given)": settings.memory.reserve_mib * 2**20}
    what = "CUDA context and others" if _is_gpu(device) else "process"
    found = {f"{what} (measured)": held_before(device)}
    return found if _is_gpu(device) else found | {"libraries": LIBRARIES}


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def too_large(prediction: Prediction, budget: int, ways: list[Fitted]) -> str:
    lines = prediction.lines
    most = max(lines, key=lambda name: lines[name])
    text = (
        f"the run would take {mib(prediction.total)} ({prediction.peak}), and "
        f"memory.budget_gib={budget / 2**30:g} is {mib(budget)}; most are {most} "
        f"({mib(lines[most])})"
    )
    if not ways:
        return f"{text}; no setting of how it is run makes it fit: take a smaller model"
    listed = " | ".join(" ".join(way.changes) for way in ways)
    return f"{text}; what fits, fastest first: {listed}"


def _as_begun(settings: TrainSettings) -> TrainSettings:
    """With what was decided when the run's folder was begun, unless it is typed otherwise."""
    run = settings.run
    folder = Path(run.dir) if run.dir else Path("outputs") / str(run.name) if run.name else None
    if folder is None or settings.trainer.micro_batch_size or not (folder / CONFIG).exists():
        return settings
    begun: Plain = load_plain(folder)
    for section, keys in LEVERS.items():
        found = begun.get(section) or {}
        kept = {key: found[key] for key in keys if key in found}
        settings = replace(settings, **{section: replace(getattr(settings, section), **kept)})
    settings.check()  # the file may be anybody's
    return settings
