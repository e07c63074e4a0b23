"""Which folder a run writes to, and whether it holds a run to continue."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm.checkpoint.checkpoint import Checkpoint, weights_digest
from llm.checkpoint.find import FOLDER
from llm.checkpoint.folder import newest_valid, repair
from llm.commands import command_line, typed_command
from llm.disk import delete_temporary, writing
from llm.errors import Refused, require
from llm.experiment.rundir import (
    CONFIG,
    LOG,
    SUMMARY,
    cut_metrics,
    make_folder,
    new_folder,
    read_summary,
    replace_text,
)  # fmt: skip
from llm.lock import locked
from llm.sealed import Plain
from llm.settings.identity import config_digest, identity, refuse_differences
from llm.settings.saved import load_plain, not_a_run, to_plain, to_yaml
from llm.settings.schema import TrainSettings

OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Run:
    """A run folder that only this process may write to."""

    folder: Path
    identity: dict[str, str]  # digests of the settings, the data and the weights of init_from
    again: str  # the command that continues it
    checkpoint: Checkpoint | None = None  # to continue from
    is_new: bool = False
    is_finished: bool = False  # nothing is left to do
    best_val_loss: float | None = None  # of a finished run
    reason: str | None = None  # why a finished run ended before its last step
    notes: list[str] = field(default_factory=list)  # warnings for the log, which is not open yet


@contextlib.contextmanager
def open_run(settings: TrainSettings, data_digest: str) -> Iterator[Run]:
    """The run folder for resolved ``settings``, new or continued; it is locked while inside.

    Raises :class:`llm.errors.Refused` for a folder with another run, naming the keys that differ,
    and for a folder that cannot be written or that another process is writing to.
    """
    folder = _named_folder(settings)
    if folder is None or not (folder / CONFIG).exists():
        if settings.init_from is not None:
            weights_digest(settings.init_from)  # refuses missing weights before a folder is made
        folder = new_folder(OUTPUTS) if folder is None else make_folder(folder)
    with locked(folder) as warning:  # from here on, no other process changes it
        opened = _continued if (folder / CONFIG).exists() else _new
        run = opened(folder, settings, data_digest)
        if warning:
            run.notes.append(warning)
        yield run


def folder_of(settings: TrainSettings) -> Path:
    """The folder of a run with a ``run.name`` or a ``run.dir``."""
    run = settings.run
    return Path(run.dir) if run.dir else OUTPUTS / str(run.name)


def _named_folder(settings: TrainSettings) -> Path | None:
    """The folder of ``run.name`` or ``run.dir``, checked; None if neither is given."""
    run, resume = settings.run, settings.resume
    require(
        not (settings.trainer.eval_only and run.name),
        "trainer.eval_only=true trains nothing that run.name could continue: leave run.name out",
    )
    require(run.dir or not run.sweep, f"run.sweep={run.sweep} names a sweep: add -m")
    if not (run.dir or run.name):
        return None
    folder = folder_of(settings)
    if not (folder / CONFIG).exists():
        require(not resume, f"resume={resume} {not_a_run(folder)}")
        # A run that was killed at once leaves hidden files, a refused job its summary and log.
        others = [path for path in folder.glob("[!.]*") if path.name not in (SUMMARY, LOG)]
        has_checkpoints = (folder / FOLDER).is_dir()
        what = "checkpoints but no config.yaml" if has_checkpoints else "other files"
        require(not others, f"run folder {folder} has {what} in it: take another run.name")
    return folder


def _new(folder: Path, settings: TrainSettings, data_digest: str) -> Run:
    delete_temporary(folder)
    _write_config(folder, settings)
    origin = None if settings.init_from is None else weights_digest(settings.init_from)
    digests = _digests(settings, data_digest, origin)
    return Run(folder, digests, _again(folder, settings), is_new=True)


def _continued(folder: Path, settings: TrainSettings, data_digest: str) -> Run:
    saved = load_plain(folder)
    newest, damaged = newest_valid(folder)
    origin = _origin(settings, saved, newest)
    mine = identity(to_plain(settings) | {"init_from": origin}, data_digest)
    theirs = identity(saved | {"init_from": origin}, data_digest)
    if newest is not None:
        theirs["data_digest"] = newest.identity.get("data_digest")
        theirs["init_from"] = newest.identity.get("init_digest")
    paths = saved.get("init_from"), settings.init_from
    refuse_differences(folder, mine, theirs, settings.resume is not None, paths)
    run = Run(folder, _digests(settings, data_digest, origin), _again(folder, settings), newest)
    summary = read_summary(folder) or {}
    reached = newest.step if newest else 0
    is_finished = summary.get("status") == "finished" and not damaged
    if is_finished and (reached >= settings.trainer.max_steps or not settings.resume):
        loss, reason = summary.get("best_val_loss"), summary.get("reason")
        return replace(run, is_finished=True, best_val_loss=loss, reason=reason)
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


def _origin(settings: TrainSettings, saved: Plain, newest: Checkpoint | None) -> str | None:
    """The digest of the weights of ``init_from``; None without ``init_from``.

    The weights may be deleted by now, because a run that has started no longer needs them.
    """
    if settings.init_from is None:
        return None
    known = newest is not None and settings.init_from == saved.get("init_from")
    recorded = newest.identity.get("init_digest") if newest and known else None
    if settings.resume and known:
        return recorded
    try:
        return weights_digest(settings.init_from)
    except Refused:
        if not known:
            raise
        return recorded


def _digests(settings: TrainSettings, data_digest: str, origin: str | None) -> dict[str, str]:
    # The digest of the weights stands for init_from: the same weights may have two paths.
    digest = config_digest(to_plain(settings) | {"init_from": origin}, data_digest)
    digests = {"config_digest": digest, "data_digest": data_digest}
    return digests | ({"init_digest": origin} if origin else {})


def _again(folder: Path, settings: TrainSettings) -> str:
    if settings.run.name or settings.trainer.eval_only:
        return typed_command()
    return command_line("run_train.py", f"resume={folder}")


def _write_config(folder: Path, settings: TrainSettings) -> None:
    with writing(folder / CONFIG):
        replace_text(folder / CONFIG, to_yaml(settings))
