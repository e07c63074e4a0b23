"""Ctrl-C, termination and SIGUSR1: the first signal ends a command in good order with status 75, a
second Ctrl-C at once with 130.

How depends on what there is to lose. While modules are imported: nothing, so the process ends on
the spot. Until training begins: what is half done is undone by an exception, :class:`Signalled`.
From then on a signal is only remembered, and the loop looks after each step, and between the
batches of an evaluation; work inside a handler may meet the interpreter in any state.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from types import FrameType
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED, AT_ONCE = 75, 130  # exit statuses
T = TypeVar("T")


class Signalled(BaseException):
    """A signal asks this process to end. No ``Exception``, or libraries would take it for a fault
    and go on.
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
        self.before: dict[signal.Signals, Any] = {}  # handlers; empty: it does not listen
        self.stop_listening()

    def listen(self) -> None:
        """Take over from the handlers that there are."""
        self.before = self.before or {n: signal.signal(n, self._answer) for n in SIGNALS}

    def stop_listening(self) -> None:
        """Give the handlers back and forget what was received."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
        self.received: signal.Signals | None = None
        self.reaction = Reaction.LEAVE

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
                os._exit(AT_ONCE)
            if self.reaction is Reaction.RAISE:  # somebody swallowed the first
                raise Signalled(self.received)
            return
        self.received = signal.Signals(number)
        if self.reaction is Reaction.LEAVE:
            os.write(2, f"stopped by {self.received.name}, nothing was begun\n".encode())
            os._exit(STOPPED)
        if self.reaction is Reaction.RAISE:
            raise Signalled(self.received)


listener = Listener()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """For a whole command: a signal raises :class:`Signalled`, until it is to be remembered."""
    listener.listen()
    listener.reaction = Reaction.RAISE
    try:
        yield
    finally:
        remember()  # the process is about to end by itself


@contextlib.contextmanager
def unswallowed() -> Iterator[None]:
    """Until a signal is to be remembered: what fails after one has come fails because of it.

    Code in the middle of an import may catch :class:`Signalled`, and leave half a module behind.
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
    """For the last moment of a process, in which Python gives its handlers back: its work is done,
    and its exit status should say so.
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
