"""The runs that a report is about: found below the given folders, and read again as they change."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llm.errors import Refused, require
from llm.experiment.rundir import CONFIG, EVAL, METRICS, SUMMARY, TEST
from llm.experiment.sweep_file import SWEEP, SweepFile, read_sweep_file
from llm.lock import LOCK
from llm.report.compared import digest_of
from llm.report.reading import Place, ReadRun, is_written, read_run
from llm.report.record import RunRecord
from llm.report.rows import Curve

DEEPEST = 4  # levels below a given folder: ./outputs/<date>/<time>
NOT_SEARCHED = ("checkpoints", "wandb")  # W&B's folders have files named config.yaml, too
WHAT_TO_GIVE = "give a run, a sweep such as multirun/NAME, or a folder with runs such as outputs"
FILES = (CONFIG, SUMMARY, METRICS, TEST, EVAL, "checkpoints", LOCK)  # that are read
LOCKED = FILES.index(LOCK)
OnProgress = Callable[[int, int], None]  # called with (runs read, runs found)
Stamps = tuple[tuple[int, int, int] | None, ...]


def find_runs(
    paths: Sequence[str | Path], on_progress: OnProgress = lambda done, total: None
) -> list[RunRecord]:
    """The runs in ``paths``: run folders, folders of sweeps, and folders with runs below them.

    Jobs of a sweep are in the order of its ``sweep.json``, other runs are sorted by name, and no
    run occurs twice. Raises :class:`llm.errors.Refused` for a path without runs.
    """
    return Reader(paths).read(on_progress)


class Reader:
    """Reads the runs in ``paths``; reads them again only if their files have changed.

    ``notes``: sentences about files that could not be used.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self.notes: list[str] = []
        self._known: dict[str, tuple[Stamps, ReadRun]] = {}

    def read(self, on_progress: OnProgress = lambda done, total: None) -> list[RunRecord]:
        """The records of all runs. Raises :class:`llm.errors.Refused` for a path without runs."""
        self.notes = []
        places = list(self._places())
        known, self._known = self._known, {}
        for done, place in enumerate(places):
            on_progress(done, len(places))
            stamps = _stamps(place.folder)
            before = known.get(str(place.folder))
            is_same = before is not None and before[0] == stamps and stamps[LOCKED] is None
            run = before[1] if before and is_same else read_run(place)
            self._known[str(place.folder)] = stamps, run
        on_progress(len(places), len(places))
        return _with_points([run for _, run in self._known.values()])

    def curves(self, folder: str) -> tuple[Curve, Curve]:
        """The losses of training and of validation of a run that the last :meth:`read` found."""
        run = self._known[folder][1]
        return run.train, run.val

    def _places(self) -> Iterator[Place]:
        seen: set[str] = set()
        for path in self.paths:
            is_empty = True
            for place in self._below(_shortest(path)):
                is_empty = False
                if (real := os.path.realpath(place.folder)) not in seen:
                    seen.add(real)
                    yield place
            require(not is_empty, f"{path} has no runs in it: {WHAT_TO_GIVE}")

    def _below(self, folder: Path) -> Iterator[Place]:
        try:
            require(os.path.exists(folder), f"{folder} does not exist: {WHAT_TO_GIVE}")
        except ValueError:  # a NUL character in the name
            raise Refused(f"{str(folder)!r} is not the name of a folder: {WHAT_TO_GIVE}") from None
        require(folder.is_dir(), f"{folder} is a file: {WHAT_TO_GIVE}")
        if is_run(folder):
            sweep = self._sweep_file(folder.parent)
            yield _job(folder, sweep) if sweep else Place(folder)
        else:
            yield from self._search(folder, DEEPEST)

    def _search(self, folder: Path, depth: int) -> Iterator[Place]:
        sweep = self._sweep_file(folder)
        names = _subfolders(folder)
        waits = sweep is not None and is_written(folder)  # jobs without a folder will start
        if sweep is not None:
            names = list(dict.fromkeys([*sweep.jobs, *names]))
        for name in names:
            path = folder / name
            if is_run(path):
                yield _job(path, sweep) if sweep else Place(path)
            elif waits and sweep and name in sweep.jobs:
                yield replace(_job(path, sweep), is_waiting=True)
            elif depth > 1:
                yield from self._search(path, depth - 1)

    def _sweep_file(self, folder: Path) -> SweepFile | None:
        """The ``sweep.json`` of a folder; None if it has none."""
        if not os.path.lexists(folder / SWEEP):
            return None
        try:
            return read_sweep_file(folder / SWEEP)
        except (Refused, OSError) as error:
            note = f"{error}: the runs in {folder} are shown without the keys of their sweep"
            self.notes += [] if note in self.notes else [note]
            return SweepFile([], {})


def is_run(folder: Path) -> bool:
    """Whether a folder is the folder of a run."""
    return any(os.path.lexists(folder / name) for name in (CONFIG, SUMMARY))


def _job(folder: Path, sweep: SweepFile) -> Place:
    return Place(folder, str(folder.parent), sweep.jobs.get(folder.name, {}))


def _subfolders(folder: Path) -> list[str]:
    """The names of the folders in which runs may be, sorted. Links are not followed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and not entry.name.startswith(".")
            and entry.name not in NOT_SEARCHED
        )
    return []


def _shortest(path: Path) -> Path:
    """``path`` relative to the current folder if it is below it."""
    with contextlib.suppress(ValueError, OSError):
        return Path(os.path.abspath(path)).relative_to(Path.cwd())
    return path


def _stamps(folder: Path) -> Stamps:
    """Time, inode and size of each file that is read, so that a change is noticed."""
    stamps = []
    for name in FILES:
        stamp = None
        with contextlib.suppress(OSError):
            status = os.stat(folder / name)
            stamp = status.st_mtime_ns, status.st_ino, status.st_size
        stamps.append(stamp)
    return tuple(stamps)


def _with_points(runs: Sequence[ReadRun]) -> list[RunRecord]:
    """The records with their points.

    A run that has not saved yet does not know the digest of its data. It gets the one of the other
    runs of its sweep with the same section ``data``.
    """
    digests: dict[str, set[str]] = {}
    for run in runs:
        if run.record.data_digest is not None:
            digests.setdefault(run.data, set()).add(run.record.data_digest)
    records = []
    for run in runs:
        record, digest = run.record, run.record.data_digest
        if digest is None and len(digests.get(run.data, ())) == 1:
            digest = next(iter(digests[run.data]))
        if record.settings:
            record = replace(record, point=digest_of([record.settings, digest]))
        records.append(record)
    return records
