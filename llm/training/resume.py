"""The plain values of a checkpoint, and going on from one. Each is checked, whoever wrote it."""

import contextlib
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import newest_valid
from llm.device import describe
from llm.errors import Diverged, Refused, require
from llm.training.logger import Row
from llm.training.precision import LossScale
from llm.training.state import Progress, restore_training

if TYPE_CHECKING:
    from llm.training.trainer import Trainer


def plain_state(trainer: "Trainer") -> dict[str, Any]:
    """What a checkpoint holds besides tensors."""
    return {
        "progress": asdict(trainer.progress),
        "row": trainer.unreported,
        "guard": trainer.guard.to_plain(),
        "loss_scale": asdict(trainer.precision.loss_scale),
        "warmup_steps": trainer.schedule.warmup(trainer.options.max_steps),
        "groups": trainer.optimizer.changed_values(),
        "run_id": trainer.logger.run_id,
        "environment": environment(trainer.device),
    }


def resume(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint; :class:`llm.errors.Refused` if it is not one of such a trainer.

    Nothing is changed before all plain values are known to be usable.
    """
    state = checkpoint.state
    progress, row = Progress.from_plain(state.get("progress")), read_row(state.get("row"))
    require(progress.step == checkpoint.step, f"{checkpoint.path} counts its steps in two ways")
    warmup = read_warmup(state.get("warmup_steps"))
    trainer.guard.restore(state.get("guard"))
    loss_scale = read_scale(state.get("loss_scale"))
    trainer.optimizer.restore_values(state.get("groups"))
    checkpoint.load_into(trainer.model)
    tensors = checkpoint.training(trainer.optimizer.tensors_of())
    restore_training(tensors, trainer.model, trainer.optimizer, trainer.device)
    trainer.progress, trainer.unreported = progress, row
    vars(trainer.precision.loss_scale).update(asdict(loss_scale))
    if trainer.schedule.warmup_steps is None:
        trainer.schedule.warmup_steps = warmup
    trainer.saved_step = checkpoint.step
    trainer.logged = (progress.tokens, progress.train_seconds)
    here, there = environment(trainer.device), state.get("environment")
    if there and there != here:
        trainer.logger.warn(f"trained with {there} so far, now {here}: the last bits may differ")


def count_as(trainer: "Trainer", origin: Checkpoint) -> None:
    """Count the steps and tokens of ``origin``, whose weights are evaluated and not trained."""
    before = Progress.from_plain(origin.state.get("progress"))
    trainer.progress.step, trainer.progress.tokens = origin.step, before.tokens


def roll_back(trainer: "Trainer", end: Diverged) -> None:
    """Go back to the last checkpoint, to train on at half the rate.

    Raises ``end`` where ``trainer.rollbacks`` are used up, or there is no checkpoint.
    """
    scale, skipped = trainer.precision.loss_scale.scale, trainer.progress.skipped
    end.facts |= {"scale": scale, "skipped_steps": skipped}
    rollbacks = trainer.progress.rollbacks + 1
    if rollbacks > trainer.options.rollbacks:
        raise end
    before, sound = trainer.progress, None
    with contextlib.suppress(Refused):
        sound, _ = newest_valid(trainer.checkpoints.folder.parent)
    if sound is None:
        trainer.logger.warn("nothing to go back to yet: try a smaller trainer.checkpoint_interval")
        raise end
    trainer.logger.warn(f"{end}; back to step {sound.step}, at half the learning rate")
    trainer.update.drop()
    trainer.optimizer.state.clear()  # else memory would hold two of it
    resume(trainer, sound)
    trainer.saved_step = None  # no checkpoint says yet how often this run went back
    after = trainer.progress
    after.rollbacks = rollbacks
    for counter in ("train_seconds", "eval_seconds", "checkpoint_seconds"):
        setattr(after, counter, getattr(before, counter))  # what was in vain took time as well
    if before.best_val_loss is not None and before.best_step > after.best_step:
        # The best weights are still there, and nothing worse may take their place.
        for best in ("best_val_loss", "best_bits_per_byte", "best_step"):
            setattr(after, best, getattr(before, best))
    trainer.logged = (after.tokens, after.train_seconds)
    # A row that a signal had put off is finished once more.
    trainer.logger.rewind(sound.step - (trainer.unreported is not None))


def read_scale(plain: Any) -> LossScale:
    """The loss scale of a checkpoint; :class:`llm.errors.Refused` if there is none."""
    match plain:
        case {"scale": float(scale), "finite_steps": int(steps), **rest} if not rest:
            if scale >= 1 and steps >= 0 and type(steps) is int:
                return LossScale(scale, steps)
    raise Refused("the checkpoint has no usable loss_scale")


def read_warmup(plain: Any) -> int | None:
    """The steps of warm-up that the run was begun with. They were derived from its ``max_steps``
    where ``schedule.warmup_steps`` was left open; a run that is made longer must not warm up again.
    """
    right = plain is None or (type(plain) is int and plain >= 0)
    require(right, f"the checkpoint has warmup_steps={plain!r:.60}")
    return cast(int | None, plain)


def read_row(plain: Any) -> Row | None:
    """The row of metrics that a signal kept from being finished, if there is one."""
    if plain is None:
        return None
    right = isinstance(plain, dict) and all(
        type(v) in (int, float, type(None)) for v in plain.values()
    )
    require(right, "the checkpoint has no usable row")
    return dict(plain)


def read_run_id(plain: Any, where: str = "the checkpoint's run_id") -> str:
    """The id of the run in W&B, which becomes a part of a path; :class:`llm.errors.Refused` if it
    cannot be one.
    """
    if isinstance(plain, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", plain):
        return plain
    raise Refused(f"{where} is no id of letters, digits, _ and -: {plain!r:.60}")


def environment(device: torch.device) -> dict[str, Any]:
    """What the last bits of the numbers depend on, besides the settings."""
    return {"torch": str(torch.__version__), "device": describe(device)}
