"""Which folder a run writes to, and whether there is something in it to continue."""

from dataclasses import dataclass
from pathlib import Path

from llm.checkpoint.checkpoint import Checkpoint, newest_checkpoint
from llm.config.schema import TrainSettings
from llm.config.settings import config_digest, identity, load_plain, to_plain, to_yaml
from llm.errors import Refused, require
from llm.experiment.rundir import (
    CONFIG,
    cut_metrics,
    make_folder,
    new_folder,
    read_summary,
    replace_text,
)  # fmt: skip

OUTPUTS = Path("outputs")
EXTENDABLE = {"trainer.max_steps"}  # may differ from the folder's on an explicit resume=


@dataclass(frozen=True)
class Run:
    """A run folder that this process may write to."""

    folder: Path
    identity: dict[str, str]  # config_digest and data_digest
    checkpoint: Checkpoint | None  # what to continue from
    is_new: bool
    best_val_loss: float | None  # of a run that is finished already
    is_finished: bool = False  # there is nothing left to do then


def open_run(settings: TrainSettings, data_digest: str) -> Run:
    """The run folder for resolved ``settings``, made now, or found with what it holds.

    A folder that exists is continued if the same thing was trained there. Raises
    :class:`llm.errors.Refused` naming the keys that differ, and for a folder that cannot be
    written.
    """
    plain = to_plain(settings)
    digests = {"config_digest": config_digest(plain, data_digest), "data_digest": data_digest}
    evaluates = settings.trainer.eval_only
    require(
        not (evaluates and settings.run.name),
        "trainer.eval_only=true trains nothing that run.name could continue: leave run.name out",
    )
    require(
        settings.run.dir or not settings.run.sweep,
        f"run.sweep={settings.run.sweep} names a sweep: add -m",
    )
    named = settings.run.dir or (settings.run.name and str(OUTPUTS / settings.run.name))
    if not named:
        return _start(new_folder(OUTPUTS), settings, digests)
    folder = Path(named)
    if not (folder / CONFIG).exists():
        require(
            not settings.resume, f"resume={settings.resume} is not a run folder: it has no {CONFIG}"
        )
        occupied = folder.is_dir() and any(path.name != "summary.json" for path in folder.iterdir())
        require(not occupied, f"run folder {folder} has other files in it: take another run.name")
        return _start(make_folder(folder), settings, digests)
    _refuse_differences(folder, identity(plain, data_digest), data_digest, bool(settings.resume))
    summary, newest = read_summary(folder), newest_checkpoint(folder)
    checkpoint = Checkpoint.open(newest) if newest else None
    reached = checkpoint.step if checkpoint else 0
    finished = summary is not None and summary.get("status") == "finished"
    if finished and (reached >= settings.trainer.max_steps or not settings.resume):
        loss = (summary or {}).get("best_val_loss")
        return Run(folder, digests, checkpoint, is_new=False, best_val_loss=loss, is_finished=True)
    if checkpoint is not None:
        checkpoint.verify()  # before anything in the folder is touched
    make_folder(folder)
    cut_metrics(folder, reached if checkpoint else -1)
    replace_text(folder / CONFIG, to_yaml(settings))
    return Run(folder, digests, checkpoint, is_new=False, best_val_loss=None)


def _start(folder: Path, settings: TrainSettings, digests: dict[str, str]) -> Run:
    replace_text(folder / CONFIG, to_yaml(settings))
    return Run(folder, digests, None, is_new=True, best_val_loss=None)


def _refuse_differences(
    folder: Path, mine: dict[str, object], data_digest: str, resumed: bool
) -> None:
    theirs = identity(load_plain(folder), data_digest)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        theirs["data_digest"] = Checkpoint.open(checkpoint).identity.get("data_digest")
    allowed = EXTENDABLE if resumed else set()
    keys = [
        key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key) and key not in allowed
    ]
    if keys:
        listed = ", ".join(f"{key} was {theirs.get(key)}, now {mine.get(key)}" for key in keys[:5])
        raise Refused(
            f"{folder} holds another run ({listed}): take another run.name, the same settings, or "
            f"go on with more steps by resume={folder} trainer.max_steps=MORE"
        )
