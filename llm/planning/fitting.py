"""Before anything is read or written: will this run fit, and what to change where it would not."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llm.device import limit_memory, process_memory, total_memory
from llm.errors import OutOfMemory, Refused, require
from llm.experiment.console import say, status, warn
from llm.experiment.rundir import CONFIG, read_summary
from llm.memory.fit import Fitted, cheapest_changes, fit
from llm.memory.fit import changes as changed
from llm.memory.options import EIGHT_BIT_NEEDS, MemoryOptions, has_eight_bit
from llm.memory.predict import Lines, Prediction, Setup, predict
from llm.options import validate
from llm.planning.probe import try_all
from llm.planning.setup import apply, measured, reserve_of, setup_of, vocabulary
from llm.sealed import Plain
from llm.settings.custom import Custom, uses_wandb
from llm.settings.run import folder_of
from llm.settings.saved import load_plain
from llm.settings.schema import TrainSettings
from llm.training.precision import resolve_precision
from llm.units import format_bytes

# The keys that `auto` decides, each with its section and type. A run that goes on keeps them.
LEVERS = (
    ("trainer", "micro_batch_size", int), ("trainer", "activation_checkpointing", str),
    ("trainer", "step_in_backward", bool), ("model", "loss", str), ("optimizer", "state_bits", int),
)  # fmt: skip


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
            f"{format_bytes(self.prediction.total)} predicted, of {format_bytes(self.budget)}; "
            f"most are {most} ({format_bytes(lines[most])})"
        )
        return f"{text}; to fit: {' '.join(self.changes)}" if self.changes else text


def fit_memory(
    settings: TrainSettings, device: torch.device, known: Planned | None = None
) -> tuple[TrainSettings, Planned | None]:
    """The settings to run with, by ``memory.fit``, and their peak.

    The peak is None if the vocabulary is not known before the data is read: call it again then.
    Raises :class:`llm.errors.Refused` naming the largest consumer and the cheapest changes if the
    run would not fit and ``fit`` is not off, and for a class of the user's own that does not work.
    """
    if known is not None:
        return settings, known
    try_all([settings])
    options, typed, folder = settings.memory, settings, _begun(settings)
    if folder is not None:
        settings = _as_begun(settings, folder)
    if vocabulary(settings) is None:
        return settings, None
    held = process_memory(device)
    with status(f"measuring what is taken on {device.type} without the run"):
        found = measured(device.type, held, uses_wandb(settings.logger))
    reserve = _reserve(options, found)
    budget = min(options.budget, total_memory(device) or options.budget)
    if options.is_enforced:
        options.check_reserve(sum(reserve.values()), budget)
    setup = setup_of(settings, device.type)
    prediction = predict(setup, reserve)
    finished = folder is not None and (read_summary(folder) or {}).get("status") == "finished"
    if options.fit != "off" and prediction.total > budget and not (finished and not typed.resume):
        # The state of a run that goes on has the bits that it has.
        eight_bit = folder is None
        fitted = None
        if options.fit == "auto":
            fitted = fit(setup, budget, reserve, eight_bit and has_eight_bit())
        if fitted is None:
            ways = cheapest_changes(setup, budget, reserve, eight_bit)
            raise Refused(_too_large(prediction, budget, options.limit(budget), ways))
        settings, setup, prediction = apply(settings, fitted), fitted.setup, fitted.prediction
    changes = changed(setup_of(typed, device.type), setup)
    by_default = options.fit != "off" and device.type == "cuda"
    enforce = by_default if options.enforce is None else options.enforce
    if enforce and prediction.total > budget and options.fit == "off":
        limit = f"{options.limit(budget)} is {format_bytes(budget)}"
        warn(f"{format_bytes(prediction.total)} predicted, and {limit}")
    # What is held already does not count again; the rest of the reserve is yet to be taken.
    if enforce and not limit_memory(device, budget - min(held, sum(reserve.values()))):
        warn(f"memory.enforce has no effect: nothing here limits a process on {device.type}")
    return settings, Planned(prediction, setup, budget, changes)


def choose_precision(settings: TrainSettings, device: torch.device) -> tuple[str, str]:
    """What :func:`llm.training.precision.resolve_precision` says; a resume keeps what it was."""
    chosen, why = resolve_precision(settings.precision.name, device)
    typed = {key.partition(".")[0] for key in settings.typed}
    kept = "resume" in typed and "precision" not in typed
    return chosen, "as when it began" if kept else why


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
        size = _half(settings, plan)
        if size is None or error.folder is None:
            raise
        what = str(error).partition("): ")[0]
        say(f"{what}): once more, with trainer.micro_batch_size={size}")
        folder = str(error.folder)
    gc.collect()  # all that the first attempt has held
    torch.cuda.empty_cache()
    run = settings.run if settings.run.name else replace(settings.run, dir=folder)
    smaller = replace(settings, run=run, trainer=replace(settings.trainer, micro_batch_size=size))
    return attempt(smaller, plan.with_micro_batch(size))


def _half(settings: TrainSettings, plan: Planned) -> int | None:
    """The largest micro-batch of at most half the size that takes less memory, if there is one.

    Cutting the whole batch for the first time may take more: gradients are kept from then on.
    """
    options, taken = settings.trainer, plan.prediction.total
    if settings.memory.fit != "auto" or options.step_in_backward:
        return None
    sizes = [n for n in range(1, options.micro_batch // 2 + 1) if options.batch_size % n == 0]
    less = (n for n in reversed(sizes) if plan.with_micro_batch(n).prediction.total < taken)
    return next(less, None)


def _reserve(options: MemoryOptions, found: Lines) -> Lines:
    reserve, taken = reserve_of(options, found), sum(found.values())
    if options.is_enforced and sum(reserve.values()) < taken:
        outside = f"the process already holds {format_bytes(taken)} outside tensors"
        warn(f"memory.reserve_mib={options.reserve_mib}, but {outside}")
    return reserve


def _too_large(prediction: Prediction, budget: int, limit: str, ways: list[Fitted]) -> str:
    lines = prediction.lines
    most = max(lines, key=lambda name: lines[name])
    text = (
        f"the run would take {format_bytes(prediction.total)} ({prediction.peak}), and {limit} is "
        f"{format_bytes(budget)}; most are {most} ({format_bytes(lines[most])})"
    )
    if not ways:
        return f"{text}; no setting of how it is run makes it fit: take a smaller model"
    listed = " | ".join(" ".join(way.changes) for way in ways)
    needs = f"; {EIGHT_BIT_NEEDS}" if "state_bits" in listed and not has_eight_bit() else ""
    return f"{text}; what fits, fastest first: {listed}{needs}"


def _begun(settings: TrainSettings) -> Path | None:
    """The folder of a run that was started before, if there is one."""
    run = settings.run
    if not (run.dir or run.name) or settings.trainer.eval_only:
        return None
    folder = folder_of(settings)
    return folder if (folder / CONFIG).exists() else None


def _as_begun(settings: TrainSettings, folder: Path) -> TrainSettings:
    """With what was decided when the run was begun, but for keys that are typed now."""
    begun: Plain = load_plain(folder)
    typed = settings.typed
    for section, key, kind in LEVERS:
        if isinstance(getattr(settings, section), Custom):
            continue
        found = (begun.get(section) or {}).get(key)
        if found is None or f"{section}.{key}" in typed:
            continue
        require(type(found) is kind, f"{folder}/{CONFIG}: {section}.{key} is {found!r}")
        if key == "micro_batch_size" and found > 0 and settings.trainer.batch_size % found:
            continue  # for another batch size, which will be refused
        own = replace(getattr(settings, section), **{key: found})
        settings = replace(settings, **{section: own})
    validate(settings)  # the file may be anybody's
    return settings
