"""Standard output and standard error that never end a run, whatever happens to them.

A terminal goes away, a disk fills up, an encoding lacks a character. What the screen loses is still
in the run's own files. Only a command that makes nothing but output, such as run_sample.py, ends
when it cannot write (:func:`output_matters`).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from llm.errors import DiskError, printable


class Unfailing:
    """A stream to which writing never fails, unless it :attr:`matters`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.matters = stream, False
        if hasattr(stream, "reconfigure"):  # one that Python opened, and not a test's
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        with self._kept_quiet():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits in the buffer, or leave it there: the disk may have room again later."""
        with self._kept_quiet():
            self.stream.flush()

    def give_up(self) -> None:
        """From here on all output is thrown away, with what waits in the buffer."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def let_go(self) -> None:
        """Write what waits in the buffer, or throw it away."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.give_up()

    @contextlib.contextmanager
    def _kept_quiet(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            if not self.matters:
                return
            self.matters = False  # told once
            self.give_up()
            if isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise DiskError(f"standard output could not be written: {reason}") from error


class Shown:
    """A stream that is printable text on a terminal, whoever wrote it, and unchanged in a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self.unfiltered = Unfailing(stream)
        self.is_terminal = stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)

    def write(self, text: str) -> int:
        """Write; what a terminal would obey is shown as ``\\x1b`` and the like."""
        shown = printable(text, keep="\n\t", longest=None) if self.is_terminal else text
        self.unfiltered.write(shown)
        return len(text)


def guard_streams() -> None:
    """From here on nothing that happens to standard output or standard error ends this process."""
    for number in range(3):
        _open_if_closed(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started: `>&-`
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, cast(TextIO, Shown(stream)))
    # Python 3.13 colours its tracebacks: these codes would be made printable, too.
    os.environ.setdefault("PYTHON_COLORS", "0")


def unfiltered(stream: Any) -> Any:
    """The stream without its filter, for code that writes escape sequences on purpose."""
    return stream.unfiltered if isinstance(stream, Shown) else stream


def output_matters() -> None:
    """This command makes nothing but standard output: from here on a failed write ends it.

    The write raises :class:`llm.errors.DiskError`, or ``BrokenPipeError`` if the reader has gone.
    """
    if isinstance(sys.stdout, Shown):
        sys.stdout.unfiltered.matters = True


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Write what waits in the buffer at the end, while a failure can still be reported."""
    try:
        yield
    finally:
        sys.stdout.flush()


def let_go() -> None:
    """At the very end of a process: empty the buffers. Python would do it later, and a failure
    would change the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Shown):
            stream.unfiltered.let_go()


def _open_if_closed(number: int) -> None:
    # Otherwise the next file to be opened, perhaps a checkpoint, would be standard output.
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
