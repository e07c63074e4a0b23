"""What an earlier start has left in the folder of a run, read without torch.

A run whose settings and data are the same is continued, or skipped if it is finished; any other is
refused with the keys that differ.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.checkpoint.find import FOLDER, Manifest, read_manifest
from llm.errors import Refused, require
from llm.experiment.rundir import CONFIG, LOG, SUMMARY, read_summary
from llm.options import from_plain
from llm.sealed import Plain
from llm.settings.custom import Custom
from llm.settings.identity import config_digest, identity, refuse_differences
from llm.settings.saved import load_plain, not_a_run, to_plain
from llm.settings.schema import TrainSettings
from llm.training.schedule import Horizon

OUTPUTS = Path("outputs")
# UNVERIFIED: finished, but on data that is not prepared (any more), so only the run can compare it.
NEW, UNFINISHED, FINISHED, UNVERIFIED = "new", "unfinished", "finished", "unverified"
# The same command would probably end in the same way again.
ENDED_BY_ITSELF = ("diverged", "out_of_memory", "refused", "failed", "disk_error")
AUTO_PRECISIONS = ("fp32", "bf16", "fp16")  # that precision=auto may choose


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset."""

    digest: str
    vocab_size: int


@dataclass(frozen=True)
class Earlier:
    """The run in a folder. ``ended`` is the status in its summary; None: killed, or never run.

    ``is_extended``: it is a finished job of a sweep, which ``resume=`` has trained longer.
    """

    state: str
    ended: str | None = None
    summary: Plain = field(default_factory=dict)
    is_extended: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == FINISHED


def folder_of(settings: TrainSettings) -> Path:
    """The folder of a run with a ``run.name`` or a ``run.dir``."""
    run = settings.run
    return Path(run.dir) if run.dir else OUTPUTS / str(run.name)


def named_folder(settings: TrainSettings) -> Path | None:
    """The folder of ``run.name`` or ``run.dir``, checked; None if neither is given.

    Raises :class:`llm.errors.Refused` for a folder that holds something else than a run.
    """
    run, resume = settings.run, settings.resume
    require(
        not (settings.trainer.eval_only and run.name),
        "trainer.eval_only=true trains nothing that run.name could continue: leave run.name out",
    )
    require(run.dir or not run.sweep, f"run.sweep={run.sweep} names a sweep: add -m")
    anew = "run.retry=all starts a run anew, and resume= continues it: leave one of them out"
    require(not (resume and run.retry == "all"), anew)
    if not (run.dir or run.name):
        return None
    folder = folder_of(settings)
    require(not folder.is_file(), f"run folder {folder} is a file: take another run.name")
    if not (folder / CONFIG).exists():
        if resume:
            raise not_a_run(folder)
        # A run that was killed at once leaves hidden files, a refused job its summary and log.
        others = [path for path in folder.glob("[!.]*") if path.name not in (SUMMARY, LOG)]
        has_checkpoints = (folder / FOLDER).is_dir()
        what = "checkpoints but no config.yaml" if has_checkpoints else "other files"
        require(not others, f"run folder {folder} has {what} in it: take another run.name")
    return folder


def earlier_runs(jobs: Iterable[tuple[TrainSettings, Path]]) -> Iterator[Earlier]:
    """:func:`earlier_run` of each job of a sweep. Each text is read only once."""
    known: dict[str, Prepared | None] = {}
    for settings, folder in jobs:
        key = repr(settings.data)
        if key not in known:
            known[key] = prepared_data(settings)
        yield earlier_run(settings, folder, known[key])


def prepared_data(settings: TrainSettings) -> Prepared | None:
    """The prepared dataset of a run; None unless it is ready."""
    from llm.data.prepare import prepared  # imports tiktoken, which --help does not need

    meta = prepared(settings.data)
    return None if meta is None else Prepared(meta.digest(), meta.vocab_size)


def earlier_run(settings: TrainSettings, folder: Path, data: Prepared | None) -> Earlier:
    """The run that ``folder`` holds, if it is the one with these ``settings`` (not resolved).

    Raises :class:`llm.errors.Refused` for another run, naming the keys that differ, unless
    ``run.retry=all`` is to replace it. ``config.yaml`` is read only if the digest in
    ``summary.json`` does not show that they are the same.
    """
    summary = read_summary(folder) or {}
    status = summary.get("status")
    ended = status if isinstance(status, str) else None
    if not (folder / CONFIG).exists():
        return Earlier(NEW, ended, summary)
    if settings.run.retry == "all":  # whatever it is, it will be replaced
        return Earlier(UNFINISHED, ended, summary)
    recorded, is_extended = summary.get("config_digest"), False
    if recorded is None or recorded not in possible_digests(settings, data):
        saved = load_plain(folder)
        is_extended = ended == "finished" and _is_extended(settings, saved)
        _require_same(settings, folder, saved, summary, data, is_extended)
    if ended != "finished" or _is_longer(settings, folder):
        return Earlier(UNFINISHED, ended, summary)
    return Earlier(FINISHED if data else UNVERIFIED, ended, summary, is_extended)


def _is_extended(settings: TrainSettings, saved: Plain) -> bool:
    """Whether a run has a larger budget than the sweep of ``settings`` gives it.

    The command that a sweep prints for its best run does this. ``saved``: its ``config.yaml``.
    """
    if settings.run.sweep is None:
        return False
    trainer = settings.trainer
    key = "max_minutes" if trainer.max_steps is None else "max_steps"
    mine, theirs = getattr(trainer, key), (saved.get("trainer") or {}).get(key)
    return isinstance(theirs, int | float) and theirs > mine


def _is_longer(settings: TrainSettings, folder: Path) -> bool:
    """Whether ``resume=`` asks for more steps or minutes than a finished run has made."""
    if settings.resume is None:
        return False
    newest = newest_manifest(folder)
    state, reached = (newest.state, newest.step) if newest else ({}, 0)
    return reached < last_step(settings, state, folder)


def last_step(settings: TrainSettings, state: Plain, place: Path) -> float:
    """Where the run ends; infinity if that is to be decided for a new budget in minutes.

    ``state``: of its newest checkpoint, in ``place``.
    """
    if settings.trainer.max_steps is not None:
        return settings.trainer.max_steps
    progress = state.get("progress")
    saved = progress.get("horizon") if isinstance(progress, dict) else None
    horizon = from_plain(Horizon, saved or {}, f"{place}: progress.horizon.")
    return horizon.last_step(settings.trainer.max_minutes) or math.inf


def possible_digests(settings: TrainSettings, data: Prepared | None) -> Iterator[str]:
    """The digests that a run of ``settings`` may record: more than one if it chooses a value."""
    if data is None:
        return
    origin = None
    if settings.init_from is not None:
        try:
            origin = weights_digest(settings.init_from)
        except Refused:  # deleted
            return
    # Some values may differ in the resolved settings; the other keys are resolved once.
    plain = to_plain(settings.resolve(data.vocab_size, settings.precision.name))
    plain["init_from"] = origin
    is_auto = settings.precision.name == "auto"
    for precision in AUTO_PRECISIONS if is_auto else [settings.precision.name]:
        for state_bits in _state_bits(settings):
            changed = plain | {"precision": plain["precision"] | {"name": precision}}
            if state_bits is not None:
                changed["optimizer"] = plain["optimizer"] | {"state_bits": state_bits}
            yield config_digest(changed, data.digest)


def _state_bits(settings: TrainSettings) -> list[int | None]:
    """The values of ``optimizer.state_bits`` that ``memory.fit=auto`` may choose."""
    optimizer = settings.optimizer
    if isinstance(optimizer, Custom) or "optimizer.state_bits" in settings.typed:
        return [None]
    return [optimizer.state_bits, 40 - optimizer.state_bits]  # 8 or 32


def _require_same(
    settings: TrainSettings, folder: Path, saved: Plain, summary: Plain, data: Prepared | None,
    is_extended: bool,
) -> None:  # fmt: skip
    newest = newest_manifest(folder)
    recorded = newest.identity if newest else None
    vocab_size: Any = data.vocab_size if data else settings.data.declared_vocab_size()
    vocab_size = vocab_size or (saved.get("data") or {}).get("vocab_size") or 0
    mine = to_plain(settings.resolve(vocab_size, settings.precision.name))
    then = (saved.get("precision") or {}).get("name")
    if settings.precision.name == "auto" and then in AUTO_PRECISIONS:
        mine["precision"]["name"] = then
    bits = (saved.get("optimizer") or {}).get("state_bits")
    if bits in _state_bits(settings):
        mine["optimizer"]["state_bits"] = bits
    origin = origin_digest(settings, saved, recorded)
    if recorded is None and summary.get("data_digest"):
        recorded = {"data_digest": summary["data_digest"], "init_digest": origin}
    if data is None:  # unknown, so not compared
        recorded = recorded and recorded | {"data_digest": ""}
    digest = data.digest if data else ""
    refuse_another_run(folder, settings, mine, saved, digest, origin, recorded, is_extended)


def refuse_another_run(
    folder: Path, settings: TrainSettings, mine: Plain, saved: Plain, data_digest: str,
    origin: str | None, recorded: Plain | None, is_extended: bool = False,
) -> None:  # fmt: skip
    """Raise :class:`llm.errors.Refused` naming the keys in which two runs differ.

    ``mine``: the resolved ``settings`` as plain values; ``saved``: ``config.yaml`` in ``folder``.
    ``origin``: the digest of the weights of ``init_from``. ``recorded``: the digests in the newest
    checkpoint of ``folder``; None if it has none. ``is_extended``: see :class:`Earlier`; the keys
    that ``resume=`` may change are not compared.
    """
    mine = identity(mine | {"init_from": origin}, data_digest)
    theirs = identity(saved | {"init_from": origin}, data_digest)
    if recorded is not None:
        theirs["data_digest"] = recorded.get("data_digest")
        theirs["init_from"] = recorded.get("init_digest")
    paths = saved.get("init_from"), settings.init_from
    resumed = is_extended or settings.resume is not None
    name = "run.name" if settings.run.sweep is None else "run.sweep"
    refuse_differences(folder, mine, theirs, resumed, paths, name)


def origin_digest(settings: TrainSettings, saved: Plain, recorded: Plain | None) -> str | None:
    """The digest of the weights of ``init_from``; None without ``init_from``.

    The weights may be deleted by now, because a run that has started no longer needs them: then it
    is the one in ``recorded``, the digests in the newest checkpoint.
    """
    if settings.init_from is None:
        return None
    known = recorded is not None and settings.init_from == saved.get("init_from")
    digest = recorded.get("init_digest") if recorded and known else None
    if settings.resume and known:
        return digest
    try:
        return weights_digest(settings.init_from)
    except Refused:
        if not known:
            raise
        return digest


def weights_digest(place: str) -> str:
    """The sha256 of the weights that ``init_from=place`` names."""
    from llm.interchange.source import open_source  # imports numpy, which --help does not need

    return open_source("init_from", place).digest()


def newest_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run's newest checkpoint; None if it has no readable one."""
    with contextlib.suppress(Refused, OSError):
        return read_manifest(folder / FOLDER / "last")
    return None


def runs_again(retry: str, earlier: Earlier) -> bool:
    """Whether a job starts (again), by ``run.retry``.

    ``failed``: unless it is finished. ``all``: always. ``none``: also not if it ended by itself in
    another way, as by diverging: only if it was interrupted, killed or never started.
    """
    if retry == "all":
        return True
    stays = retry == "none" and earlier.ended in ENDED_BY_ITSELF
    return not (earlier.is_finished or stays)


def refuse_failed(folder: Path) -> None:
    """Raise :class:`llm.errors.Refused` for a run that ended by itself without finishing.

    For ``run.retry=none``.
    """
    summary = read_summary(folder) or {}
    status, reason = summary.get("status"), summary.get("reason")
    how = f"{folder} ended by itself ({status}: {reason})"
    again = "run.retry=none leaves it as it is: leave that out to run it again"
    require(status not in ENDED_BY_ITSELF, f"{how}, and {again}")
