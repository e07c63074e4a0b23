"""Standard output and standard error that never end a run, and never obey a stranger's text.

A terminal is closed, a disk is full, an encoding lacks a character: the screen loses text, but the
run's own files have it. Only commands that make nothing but output end if it cannot be written
(:func:`require_output`).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from llm.errors import DiskError, printable


class SafeStream:
    """A stream to which a failed write loses the text; if :attr:`is_required`, it raises."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.is_required = stream, False
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def discard(self) -> None:
        """Throw away the buffer and everything that is written from now on."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def _failed(self, error: Exception) -> None:
        if not self.is_required:
            return  # the buffer stays: the disk may have room again later
        self.is_required = False  # raise only once
        self.discard()
        if isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
            raise error
        reason = getattr(error, "strerror", None) or str(error)
        raise DiskError(f"standard output could not be written: {reason}") from error


class SafeTerminal:
    """A terminal that shows escape sequences instead of obeying them, except rich's own."""

    def __init__(self, stream: SafeStream) -> None:
        self.rich_proxied_file = stream  # where rich writes instead, if a stream has this attribute

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)


def safe(stream: TextIO) -> SafeStream | SafeTerminal:
    """``stream`` as this program writes to it; in a pipe or a file text stays unchanged."""
    return SafeTerminal(SafeStream(stream)) if stream.isatty() else SafeStream(stream)


def guard_streams() -> None:
    """Replace standard output and standard error by safe ones."""
    for number in range(3):
        _open_if_closed(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started: `>&-`
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, cast(TextIO, safe(stream)))
    # Python 3.13 colours its tracebacks, and the colours would be shown as text.
    os.environ.setdefault("PYTHON_COLORS", "0")


def _open_if_closed(number: int) -> None:
    # Otherwise the next file to be opened, perhaps a checkpoint, would become standard output.
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number


def require_output() -> None:
    """This command makes nothing but standard output: from now on a failed write ends it.

    The write raises :class:`llm.errors.DiskError`, or ``BrokenPipeError`` if the reader has gone.
    """
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    if isinstance(stream, SafeStream):
        stream.is_required = True


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Write the buffer at the end of the block, while a failure can still be reported."""
    try:
        yield
    finally:
        sys.stdout.flush()


def empty_buffers() -> None:
    """Write or discard the buffers; if Python itself failed to, the exit status would change."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, SafeStream | SafeTerminal):
            try:
                stream.stream.flush()
            except (OSError, ValueError):
                stream.discard()
