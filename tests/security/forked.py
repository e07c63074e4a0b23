"""Commands in forks of a process that has imported torch, and the time and memory of each."""

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path

from tests.conftest import HANGS, ROOT

ADDRESSES = 4 << 30  # bytes that a command may map, in addition to torch's libraries


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int  # exit status; negative: the signal that ended it
    out: str
    err: str
    seconds: float
    memory: int  # bytes at the peak, above a process that has only imported torch


class Commands:
    """Runs commands one after another."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.ended: list[Ended] = []
        self.idle = pool.apply(in_fork, ([], Path.cwd(), {})).memory

    def run(self, command: str, *typed: str, cwd: Path, **environment: str) -> Ended:
        """``python run_<command>.py *typed`` in ``cwd``."""
        argv = [str(ROOT / f"run_{command}.py"), *typed]
        end = self.pool.apply(in_fork, (argv, cwd, {"COLUMNS": "200"} | environment))
        self.ended.append(replace(end, memory=end.memory - self.idle))
        return self.ended[-1]


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    # A fresh process, which has no threads: a fork copies only the one that calls it.
    with multiprocessing.get_context("spawn").Pool(1, initializer=import_all) as pool:
        yield Commands(pool)


def import_all() -> None:
    """Import all that commands need, so that they start at once and their memory is their own."""
    import llm.experiment.loggers
    import llm.experiment.samples
    import llm.settings.run
    import llm.training.trainer  # noqa: F401
    from tests.command_line import composed

    # Hydra's parser learns its grammar when it is first used.
    composed("train", "trainer.device=cpu")
    composed("sample", "device=cpu")


def in_fork(argv: list[str], cwd: Path, environment: dict[str, str]) -> Ended:
    """Run one command in a fork; an empty one does nothing."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(HANGS)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(cwd)
                os.environ.update(environment)
                status = run(argv) if argv else 0
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        return Ended(
            os.waitstatus_to_exitcode(status),
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            seconds,
            usage.ru_maxrss * 1024,
        )


def run(argv: list[str]) -> int:
    """Run a script as if it was typed; returns its exit status."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, resource.RLIM_INFINITY))
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0
