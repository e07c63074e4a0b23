"""Shared by all ``run_*.py``: prepare the arguments, report errors as one line and exit status."""

import contextlib
import functools
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import llm.config.questions  # noqa: F401  (conf/training.yaml calls it for --help)
from llm import commands
from llm.answer import answer, begin, end
from llm.config import arguments
from llm.config.launcher import is_job_of_another_launcher, run_as_job
from llm.config.mistakes import explained
from llm.config.verbatim import unguard
from llm.errors import Interrupted, InUse, Refused, Stop, as_line, as_stop
from llm.experiment.ledger import append_job
from llm.experiment.process import follow_parent
from llm.experiment.rundir import make_folder, read_summary, write_summary
from llm.lock import locked
from llm.settings.keys import key_in
from llm.signals import Signalled, raised, remember, unswallowed
from llm.terminal import flushed, require_output
from llm.version import version_line

TRACEBACK = "HYDRA_FULL_ERROR"
WANTED = "LLM_FULL_ERROR"  # the user's value of TRACEBACK; the jobs of a sweep inherit it


def command(main: Callable[[], Any]) -> None:
    """Run a ``@hydra.main`` function: a user's mistake becomes one line and its exit status.

    ``HYDRA_FULL_ERROR=1`` in the environment shows the traceback as well.
    """
    commands.TYPED[:] = [sys.argv[0], *arguments.without_agents_word(sys.argv[1:])]
    with _answering(commands.TYPED[1:]):
        _command(main)


@contextlib.contextmanager
def _answering(words: list[str]) -> Iterator[None]:
    """With ``json=true`` in ``words``, print one JSON document at the end, however that is."""
    begin(words)
    try:
        yield
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.exit(end(status))
    except BaseException as error:  # a bug: Python prints the traceback and exits with status 1
        answer(status=Stop.status, reason=as_line(f"{type(error).__name__}: {error}"))
        end(Stop.exit_status)
        raise
    if status := end(0):
        sys.exit(status)


def _command(main: Callable[[], Any]) -> None:
    follow_parent()
    if others_want_the_cores():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(WANTED, os.environ.get(TRACEBACK, ""))
    os.environ[TRACEBACK] = "1"  # Hydra raises its errors, instead of printing them and exiting
    with _one_line(), raised(), unswallowed(), flushed():
        sys.argv[1:] = arguments.without_json_word(commands.TYPED[1:])
        if "--version" in sys.argv[1:]:  # Hydra would print its own version
            require_output()
            print(version_line())
            answer(output=version_line())
            return
        try:
            os.getcwd()
        except FileNotFoundError:
            raise Refused(
                "the folder you are in does not exist any more: cd into another"
            ) from None
        flags = arguments.parse(sys.argv[1:])
        sys.argv[1:] = arguments.for_hydra(sys.argv[1:])
        shows = flags.help or flags.hydra_help or flags.cfg or flags.info
        with _as_typed() if shows else contextlib.nullcontext():
            main()


def reported(main: FunctionType) -> Callable[[Any], Any]:
    """For the function below ``@hydra.main``: report its errors before Hydra adds its own lines.

    Called by a launcher of another package, it starts the job in a process of its own.
    """
    script = Path(main.__code__.co_filename).resolve()  # resolved here: a worker may run elsewhere

    @functools.wraps(main)
    def inner(cfg: Any) -> Any:
        if "run" in cfg and is_job_of_another_launcher():  # other commands have no section `run`
            return run_as_job(script)
        with _one_line(cfg), unswallowed():
            return main(cfg)

    return inner


@contextlib.contextmanager
def _one_line(cfg: Any = None) -> Iterator[None]:
    """End the process with one line and an exit status for an error with a known reason.

    ``cfg`` is the composed configuration, if there is one already. Bugs of this program pass
    through, with their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        sys.exit(0)
    except (Exception, Signalled) as error:
        remember()  # the process ends anyway: no other signal interrupts its last lines
        stop = known_reason(error, cfg)
        if stop is None:
            raise
        if isinstance(stop, Refused) and not isinstance(stop, InUse):
            _leave_summary(cfg, stop)
        if os.environ.get(WANTED) == "1":
            traceback.print_exception(error)
        line = as_line(unguard(str(stop)))
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        answer(status=stop.status, reason=line, **advice(stop, error))
        sys.exit(stop.exit_status)


def known_reason(error: BaseException, cfg: Any) -> Stop | None:
    """The known reason behind an error; None for a bug of this program."""
    if isinstance(error, Stop):
        return error
    if isinstance(error, Signalled):
        return Interrupted(f"stopped by {error}; to continue: {commands.typed_command()}")
    if (mistake := explained(error)) is not None:
        return mistake
    samples = cfg is not None and "num_samples" in cfg  # a run gives its own advice about memory
    return as_stop(error, "try a smaller num_samples, or device=cpu" if samples else "")


def advice(stop: Stop, error: BaseException) -> dict[str, Any]:
    """The key that an error is about, and words to type instead, for the JSON document.

    A message may have been put into a longer one. Then the first error knows them.
    """
    key, suggestions = stop.key or key_in(str(stop)), stop.suggestions
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Stop):
            key = key or cause.key or key_in(str(cause))
            suggestions = suggestions or cause.suggestions
        cause = cause.__cause__ or cause.__context__
    return {"key": key, "suggestions": suggestions}


def _leave_summary(cfg: Any, refusal: Refused) -> None:
    # A refused job of a sweep says why in its folder; any other refused run leaves no folder.
    run = cfg.get("run") if cfg is not None else None
    if run and run.sweep and run.dir and not run.dry_run:
        folder = Path(unguard(run.dir))
        if read_summary(folder) is None:
            with contextlib.suppress(InUse), locked(make_folder(folder)):
                facts = {"status": refusal.status, "reason": str(refusal)}
                write_summary(folder, **facts)
                append_job(folder, commands.TYPED, facts)


@contextlib.contextmanager
def _as_typed() -> Iterator[None]:
    """For a command that only prints settings: print free text as it was typed."""
    require_output()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        text = unguard(printed.getvalue())
        sys.stdout.write(text)
        answer(output=text)


def others_want_the_cores(samples: int = 4) -> bool:
    """Whether another process keeps running, by Linux's count of running processes.

    torch's OpenMP threads spin while they wait for each other, as sleeping takes up to twice as
    long on an idle machine. Where another process needs the cores, a spinning thread delays the
    thread it waits for, and a step takes ten times as long.
    """
    running = []
    for _ in range(samples):
        try:
            fields = Path("/proc/loadavg").read_text(encoding="ascii").split()
        except OSError:  # another system, where torch uses another OpenMP
            return False
        running.append(int(fields[3].partition("/")[0]))  # with this process
        time.sleep(0.01)
    return min(running) > 1
