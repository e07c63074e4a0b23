"""Ctrl-C, termination, a lost terminal and SIGUSR1: the first signal ends a command in good order
with status 75, a second Ctrl-C at once with 130.

How depends on what there is to lose. While modules are imported: nothing, so the process ends on
the spot. Until training begins: what is half done is undone by an exception, :class:`Signalled`.
From then on a signal is only remembered, and the loop looks after each step, and between the
batches of an evaluation; work inside a handler may meet the interpreter in any state.

Python calls a handler only between two of its own instructions, and one call of torch may take
minutes. So Python also writes each signal to a pipe at once (``signal.set_wakeup_fd``), where a
thread reads it. The thread says that Ctrl-C was heard. At a second Ctrl-C it ends the process, even
while the main thread is still inside that call.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from types import FrameType
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPED, AT_ONCE = 75, 130  # exit statuses
SOON = 0.5  # seconds in which a handler is called, unless the interpreter is inside one long call
T = TypeVar("T")


class Signalled(BaseException):
    """A signal asks this process to end.

    Not an ``Exception``: libraries would catch it as an error and go on.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.name = number.name


class Reaction(Enum):
    """What the first signal does."""

    LEAVE = auto()
    RAISE = auto()
    REMEMBER = auto()


class Listener:
    """Answers signals while it listens; there is one for each process: :data:`listener`."""

    def __init__(self) -> None:
        self.before: dict[signal.Signals, Any] = {}  # handlers; empty: not listening
        self.pipe: int | None = None  # the end that the system writes to
        self.at_once: list[Callable[[], object]] = []  # to call before a second Ctrl-C ends it
        self.stop_listening()

    def listen(self) -> None:
        """Replace the present handlers."""
        if not self.before:
            self._hear_at_once()
            self.before = {n: signal.signal(n, self._answer) for n in answered()}

    def stop_listening(self) -> None:
        """Give the handlers back and forget what was received."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
        if self.pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.pipe)  # which ends the thread
            self.pipe = None
            self.thread.join()
        self.received: signal.Signals | None = None
        self.reaction = Reaction.LEAVE
        self.raised = threading.Event()  # whether Python's handler has raised Signalled

    def check(self) -> None:
        """Raise :class:`Signalled` if a signal has come."""
        if self.received is not None:
            raise Signalled(self.received)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """``items``, until a signal comes: :class:`Signalled` then."""
        for item in items:
            self.check()
            yield item

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                self._leave_at_once()
            if self.reaction is Reaction.RAISE:  # somebody swallowed the first
                raise Signalled(self.received)
            return
        self.received = signal.Signals(number)
        if self.reaction is Reaction.LEAVE:
            say_at_once(f"stopped by {self.received.name}, nothing was begun")
            os._exit(STOPPED)
        if self.reaction is Reaction.RAISE:
            self.raised.set()
            raise Signalled(self.received)

    def _hear_at_once(self) -> None:
        reading, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)  # a handler must not wait
        signal.set_wakeup_fd(self.pipe, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._hear, args=(reading,), daemon=True)
        self.thread.start()

    def _hear(self, reading: int) -> None:
        """In a thread: read the number of each signal as it comes, until the pipe is closed."""
        is_first = True
        with open(reading, "rb", buffering=0) as pipe:
            for (number,) in iter(lambda: pipe.read(1), b""):
                if number in SIGNALS:
                    self._heard(signal.Signals(number), is_first)
                    is_first = False

    def _heard(self, number: signal.Signals, is_first: bool) -> None:
        if number != signal.SIGINT or self.reaction is Reaction.LEAVE:
            return
        if not is_first:
            self._leave_at_once()
        # What is raised ends the command with a line of its own, unless one long call holds it up.
        if (self.reaction is Reaction.RAISE or self.raised.is_set()) and self.raised.wait(SOON):
            return
        what = "stopping after this step" if self.reaction is Reaction.REMEMBER else "stopping"
        say_at_once(f"{what}; Ctrl-C again stops now")

    def _leave_at_once(self) -> None:
        for call in self.at_once:
            with contextlib.suppress(Exception):
                call()
        with contextlib.suppress(OSError):
            if os.isatty(1):
                os.write(1, b"\x1b[?25h")  # the cursor, which a progress bar has hidden
        os._exit(AT_ONCE)


def answered() -> list[signal.Signals]:
    """:data:`SIGNALS`; without SIGHUP if it is ignored, as nohup does for commands that are to
    outlive their terminal.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [n for n in SIGNALS if n != signal.SIGHUP or not ignored]


def say_at_once(line: str) -> None:
    """A line of its own on standard error, past all buffers and locks; lost where that fails."""
    with contextlib.suppress(OSError):
        break_off = "\n" if os.isatty(2) else ""  # a progress bar
        os.write(2, f"{break_off}{line}\n".encode())


listener = Listener()
# A forked child must not write into our pipe: one Ctrl-C would be heard twice.
os.register_at_fork(after_in_child=lambda: listener.pipe is None or signal.set_wakeup_fd(-1))


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """For a whole command: a signal raises :class:`Signalled`, until :func:`remember` is called."""
    listener.listen()
    listener.reaction = Reaction.RAISE
    try:
        yield
    finally:
        remember()  # the process is about to end by itself


@contextlib.contextmanager
def unswallowed() -> Iterator[None]:
    """An error that follows a signal becomes :class:`Signalled`, until :func:`remember` is called.

    Code in the middle of an import may catch :class:`Signalled` and leave half a module behind,
    which then fails in another way.
    """
    try:
        yield
    except Exception as error:
        if listener.received is not None and listener.reaction is Reaction.RAISE:
            raise Signalled(listener.received) from error
        raise


def remember() -> None:
    """From here to the end of the command a signal interrupts nothing."""
    listener.reaction = Reaction.REMEMBER


def ignore() -> None:
    """At the very end of a process, when Python restores the system's handlers: the work is done,
    and a signal must not change the exit status any more.
    """
    for number in listener.before:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def remembered() -> Iterator[Listener]:
    """For the loop: a signal is in ``received`` of what this yields, and interrupts nothing.

    In a command it stays so to the end: what follows training is short and must be whole.
    """
    of_a_command = bool(listener.before)
    remember()
    listener.listen()
    try:
        yield listener
    finally:
        if not of_a_command:
            listener.stop_listening()
