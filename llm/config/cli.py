"""What every ``run_*.py`` shares: arguments in, one line and an exit status out."""

import contextlib
import functools
import io
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from llm.commands import TYPED, typed_command
from llm.config.folders import refuse_typed_targets
from llm.config.launcher import is_job_of_another_launcher, run_as_job
from llm.config.mistakes import one_line, refuse_dashes, refuse_folders_of_hydra, unreadable_file
from llm.config.verbatim import BREAK, quote_arguments, unquote
from llm.errors import Interrupted, InUse, Refused, Stop, as_stop, printable
from llm.experiment.lock import locked
from llm.experiment.rundir import make_folder, read_summary, write_summary
from llm.experiment.sweep import follow_parent
from llm.memory.options import MemoryOptions
from llm.settings.saved import saved_groups
from llm.signals import Signalled, raised, unswallowed
from llm.terminal import output_matters, written
from llm.version import version_line

TRACEBACK = "HYDRA_FULL_ERROR"
TELLS = ("--help", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version")  # and do nothing
WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
VALUE_GIVEN = tuple(f"{flag}=" for flag in WITH_VALUE)
WANTED = "LLM_FULL_ERROR"  # what the user had set it to; also for the jobs of a sweep


def reported(main: FunctionType) -> Callable[[Any], Any]:
    """For the function below ``@hydra.main``: report before Hydra adds lines of its own.

    Called by another package's launcher, which may be in another process, it starts the job.
    """
    script = Path(main.__code__.co_filename).resolve()  # known here, where it has not been sent yet

    @functools.wraps(main)
    def inner(cfg: Any) -> Any:
        if "run" in cfg and is_job_of_another_launcher():  # other commands have no run of their own
            return run_as_job(script)
        try:
            with unswallowed():
                return main(cfg)
        except Stop as stop:
            if isinstance(stop, Refused) and not isinstance(stop, InUse):
                _leave_summary(cfg, stop)
            _exit(stop, stop.exit_status)
        except OmegaConfBaseException as error:  # an interpolation, met when it is resolved
            _exit(error, 2)
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            sys.exit(0)
        except Exception as error:
            if (known := as_stop(error, _advice(cfg))) is None:
                raise
            _exit(known, known.exit_status)

    return inner


def command(main: Callable[[], Any]) -> None:
    """Run a ``@hydra.main`` function: a user's mistake becomes one line and its exit status.

    ``HYDRA_FULL_ERROR=1`` in the environment shows the traceback as well.
    """
    TYPED[:] = sys.argv
    if "--version" in sys.argv[1:]:  # Hydra would say its own
        sys.argv[1:] = ["--version"]
    tells = any(word.partition("=")[0] in TELLS for word in sys.argv[1:])
    if tells:
        output_matters()
    follow_parent()
    if _others_want_the_cores():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(WANTED, os.environ.get(TRACEBACK, ""))
    os.environ[TRACEBACK] = "1"  # makes Hydra raise what it would print before it exits with 1
    try:
        with raised(), unswallowed(), written():
            if sys.argv[1:] == ["--version"]:
                return print(version_line())
            _require_folder()
            refuse_dashes(sys.argv[1:])
            refuse_typed_targets(sys.argv[1:])
            arguments = quote_arguments(sys.argv[1:])
            refuse_folders_of_hydra(arguments)
            sys.argv[1:] = _with_saved_groups(_flags_first(arguments))
            with _as_meant() if tells else contextlib.nullcontext():
                main()
    except Stop as stop:
        _exit(stop, stop.exit_status)
    except Signalled as signal:
        again = typed_command()
        _exit(Interrupted(f"stopped by {signal}; to continue: {again}"), Interrupted.exit_status)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(error, 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        known = as_mistake(error) or as_stop(error)
        if known is None:
            raise
        _exit(known, known.exit_status)


@contextlib.contextmanager
def _as_meant() -> Iterator[None]:
    """Hydra prints settings with free text in them: as it was typed, not as it was guarded."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            yield
    finally:
        sys.stdout.write(told.getvalue().replace(BREAK, ""))


def _require_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise Refused("the folder you are in does not exist any more: cd into another") from None


def as_mistake(error: Exception) -> Refused | None:
    """A mistake in what was typed, or in an option file, behind an error that Hydra lets through;
    None for a fault of ours.
    """
    if str(error).startswith("Config group override"):  # of model=1
        return Refused(f"{error}: take one of its options, as in model=small")
    if isinstance(error, yaml.YAMLError | ValueError):  # such as a number too long for Python
        text = unreadable_file(error)
        return Refused(text) if text else None
    return None


def _others_want_the_cores(samples: int = 4) -> bool:
    """Whether something else keeps running, by Linux's count of what is running at a moment.

    OpenMP's threads, which torch computes with on a CPU, spin while they wait for each other.
    Sleeping takes up to twice as long on an idle machine. But where others want the cores too, a
    spinning thread holds up the one that it waits for, and a step takes ten times as long.
    """
    running = []
    for _ in range(samples):
        try:
            fields = Path("/proc/loadavg").read_text(encoding="ascii").split()
        except OSError:  # another system, whose torch does not bring this OpenMP
            return False
        running.append(int(fields[3].partition("/")[0]))  # this process among them
        time.sleep(0.01)
    return min(running) > 1


def _exit(error: BaseException, status: int) -> NoReturn:
    if os.environ.get(WANTED) == "1":
        traceback.print_exception(error)
    text = printable(one_line(error).replace(BREAK, ""))
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)
    sys.exit(status)


def _advice(cfg: Any) -> str:
    """What to do where a command with this configuration has not enough memory."""
    if isinstance(cfg, DictConfig) and "trainer" in cfg:
        return MemoryOptions(fit=cfg.memory.fit).no_room
    if isinstance(cfg, DictConfig) and "num_samples" in cfg:
        return "try a smaller num_samples, or device=cpu"
    return ""


def _leave_summary(cfg: Any, refusal: Refused) -> None:
    # A refused job of a sweep says why in its folder; a refused run of its own leaves nothing.
    run = cfg.get("run")
    if run and run.sweep and run.dir:
        folder = Path(run.dir.replace(BREAK, ""))
        if read_summary(folder) is None:
            with contextlib.suppress(InUse), locked(make_folder(folder)):
                write_summary(folder, status=refusal.status, reason=str(refusal))


def _flags_first(arguments: list[str]) -> list[str]:
    """``-m`` and ``--config-dir DIR`` may stand anywhere; Hydra's parser wants all ``key=value`` on
    one side of them.
    """
    flags, others = [], []
    left = iter(arguments)
    for argument in left:
        if argument in WITH_VALUE:
            flags += [argument, *itertools.islice(left, 1)]
        elif argument in ("-m", "--multirun") or argument.startswith(VALUE_GIVEN):
            flags.append(argument)
        else:
            others.append(argument)
    return [*flags, *others]


def _with_saved_groups(arguments: list[str]) -> list[str]:
    """Before a run is continued, compose with the optimizer and schedule it was started with."""
    folders = [unquote(a.partition("=")[2]) for a in arguments if a.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    first = next(n for n, a in enumerate(arguments) if "=" in a and not a.startswith("-"))
    # Before what was typed, which counts more, but after flags such as --cfg job.
    return [*arguments[:first], *saved_groups(Path(folders[-1])), *arguments[first:]]
