"""Which folder a run writes to, and whether there is something in it to continue."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llm.checkpoint.checkpoint import Checkpoint, weights_digest
from llm.checkpoint.find import FOLDER
from llm.checkpoint.folder import newest_valid, repair
from llm.commands import command_line, typed_command
from llm.disk import delete_temporary, writing
from llm.errors import Refused, require
from llm.experiment.rundir import (
    CONFIG,
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
    """A run folder that this process, and no other, may write to."""

    folder: Path
    identity: dict[str, str]  # digests: of the settings, of the data, of what init_from means
    again: str  # the command that continues it
    checkpoint: Checkpoint | None = None  # what to continue from
    is_new: bool = False
    best_val_loss: float | None = None  # of a run that is finished already
    reason: str | None = None  # which option ended that run before its last step, if any
    notes: list[str] = field(default_factory=list)  # what to warn of, once there is a log
    is_finished: bool = False  # nothing is left to do


@contextlib.contextmanager
def open_run(settings: TrainSettings, data_digest: str) -> Iterator[Run]:
    """The run folder for resolved ``settings``, made now, or found with what it holds; it is locked
    while inside.

    A folder that exists is continued if the same thing was trained there. Raises
    :class:`llm.errors.Refused` naming the keys that differ, and for a folder that cannot be
    written or that another process is writing to.
    """
    folder = _named_folder(settings)
    begun = folder is not None and (folder / CONFIG).exists()
    origin = _origin(settings, begun)
    if folder is None:
        folder = new_folder(OUTPUTS)
    elif not begun:
        folder = make_folder(folder)
    with locked(folder) as warning:  # from here on nobody else changes what is in it
        found = (folder / CONFIG).exists()
        run = (_found if found else _start)(folder, settings, data_digest, origin)
        run.notes.extend([warning] if warning else [])
        yield run


def _origin(settings: TrainSettings, begun: bool) -> str | None:
    """The digest of the weights that ``init_from`` names.

    None without ``init_from``, and where the weights are gone but the run has ``begun``: it does
    not need them any more.
    """
    if settings.init_from is None:
        return None
    try:
        return weights_digest(settings.init_from)
    except Refused:
        if not begun:
            raise
        return None


def folder_of(settings: TrainSettings) -> Path:
    """The folder of a run with a ``run.name`` or a ``run.dir``."""
    run = settings.run
    return Path(run.dir) if run.dir else OUTPUTS / str(run.name)


def _named_folder(settings: TrainSettings) -> Path | None:
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
        # What a run that was killed at once, and a job that was refused, leave.
        alike = ("summary.json", ".summary.json", ".lock", ".probe", f".{CONFIG}")
        others = [p for p in folder.glob("*") if not p.name.startswith(alike)]
        headless = (folder / FOLDER).is_dir()
        what = "checkpoints but no config.yaml" if headless else "other files"
        require(not others, f"run folder {folder} has {what} in it: take another run.name")
    return folder


def _start(folder: Path, settings: TrainSettings, data_digest: str, origin: str | None) -> Run:
    delete_temporary(folder)
    _write_config(folder, settings)
    digests = _digests(settings, data_digest, origin)
    return Run(folder, digests, _again(folder, settings), is_new=True)


def _found(folder: Path, settings: TrainSettings, data_digest: str, origin: str | None) -> Run:
    newest, damaged = newest_valid(folder)
    if newest is not None and settings.init_from == load_plain(folder).get("init_from"):
        began_from = newest.identity.get("init_digest")
        origin = began_from if settings.resume or origin is None else origin
    elif settings.init_from is not None and origin is None:
        weights_digest(settings.init_from)  # refuses them by name: they are gone
    _refuse_differences(folder, settings, data_digest, newest, origin)
    digests, again = _digests(settings, data_digest, origin), _again(folder, settings)
    summary, reached = read_summary(folder), newest.step if newest else 0
    finished = summary is not None and summary.get("status") == "finished" and not damaged
    if finished and (reached >= settings.trainer.max_steps or not settings.resume):
        loss, reason = ((summary or {}).get(key) for key in ("best_val_loss", "reason"))
        return Run(
            folder, digests, again, newest, best_val_loss=loss, reason=reason, is_finished=True
        )
    make_folder(folder)
    notes = repair(folder, newest, damaged)
    told = (summary or {}).get("step")
    if newest is None and isinstance(told, int) and told > 0:
        notes.append(f"{folder} has no checkpoint of its {told} steps: it begins again at step 0")
    # A row that a signal put off is in the checkpoint, to be finished: it may be here already.
    put_off = newest is not None and newest.state.get("row") is not None
    cut_metrics(folder, reached - put_off if newest else -1)
    _write_config(folder, settings)
    return Run(folder, digests, again, newest, notes=notes)


def _digests(settings: TrainSettings, data_digest: str, origin: str | None) -> dict[str, str]:
    # The same weights are the same wherever they are: their digest stands for their path.
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


def _refuse_differences(
    folder: Path, settings: TrainSettings, data_digest: str, newest: Checkpoint | None,
    origin: str | None,
) -> None:  # fmt: skip
    saved = load_plain(folder)
    mine = identity(to_plain(settings) | {"init_from": origin}, data_digest)
    theirs: Plain = identity(saved | {"init_from": origin}, data_digest)
    if newest is not None:
        theirs["data_digest"] = newest.identity.get("data_digest")
        theirs["init_from"] = newest.identity.get("init_digest")
    paths = saved.get("init_from"), settings.init_from
    refuse_differences(folder, mine, theirs, settings.resume is not None, paths)
