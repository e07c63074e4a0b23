"""Which folder a run writes to, and whether it holds a run to continue."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import newest_valid, repair
from llm.commands import TYPED, command_line, overrides_of, typed_command
from llm.disk import delete_temporary, writing
from llm.experiment.ledger import without_place
from llm.experiment.rundir import (
    CONFIG,
    cut_metrics,
    discard_run,
    make_folder,
    new_folder,
    read_summary,
    replace_text,
)
from llm.interchange.source import open_source
from llm.lock import locked
from llm.sealed import Plain
from llm.settings.earlier import (
    OUTPUTS,
    last_step,
    named_folder,
    origin_digest,
    refuse_another_run,
    refuse_failed,
)
from llm.settings.identity import config_digest, point_digest
from llm.settings.saved import load_plain, to_plain, to_yaml
from llm.settings.schema import TrainSettings


@dataclass(frozen=True)
class Run:
    """A run folder that only this process may write to."""

    folder: Path
    identity: dict[str, str]  # digests of the settings, the data and the weights of init_from
    again: str  # the command that continues it
    labels: Plain  # for the ledger, beside the summary
    checkpoint: Checkpoint | None = None  # to continue from
    is_new: bool = False
    is_finished: bool = False  # nothing is left to do
    best_val_loss: float | None = None  # of a finished run
    reason: str | None = None  # why a finished run ended before its last step
    notes: list[str] = field(default_factory=list)  # warnings for the log, which is not open yet


@contextlib.contextmanager
def open_run(settings: TrainSettings, data_digest: str) -> Iterator[Run]:
    """The run folder for resolved ``settings``, new or continued; it is locked while inside.

    ``run.retry=all`` deletes an earlier run in the folder; ``none`` refuses one that ended by
    itself without finishing. Raises :class:`llm.errors.Refused` for a folder with another run,
    naming the keys that differ, and for a folder that cannot be written or that another process is
    writing to.
    """
    folder, retry = named_folder(settings), settings.run.retry
    is_new = folder is None or not (folder / CONFIG).exists()
    if settings.init_from is not None and (is_new or retry == "all"):
        # Missing weights are refused before a folder is changed.
        open_source("init_from", settings.init_from).digest()
    if is_new or folder is None:
        folder = new_folder(OUTPUTS) if folder is None else make_folder(folder)
    with locked(folder) as warning:  # from here on, no other process changes it
        if retry == "all" and (folder / CONFIG).exists():
            load_plain(folder)  # refuses a folder that is not a run
            discard_run(folder)
        opened = _continued if (folder / CONFIG).exists() else _new
        run = opened(folder, settings, data_digest)
        if warning:
            run.notes.append(warning)
        yield run


def _new(folder: Path, settings: TrainSettings, data_digest: str) -> Run:
    if settings.run.retry == "none":
        refuse_failed(folder)  # a refused job has left its summary
    delete_temporary(folder)
    _write_config(folder, settings)
    place = settings.init_from
    origin = None if place is None else open_source("init_from", place).digest()
    digests = _digests(settings, data_digest, origin)
    labels = _labels(folder, settings, data_digest, origin)
    return Run(folder, digests, _again(folder, settings), labels, is_new=True)


def _continued(folder: Path, settings: TrainSettings, data_digest: str) -> Run:
    saved = load_plain(folder)
    newest, damaged = newest_valid(folder)
    recorded = newest.identity if newest else None
    origin = origin_digest(settings, saved, recorded)
    mine = to_plain(settings)
    refuse_another_run(folder, settings, mine, saved, data_digest, origin, recorded)
    digests = _digests(settings, data_digest, origin)
    labels = _labels(folder, settings, data_digest, origin)
    run = Run(folder, digests, _again(folder, settings), labels, newest)
    summary = read_summary(folder) or {}
    reached = newest.step if newest else 0
    last = last_step(settings, newest.state if newest else {}, newest.path if newest else folder)
    is_finished = summary.get("status") == "finished" and not damaged
    if is_finished and (reached >= last or not settings.resume):
        loss, reason = summary.get("best_val_loss"), summary.get("reason")
        return replace(run, is_finished=True, best_val_loss=loss, reason=reason)
    if settings.run.retry == "none" and not settings.resume:
        refuse_failed(folder)
    make_folder(folder)  # tests that it can be written
    run.notes.extend(repair(folder, newest, damaged))
    before = summary.get("step")
    if newest is None and isinstance(before, int) and before > 0:
        run.notes.append(
            f"{folder} has no checkpoint of its {before} steps: it starts again at step 0"
        )
    # If the checkpoint holds the unfinished row of its step, that row is written again.
    progress = newest.state.get("progress") if newest else None
    has_row = isinstance(progress, dict) and progress.get("row") is not None
    cut_metrics(folder, reached - has_row if newest else -1)
    _write_config(folder, settings)
    return run


def _digests(settings: TrainSettings, data_digest: str, origin: str | None) -> dict[str, str]:
    # The digest of the weights stands for init_from: the same weights may have two paths.
    digest = config_digest(to_plain(settings) | {"init_from": origin}, data_digest)
    digests = {"config_digest": digest, "data_digest": data_digest}
    return digests | ({"init_digest": origin} if origin else {})


def _labels(folder: Path, settings: TrainSettings, data_digest: str, origin: str | None) -> Plain:
    sweep, overrides = settings.run.sweep, overrides_of(TYPED)
    return {
        "seed": settings.seed,
        "point": point_digest(to_plain(settings) | {"init_from": origin}, data_digest),
        "sweep": None if sweep is None else str(folder.parent),
        "overrides": overrides if sweep is None else without_place(overrides),
        "note": settings.run.note,
    }


def _again(folder: Path, settings: TrainSettings) -> str:
    if settings.run.name or settings.trainer.eval_only:
        return typed_command(without=["run.retry="])  # run.retry=all would delete what is saved
    return command_line("run_train.py", f"resume={folder}")


def _write_config(folder: Path, settings: TrainSettings) -> None:
    with writing(folder / CONFIG):
        replace_text(folder / CONFIG, to_yaml(settings))
