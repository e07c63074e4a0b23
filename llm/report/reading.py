"""One run folder -> its record. The folder may come from a stranger, and its run may still run."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import NoneType

from llm.checkpoint.find import FOLDER, read_manifest
from llm.errors import Refused, as_line
from llm.experiment.eval_file import read_results, scores
from llm.experiment.rundir import CONFIG, METRICS, SUMMARY, TEST
from llm.experiment.tail import number
from llm.experiment.watch import WAITING
from llm.lock import LOCK
from llm.memory.weights import flops_per_token
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions
from llm.options import from_plain
from llm.report.compared import compared_settings, digest_of
from llm.report.record import DAMAGED, RUNNING, RunRecord
from llm.report.rows import Curve, Rows, open_regular, read_rows
from llm.sealed import Plain, read_json
from llm.settings.saved import read_plain

QUIET = 600  # seconds without a write, after which a run of another machine counts as killed
LARGEST_LOCK = 100  # bytes
LONGEST_TEXT, LONGEST_KEY = 1000, 40  # characters
MOST_SCORES = 50
GIB, MOST_GIB = 2**30, 2**20
LARGEST_NUMBER = 1e50  # sums of the fourth powers of such numbers are finite
KILLED = f"it left no {SUMMARY}: it was killed, or its machine stopped"
STATUS = re.compile(r"[a-z_]{1,40}")
CHECKPOINT = re.compile(r"(best|step)-(\d{8,})")
FLOATS = (
    "best_val_loss", "val_loss", "bits_per_byte", "tokens_per_second", "train_seconds",
    "wall_seconds",
)  # fmt: skip
WHOLE = ("step", "tokens", "parameters", "peak_memory_bytes", "predicted_memory_bytes")


@dataclass(frozen=True)
class Place:
    """Where a run was found."""

    folder: Path
    sweep: str | None = None  # its folder
    values: dict[str, str] = field(default_factory=dict)  # of the sweep's keys
    is_waiting: bool = False  # the sweep runs, and has not started this job yet


@dataclass
class ReadRun:
    """The contents of a run folder when it was read."""

    record: RunRecord
    train: Curve
    val: Curve
    data: str = ""  # digest of the sections that say where its data comes from


def read_run(place: Place) -> ReadRun:
    """Read a run folder. Files that cannot be read make its status :data:`DAMAGED`."""
    folder, faults = place.folder, []
    record = RunRecord(str(folder), folder.name, place.sweep, place.values)
    if place.is_waiting:
        return ReadRun(replace(record, status=WAITING), Curve(), Curve())

    def attempt(read: Callable[[Path], Plain], name: str) -> Plain | None:
        try:
            return read(folder / name) if os.path.lexists(folder / name) else None
        except (Refused, OSError) as error:
            faults.append(str(error))
            return {}

    summary = attempt(read_json, SUMMARY)
    config = attempt(read_plain, CONFIG) or {}
    test = attempt(read_json, TEST) or {}
    rows = read_rows(folder)
    if rows.fault:
        faults.append(rows.fault)
    status, reason = _status(folder, summary)
    if summary is not None and not faults and not STATUS.fullmatch(status):
        faults.append(f"{folder / SUMMARY}: status={status:.40} is not the end of a run")
    if status == "finished" and rows.is_torn:
        faults.append(f"the last line of {METRICS} is cut short")
    if faults:
        status, reason = DAMAGED, ". ".join(faults)
    summary = summary or {}
    record = replace(record, status=status, reason=as_line(reason), test=_scalars(test))
    record = replace(record, **_of_config(config, place, summary, folder))
    record = replace(record, **_of_results(summary, rows), **_checkpoints(folder))
    best = record.best_checkpoint
    record = replace(record, scores=_scores(folder, best))
    if best is not None and record.test.get("checkpoint", best) != best:
        record = replace(record, test={})  # of an earlier checkpoint: the run was trained longer
    data = config.get("data")
    return ReadRun(record, rows.train, rows.val, digest_of([place.sweep, data]) if data else "")


def _status(folder: Path, summary: Plain | None) -> tuple[str, str]:
    if summary is not None:
        return str(summary.get("status")), str(summary.get("reason") or "")
    return (RUNNING, "") if is_written(folder) else ("killed", KILLED)


def is_written(folder: Path) -> bool:
    """Whether a run, or a sweep, writes to this folder.

    Its lock is not tried, because for a moment that would lock out a new start.
    """
    try:
        with open_regular(folder / LOCK, LARGEST_LOCK) as file:
            owner = int(file.read(20))
            newest = os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError, Refused):
        return False
    with contextlib.suppress(OSError):
        newest = max(newest, (folder / METRICS).stat().st_mtime)
    if time.time() - newest < QUIET or owner <= 0:  # it may run on another machine
        return owner > 0
    try:
        os.kill(owner, 0)  # asks only whether the process exists
    except PermissionError:  # it does, and belongs to another user
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _of_config(config: Plain, place: Place, summary: Plain, folder: Path) -> Plain:
    """The fields of the record that follow from ``config.yaml``."""
    if not config:
        return {}
    digests: Plain = {}
    data_digest = _text(summary.get("data_digest"))
    if data_digest is None or config.get("init_from") is not None:
        with contextlib.suppress(Refused, OSError):
            digests = read_manifest(folder / FOLDER / "last").identity
    run, memory = (config.get(key) for key in ("run", "memory"))
    note = _text(run.get("note")) if isinstance(run, dict) else None
    budget = number(memory, "budget_gib") if isinstance(memory, dict) else None
    return {
        "settings": compared_settings(config, place.values, digests.get("init_digest")),
        "seed": _whole(config, "seed"),
        "note": note,
        "data_digest": data_digest or _text(digests.get("data_digest")),
        "budget_bytes": int(budget * GIB) if budget is not None and budget < MOST_GIB else None,
        "flops_per_token": _flops(
            json.dumps(config.get("model")), json.dumps(config.get("finetune"))
        ),
    }


def _of_results(summary: Plain, rows: Rows) -> Plain:
    """The fields that follow from ``summary.json``, or from the rows of a run that has none."""
    values: Plain = {key: _number(summary, key) for key in FLOATS}
    values |= {key: _whole(summary, key) for key in WHOLE}
    newest: Plain = {
        "best_val_loss": _number(rows.best_val, "val/loss"),
        "bits_per_byte": _number(rows.best_val, "val/bits_per_byte"),
        "val_loss": _number(rows.last_val, "val/loss"),
        "tokens_per_second": _number(rows.last_train, "tokens_per_second"),
        "train_seconds": _number(rows.last, "train_seconds"),
        "step": _whole(rows.last, "step"),
        "tokens": _whole(rows.last, "tokens"),
        "peak_memory_bytes": _whole({"peak": rows.peak}, "peak"),
    }
    values |= {key: value for key, value in newest.items() if values[key] is None}
    evaluation = summary.get("evaluation")
    return values | {
        "best_step": _whole(rows.best_val, "step"),
        "last_bits_per_byte": _number(rows.last_val, "val/bits_per_byte"),
        "evaluation": _scalars(evaluation) if isinstance(evaluation, dict) else {},
    }


def _scores(folder: Path, best: str | None) -> dict[str, float]:
    """The main numbers of ``eval.json``; empty if it is of another checkpoint, or unusable."""
    with contextlib.suppress(Refused, OSError):
        found = read_results(folder)
        if found is not None and found.checkpoint == best:
            values = dict(list(scores(found.tasks).items())[:MOST_SCORES])
            return {
                f"eval/{name[:LONGEST_KEY]}": value
                for name in values
                if (value := _number(values, name)) is not None
            }
    return {}


def _text(value: object) -> str | None:
    return value[:LONGEST_TEXT] if isinstance(value, str) else None


def _scalars(values: Plain) -> Plain:
    """The numbers and short texts in ``values``."""
    found: Plain = {}
    for key, value in values.items():
        if len(key) > LONGEST_KEY:
            continue
        if isinstance(value, str):
            found[key] = value[:LONGEST_TEXT]
        elif isinstance(value, bool | NoneType):
            found[key] = value
        elif isinstance(value, int | float):
            found[key] = _number(values, key)
    return found


def _number(values: Plain, key: str) -> float | None:
    """A number that can be summed and squared; None for anything else."""
    value = number(values, key)
    return value if value is not None and abs(value) < LARGEST_NUMBER else None


def _whole(values: Plain, key: str) -> int | None:
    value = _number(values, key)
    return None if value is None else int(value)


def _checkpoints(folder: Path) -> Plain:
    """``best_checkpoint`` and ``last_checkpoint``, below the run's folder."""
    names: dict[str, list[str]] = {"best": [], "step": []}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder / FOLDER):
            if found := CHECKPOINT.fullmatch(name):
                names[found[1]].append(name)
    newest: Plain = {}
    for link, kind in (("best", "best"), ("last", "step")):
        name = max(names[kind], default="")
        with contextlib.suppress(OSError):  # after a rollback, `last` is not the highest step
            target = os.readlink(folder / FOLDER / link)
            name = target if target in names[kind] else name
        newest[f"{link}_checkpoint"] = f"{FOLDER}/{name}" if name else None
    return newest


@cache
def _flops(model: str, finetune: str) -> float | None:
    """FLOPs per token of a network, given as JSON; None for one that cannot exist."""
    try:
        config = from_plain(GPTConfig, json.loads(model), "model.").resolve()
        options = from_plain(FinetuneOptions, json.loads(finetune) or {}, "finetune.")
    except Refused:
        return None
    return flops_per_token(config, options) if config.vocab_size else None
