"""Check that a run fits into memory before it starts, and change its settings if it does not."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from llm.device import limit_memory, process_memory, total_memory
from llm.errors import OutOfMemory, Refused
from llm.experiment.console import say, status, warn
from llm.experiment.rundir import CONFIG, read_summary
from llm.options import validate
from llm.planning.custom_optimizer import try_custom_classes
from llm.planning.plan import Plan
from llm.planning.reserve import measured_reserve, reserve_lines
from llm.planning.setup import apply_changes, setup_of
from llm.settings.custom import Custom, uses_wandb
from llm.settings.earlier import folder_of
from llm.settings.saved import load_plain
from llm.settings.schema import TrainSettings
from llm.units import format_bytes

T = TypeVar("T")
# The keys that memory.fit=auto may change. A resumed run keeps their saved values.
LEVERS = (
    "trainer.micro_batch_size", "trainer.activation_checkpointing", "trainer.step_in_backward",
    "model.loss", "optimizer.state_bits",
)  # fmt: skip


def fit_memory(settings: TrainSettings, device: torch.device) -> tuple[TrainSettings, Plan]:
    """The settings with the changes that ``memory.fit`` makes, and the plan of the run.

    With ``memory.enforce`` it also limits this process to the budget. Raises
    :class:`llm.errors.Refused` if the run does not fit and ``memory.fit`` is not off, and for a
    custom class that does not work.
    """
    try_custom_classes([settings])
    options, typed, folder = settings.memory, settings, _existing_folder(settings)
    if folder is not None:
        settings = _with_saved_levers(settings, folder)
    setup = setup_of(settings, device.type)  # first: it may open the weights of init_from
    with status(f"measuring the memory outside tensors on {device.type}"):
        process_bytes = process_memory(device)
    tokens = setup.model.vocab_size if settings.init_from else None
    uses_logger = uses_wandb(settings.logger)
    measured = measured_reserve(device.type, process_bytes, uses_logger, tokens or 0)
    plan = Plan(
        setup,
        reserve_lines(options, measured),
        min(options.budget, total_memory(device) or options.budget),
        options,
        is_resumed=folder is not None,
        typed=setup_of(typed, device.type),
    )
    if options.is_enforced:
        reserve = sum(plan.reserve.values())
        options.check_reserve(reserve, plan.budget)
        if reserve < sum(measured.values()):
            outside = f"the process needs {format_bytes(sum(measured.values()))} outside tensors"
            warn(f"memory.reserve_mib={options.reserve_mib}, but {outside}")
    if options.fit != "off" and plan.started is None and not _will_be_skipped(settings, folder):
        raise plan.refusal
    if plan.started is not None:
        settings = apply_changes(settings, plan.started)
    _enforce(plan, device, process_bytes)
    return settings, plan


def _enforce(plan: Plan, device: torch.device, process_bytes: int) -> None:
    """Limit this process, which uses ``process_bytes`` outside tensors, to the budget."""
    options, total = plan.memory, plan.taken.total
    by_default = options.fit != "off" and device.type == "cuda"
    if not (by_default if options.enforce is None else options.enforce):
        return
    if total > plan.budget:
        warn(f"{format_bytes(total)} predicted, more than {plan.limit}")
    # subtract only memory in use: the rest of the reserve will be allocated under the limit
    if not limit_memory(device, plan.budget - min(process_bytes, sum(plan.reserve.values()))):
        warn(f"memory.enforce has no effect: nothing here limits a process on {device.type}")


def retry_with_smaller_micro_batch(
    settings: TrainSettings, plan: Plan, train: Callable[[TrainSettings, Plan], T]
) -> T:
    """Call ``train(settings, plan)``. If it runs out of memory under ``memory.fit=auto``, try once
    more from the last checkpoint, with at most half the micro-batch.
    """
    try:
        return train(settings, plan)
    except OutOfMemory as error:
        smaller = plan.with_smaller_micro_batch() if settings.memory.fit == "auto" else None
        if smaller is None or error.folder is None:
            raise
        folder, size = str(error.folder), smaller.setup.micro_batch
        say(f"out of memory: trying once more with trainer.micro_batch_size={size}")
    gc.collect()  # frees the network of the first attempt
    torch.cuda.empty_cache()
    # Not anew: the first attempt may have saved a checkpoint.
    run = replace(settings.run, retry="failed")
    run = run if run.name else replace(run, dir=folder)
    trainer = replace(settings.trainer, micro_batch_size=size)
    return train(replace(settings, run=run, trainer=trainer), smaller)


def _existing_folder(settings: TrainSettings) -> Path | None:
    """The folder of an earlier start of this run; None for a new run."""
    run = settings.run
    starts_anew = run.retry == "all" or settings.trainer.eval_only
    if not (run.dir or run.name) or starts_anew:
        return None
    folder = folder_of(settings)
    return folder if (folder / CONFIG).exists() else None


def _will_be_skipped(settings: TrainSettings, folder: Path | None) -> bool:
    """Whether the run is finished already and is not resumed."""
    summary = read_summary(folder) if folder and not settings.resume else None
    return summary is not None and summary.get("status") == "finished"


def _with_saved_levers(settings: TrainSettings, folder: Path) -> TrainSettings:
    """The settings with the levers saved in ``folder``, except for keys that the user typed."""
    saved = load_plain(folder)
    if (saved.get("trainer") or {}).get("batch_size") not in (None, settings.trainer.batch_size):
        return settings  # open_run refuses it: another run
    for lever in LEVERS:
        name, _, key = lever.partition(".")
        section, value = getattr(settings, name), (saved.get(name) or {}).get(key)
        if value is None or lever in settings.typed or isinstance(section, Custom):
            continue
        settings = replace(settings, **{name: replace(section, **{key: value})})
    try:
        validate(settings)
    except Refused as refusal:  # somebody has edited the file
        raise Refused(f"{folder / CONFIG}: {refusal}") from None
    return settings
