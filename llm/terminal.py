"""Standard output and standard error that never end a run, and escape control characters.

If a terminal is closed, a disk is full or an encoding lacks a character, text is missing on the
screen, but the files of the run have it. Only a command whose single result is its output ends then
(:func:`require_output`).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from llm.errors import DiskError, printable


class SafeStream:
    """A stream that drops text it cannot write, or raises an error if :attr:`is_required`."""

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
        """Drop the buffer and all later output."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def _failed(self, error: Exception) -> None:
        if not self.is_required:
            return  # leave the buffer: the disk may have room again later
        self.is_required = False  # raise only once
        self.discard()
        if isinstance(error, BrokenPipeError):  # a reader such as `head` has ended
            raise error
        reason = getattr(error, "strerror", None) or str(error)
        raise DiskError(f"standard output could not be written: {reason}") from error


class SafeTerminal:
    """A terminal that shows control characters as text, except those that rich sends."""

    def __init__(self, stream: SafeStream) -> None:
        self.rich_proxied_file = stream  # rich writes to the stream in this attribute instead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)


def safe(stream: TextIO) -> SafeStream | SafeTerminal:
    """A safe stream that writes to ``stream``; in a pipe or a file text stays unchanged."""
    return SafeTerminal(SafeStream(stream)) if stream.isatty() else SafeStream(stream)


def guard_streams() -> None:
    """Replace standard output and standard error by safe streams."""
    for number in range(3):
        # If closed, it would become the next file that is opened, perhaps a checkpoint.
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(null, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started: `>&-`
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (stays open)
        setattr(sys, name, cast(TextIO, safe(stream)))
    # Python 3.13 colours its tracebacks, and the colours would be shown as text.
    os.environ.setdefault("PYTHON_COLORS", "0")


def require_output() -> None:
    """Let a failed write to standard output end the command, from now on.

    The write raises :class:`llm.errors.DiskError`, or ``BrokenPipeError`` if the reader has ended.
    """
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    if isinstance(stream, SafeStream) and sys.stdout is not sys.stderr:  # as with json=true
        stream.is_required = True


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Flush standard output at the end of the block, while a failure can still be reported."""
    try:
        yield
    finally:
        sys.stdout.flush()


def empty_buffers() -> None:
    """Flush or drop the buffers: if Python fails to flush them at exit, the exit status changes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, SafeStream | SafeTerminal):
            try:
                stream.stream.flush()
            except (OSError, ValueError):
                stream.discard()
