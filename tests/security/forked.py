"""Commands in processes of their own that have torch imported already, and what each of them took.

Run as a program it is the parent of them all: a line of JSON in for each command, one out.
"""

import contextlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import HANGS, ROOT

ADDRESSES = 4 << 30  # bytes that a command may map, besides what torch does


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit status (negative: by which signal) and what it took."""

    status: int
    out: str
    err: str
    seconds: float
    memory: int  # bytes at the most, above a process that has only imported torch


class Commands:
    """Runs commands one after another."""

    def __init__(self, parent: "subprocess.Popen[str]") -> None:
        self.parent = parent
        self.ended: list[Ended] = []  # all so far
        self.idle = self._ask(None, Path.cwd(), {})["memory"]

    def run(self, command: str, *typed: str, cwd: Path, **environment: str) -> Ended:
        """``python run_<command>.py *typed`` in ``cwd``."""
        found = self._ask([str(ROOT / f"run_{command}.py"), *typed], cwd, environment)
        self.ended.append(Ended(**found | {"memory": found["memory"] - self.idle}))
        return self.ended[-1]

    def _ask(self, argv: list[str] | None, cwd: Path, environment: dict[str, str]) -> Any:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        print(json.dumps([argv, str(cwd), environment]), file=self.parent.stdin, flush=True)
        return json.loads(self.parent.stdout.readline())


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    """The parent, while inside."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.security.forked"],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    ) as parent:  # fmt: skip
        yield Commands(parent)
        assert parent.stdin is not None
        parent.stdin.close()


def serve() -> None:
    """Import what commands need, then answer until the input ends."""
    import llm.experiment.loggers
    import llm.experiment.samples
    import llm.settings.run
    import llm.training.trainer  # noqa: F401
    from tests.command_line import composed

    # What Hydra's parser learns when it is first needed.
    for command in ("train", "sample"):
        composed(command, "device=cpu" if command == "sample" else "trainer.device=cpu")
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


def answer(argv: list[str] | None, cwd: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run one command in a child; None for a child that does nothing."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(cwd)
                os.environ.update(environment)
                status = run(argv) if argv else 0
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
            if time.monotonic() - began > HANGS:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        out.seek(0)
        err.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(ended[1]),
            "out": out.read().decode(errors="replace"),
            "err": err.read().decode(errors="replace"),
            "seconds": time.monotonic() - began,
            "memory": ended[2].ru_maxrss * 1024,
        }


def run(argv: list[str]) -> int:
    """A script, as if typed; returns its exit status."""
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


if __name__ == "__main__":
    serve()
