"""The folder of a sweep, ``multirun/<sweep>/``: which sweep it belongs to, and its jobs.

``sweep.json`` there names the keys that vary and the settings that all jobs share, so that the same
command continues the sweep and another one is refused.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.launcher import MULTIRUN, distinguishes
from llm.config.verbatim import displayed, unguard
from llm.disk import delete_temporary
from llm.errors import require
from llm.experiment.names import folder_name
from llm.experiment.rundir import claim, make_folder, replace_text
from llm.experiment.sweep_file import SWEEP, SweepFile, read_sweep_file
from llm.lock import locked
from llm.planning.points import Point
from llm.sealed import Plain
from llm.settings.identity import identity
from llm.settings.saved import to_plain
from llm.settings.schema import TrainSettings

NAME = "%Y-%m-%d_%H-%M-%S"  # if run.sweep is null


@dataclass
class SweepFolder:
    """The folder of a sweep and, in the order of the command, its jobs."""

    path: Path
    is_named: bool  # by run.sweep, so that it may exist already
    file: SweepFile  # of this command and of earlier ones
    values: list[dict[str, str]]  # of each job of this command
    names: list[str]  # of their folders

    @property
    def folders(self) -> list[Path]:
        """The folder of each job of this command."""
        return [self.path / name for name in self.names]

    @property
    def others(self) -> dict[str, dict[str, str]]:
        """The values of the jobs of earlier commands, by the names of their folders."""
        return {name: one for name, one in self.file.jobs.items() if name not in set(self.names)}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make and lock the folder, and write ``sweep.json``.

        Raises :class:`llm.errors.InUse` if another process runs a sweep there.
        """
        self.path = make_folder(self.path, kind="sweep") if self.is_named else claim(self.path)
        with locked(self.path, kind="sweep"):
            delete_temporary(self.path)  # of a sweep that was killed
            replace_text(self.path / SWEEP, self.file.text())
            yield


def sweep_folder(
    named: str | None, points: Sequence[Point[TrainSettings]], swept: Sequence[str],
    composed: DictConfig,
) -> SweepFolder:  # fmt: skip
    """The folder for these jobs, which is not made yet. ``swept``: the keys with a list of values.
    ``composed``: the configuration without these values.

    Raises :class:`llm.errors.Refused` if it holds another sweep.
    """
    typed = [typed_values(point) for point in points]
    first, *others = [identity(to_plain(point.settings), "") for point in points]
    fixed = {key: v for key, v in first.items() if all(one.get(key) == v for one in others)}
    over = [key for key in typed[0] if len({one.get(key) for one in typed}) > 1]
    over = over or [key for key in typed[0] if key in swept] or list(typed[0])
    path = MULTIRUN / (named or f"{datetime.now():{NAME}}")
    require(not path.is_file(), f"sweep folder {path} is a file: take another run.sweep")
    earlier = SweepFile([], {})
    if named and (path / SWEEP).exists():
        earlier = read_sweep_file(path / SWEEP)
        over = _varied_keys(path, earlier, typed[0], over if len(points) > 1 else [], fixed)
        fixed = earlier.fixed
    values = [{key: one[key] for key in over} for one in typed]
    names = [folder_name(one) for one in values]
    jobs = earlier.jobs | dict(zip(names, values, strict=True))
    default = default_values(composed, over) | earlier.default
    file = SweepFile(sorted(over), fixed, jobs, default)
    return SweepFolder(path, named is not None, file, values, names)


def default_values(composed: DictConfig, keys: Sequence[str]) -> dict[str, str]:
    """The values of ``keys`` in a composed configuration, as texts; for a group, its option.

    A key that the configuration does not have is left out.
    """
    values, choices, missing = dict[str, str](), composed.hydra.runtime.choices, object()
    for key in keys:
        name = key.lstrip("+")
        value = choices.get(name, missing)
        if value is missing:
            with contextlib.suppress(OmegaConfBaseException):
                value = OmegaConf.select(composed, name, default=missing)
        if value is not missing:
            values[key] = _as_text(value)
    return values


def _as_text(value: object) -> str:
    """``value`` as an override has it: ``null``, ``true``, ``[0.9,0.95]``."""
    if isinstance(value, list | ListConfig):
        return f"[{','.join(map(_as_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else unguard(str(value))


def _varied_keys(
    folder: Path, earlier: SweepFile, typed: dict[str, str], varied: list[str], fixed: Plain
) -> list[str]:
    """The keys that the sweep in ``folder`` varies; :class:`llm.errors.Refused` if it is another.

    The jobs of this command may repeat some of its jobs, or add values of its keys.
    """
    other = f"{folder} holds another sweep"
    was, now = (", ".join(keys) or "nothing" for keys in (earlier.over, varied or typed))
    same = set(varied) <= set(earlier.over) <= set(typed)
    require(same, f"{other} (over {was}, not {now}): take another run.sweep")
    changes = ", ".join(
        f"{key} was {value}, now {fixed[key]}"
        for key, value in earlier.fixed.items()
        if key in fixed and value != fixed[key]
    )
    require(not changes, f"{other} ({changes}): take another run.sweep, or the same settings")
    return [key for key in typed if key in earlier.over]


def typed_values(point: Point[TrainSettings]) -> dict[str, str]:
    """The values from the command line and the sweep file, by key, without place and note."""
    pairs = [one.partition("=") for one in point.overrides if distinguishes(one)]
    return {key: displayed(value) for key, _, value in pairs}
