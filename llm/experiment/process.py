"""One job as a child process: how it is started, asked to stop, and how its end is recorded."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llm.errors import DiskError, Diverged, Interrupted, OutOfMemory, Refused, Stop, as_line
from llm.experiment.ledger import append_job
from llm.experiment.rundir import LOG, read_summary, write_summary
from llm.lock import locked
from llm.signals import listener
from llm.units import minutes

PARENT_PIPE = "LLM_PARENT_PIPE"  # a file descriptor that closes when the sweep's process ends
STATUSES = {
    one.exit_status: one.status for one in (Refused, Diverged, OutOfMemory, DiskError, Interrupted)
}
LONGEST_OUTPUT = 1 << 20  # bytes at the end of a job's output that are kept
# Counters of the processes that the kernel's out-of-memory killer has killed, in this control group
# and on the whole machine. A file that does not exist here is skipped.
OOM_COUNTERS = ("/sys/fs/cgroup{group}/memory.events", "/proc/vmstat")


class Child:
    """The process of a job in ``folder``. It runs in a process group of its own, so that Ctrl-C
    reaches only this process, which asks each child to stop.
    """

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self.command = command
        self.folder, self.before = folder, read_summary(folder)
        self.start, self.deadline, self.is_late = time.monotonic(), float("inf"), False
        self.oom_kills = oom_kills()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        reading, self.writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                command, process_group=0, pass_fds=[reading],
                env=os.environ | environment | {PARENT_PIPE: str(reading)},
                stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
            )  # fmt: skip
        finally:
            os.close(reading)
        self.kill: Callable[[], None] = partial(os.killpg, self.process.pid, signal.SIGKILL)
        listener.at_once.append(self.kill)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def is_over(self) -> bool:
        """Whether the process has ended; one that was asked to stop is killed after its time."""
        if time.monotonic() > self.deadline:
            self._kill()
        return self.process.poll() is not None

    def ask_to_stop(self, grace_seconds: float, is_late: bool = False) -> None:
        """Ask the job once to save and end; it is killed after ``grace_seconds``."""
        if self.deadline == float("inf"):
            self.deadline, self.is_late = time.monotonic() + grace_seconds, is_late
            self.process.terminate()

    def close(self) -> None:
        """End the process and all processes that it has left behind."""
        listener.at_once.remove(self.kill)
        self._kill()
        self.process.wait()
        os.close(self.writing)
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - LONGEST_OUTPUT))
        self.tail = self.output.read()
        self.output.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: zombies
            self.kill()

    def end(self, limit_seconds: float | None) -> dict[str, Any]:
        """The job's ``summary.json`` after :meth:`close`; if the job wrote none, this writes one.

        ``limit_seconds``: the limit of a job that has run too long.
        """
        code = self.process.returncode
        summary = read_summary(self.folder)
        late = f"ran longer than {minutes((limit_seconds or 0) / 60)}" * self.is_late
        if summary is not None and (code == 0 or summary != self.before):
            if late and code == Interrupted.exit_status:
                summary |= {"reason": f"{late} ({summary.get('reason')})"}
                self._record(summary)
            return summary
        killed = self.is_late or code < 0
        status = "killed" if killed else STATUSES.get(code, Stop.status)
        facts: dict[str, Any] = {"status": status, "reason": late or self._reason(code)}
        append_job(self.folder, self.command, facts | {"wall_seconds": self.seconds})
        if summary is None:  # else it is the summary of an earlier run in this folder
            self._record(facts | {"wall_seconds": self.seconds})
        return facts

    def _record(self, facts: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, Stop):  # a full disk must not end the other jobs
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                write_summary(self.folder, **facts)
                if self.tail and not (self.folder / LOG).exists():
                    (self.folder / LOG).write_bytes(self.tail)

    def _reason(self, code: int) -> str:
        if code < 0:
            known = -code in set(signal.Signals)  # real-time signals have numbers only
            name = signal.Signals(-code).name if known else f"signal {-code}"
            by_kernel = -code == signal.SIGKILL and oom_kills() != self.oom_kills
            return f"killed by {'the out-of-memory killer of the kernel' if by_kernel else name}"
        lines = self.tail.decode(errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"exit status {code}" + f": {as_line(last.strip())}" * bool(last)


def oom_kills() -> tuple[int, ...]:
    """How many processes the kernel has killed because memory ran out, by each counter."""
    group = ""
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        group = re.findall(r"^0::(/.*)$", text, re.MULTILINE)[0].rstrip("/")
    found = []
    for path in OOM_COUNTERS:
        with contextlib.suppress(OSError):
            text = Path(path.format(group=group)).read_text(encoding="utf-8")
            found += [int(count) for count in re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE)]
    return tuple(found)


def follow_parent() -> None:
    """In a job: send SIGTERM to this process when the sweep that started it dies."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return
    os.set_inheritable(int(descriptor), False)

    def watch() -> None:
        os.read(int(descriptor), 1)  # nothing is ever written; returns when the other end closes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
