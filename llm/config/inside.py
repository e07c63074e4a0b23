"""Settings composed inside a program of the user's: a notebook, a script, another Hydra program.

The words are those of the command line. Errors are exceptions of :mod:`llm.errors`.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.types import RunMode

from llm import commands
from llm.config.arguments import for_hydra, parse
from llm.config.cli import advice, known_reason
from llm.config.compose import CONF, read_settings
from llm.config.planner import Points, as_points
from llm.config.verbatim import unguard
from llm.errors import Refused, as_line, require
from llm.settings.schema import TrainSettings
from llm.signals import Signalled

# Hydra's global objects that belong to one program; its plugins and schemas are for all.
OF_PROGRAM = (GlobalHydra, HydraConfig, JobRuntime, version.VersionBase)
# Flags that print something, or choose other files
FLAGS = ("help", "hydra_help", "cfg", "info", "shell_completion", "config_name", "config_path")


@contextlib.contextmanager
def as_command(script: str, words: Sequence[str]) -> Iterator[None]:
    """While inside, messages name the command ``python <script> <words>``.

    Errors with a known reason become exceptions of :mod:`llm.errors`, in one line.
    """
    path = commands.FOLDER / script
    require(CONF.is_dir(), f"{CONF} does not exist: import llm from a clone of the repository")
    typed = [str(path), *words]
    before = sys.argv, commands.TYPED[:], commands.OPTION_FOLDERS[:]
    sys.argv, commands.TYPED[:] = typed, typed
    try:
        yield
    except (Exception, Signalled) as error:
        stop = known_reason(error, None)
        if stop is None:
            raise
        found = advice(stop, error)
        stop.key, stop.suggestions = found["key"], found["suggestions"]
        stop.args = (as_line(unguard(str(stop))),)
        raise stop from (None if stop is error else error)
    finally:
        sys.argv, commands.TYPED[:], commands.OPTION_FOLDERS[:] = before


def compose_training(*words: str) -> TrainSettings:
    """The settings of ``python run_train.py <words>``, checked.

    Raises Hydra's errors where it cannot compose them and :class:`llm.errors.Refused` for values
    that cannot work.
    """
    _refuse_flags(words)
    overrides = for_hydra(list(words))
    with _hydra_for("train", overrides) as hydra:
        composed = hydra.compose_config(
            "train", parse(overrides).overrides, RunMode.RUN, from_shell=True,
            with_log_configuration=False,
        )  # fmt: skip
        is_sweep = composed.hydra.mode == RunMode.MULTIRUN or parse(overrides).multirun
        require(not is_sweep, "these words ask for a sweep: use llm.sweep")
        return read_settings(composed, TrainSettings)


def compose_plans(*words: str) -> Points:
    """The points of ``python run_plan.py <words>``; raises as :func:`compose_training` does."""
    _refuse_flags(words)
    overrides = for_hydra(["-m", *words])  # Hydra takes a grid, and a single point, with -m
    with _hydra_for("plan", overrides) as hydra:
        points: Points = hydra.multirun(
            "plan", as_points, parse(overrides).overrides, with_log_configuration=False
        )
        return points


def _refuse_flags(words: Sequence[str]) -> None:
    """Refuse flags of the command line that a function would ignore."""
    given = ["version"] if "--version" in words else []  # argparse would print it and exit
    parsed = parse([word for word in words if word != "--version"])
    given += [name for name in FLAGS if getattr(parsed, name)]
    for name in given:
        raise Refused(f"--{name.replace('_', '-')} works only on the command line: leave it out")


@contextlib.contextmanager
def _hydra_for(command: str, words: Sequence[str]) -> Iterator[Hydra]:
    """Hydra with ``conf/`` and the folder of ``--config-dir``; the program's own Hydra returns."""
    before = {kind: Singleton._instances.pop(kind, None) for kind in OF_PROGRAM}
    try:
        version.setbase("1.3")
        path = create_config_search_path(str(CONF))
        if options := parse(list(words)).config_dir:
            folder = os.path.abspath(options)
            require(Path(folder).is_dir(), f"--config-dir {options} is not a folder")
            path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        yield Hydra.create_main_hydra2(f"run_{command}", path)
    finally:
        for kind, instance in before.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance
