"""Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal: the first signal ends a command in good order
with status 75; a second Ctrl-C ends it at once with 130.

What the first signal does depends on what could be lost. While modules are imported, it ends the
process. Until training starts, it raises :class:`Signalled`, so that ``finally`` blocks clean up.
From then on it is only recorded, and the loop checks for it between steps.

Python calls a handler only between two of its own instructions, and one call of torch may take
minutes. So Python also writes each signal to a pipe (``signal.set_wakeup_fd``), which a thread
reads: it answers Ctrl-C while the main thread is busy, and ends the process at the second one.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from types import FrameType
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPED, AT_ONCE = 75, 130  # exit statuses
END = b"\0"  # in the pipe: no signal has this number
SOON = 0.3  # seconds: unless it is busy in one long call, Python has called the handler by then
T = TypeVar("T")


class Signalled(BaseException):
    """A signal asks this process to end.

    Not an ``Exception``: ``except Exception`` in a library would swallow it.
    """

    exit_status = STOPPED

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)


class Reaction(Enum):
    """What the first signal does."""

    EXIT = auto()
    RAISE = auto()
    DELAY = auto()  # raise at the end of :func:`delayed`
    RECORD = auto()


class Listener:
    """The signal handlers of this process; :data:`listener` is the only one."""

    def __init__(self) -> None:
        self.previous: dict[signal.Signals, Any] = {}  # handlers; empty: not listening
        # Called when a second Ctrl-C ends the process
        self.at_once: list[Callable[[], object]] = []
        # Called with the exit status and the reason when a signal ends the process at once
        self.last_words: Callable[[int, str], object] | None = None
        # Called by Ctrl-C, which then does nothing else
        self.on_ctrl_c: Callable[[], object] | None = None
        self.is_read = threading.Event()  # set once the thread has read all bytes of the pipe
        self.is_guest = False  # whether the process is a user's program, which must not end
        self._reset()

    def _reset(self) -> None:
        self.received: signal.Signals | None = None
        self.reaction = Reaction.EXIT
        self.is_answered = False  # whether a line has said that Ctrl-C was received

    def listen(self) -> None:
        """Install the handlers, unless they are installed already.

        SIGHUP stays ignored if it is, as under nohup. Only the main thread can have handlers.
        """
        if self.previous or threading.current_thread() is not threading.main_thread():
            return
        reading, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)  # Python must not wait to write a signal
        self.wakeup = signal.set_wakeup_fd(self.pipe, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._read_pipe, args=(reading,), daemon=True)
        self.thread.start()
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self.previous = {n: signal.signal(n, self._handle) for n in SIGNALS if n not in ignored}

    def stop_listening(self) -> None:
        """Restore the previous handlers and forget the received signal."""
        if self.previous:
            for number, handler in self.previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self.previous = {}
            signal.set_wakeup_fd(self.wakeup)
            os.close(self.pipe)  # ends the thread
            self.thread.join()
        self._reset()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``; raises :class:`Signalled` instead of the next one after a signal."""
        for item in items:
            if self.received is not None:
                raise Signalled(self.received)
            yield item

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.on_ctrl_c is not None:
            self.on_ctrl_c()
            return
        if frame is not None and frame.f_code.co_name == "__del__":
            # Python ignores what is raised there, so the signal comes again a moment later.
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
            return
        if self.received is not None:
            if number == signal.SIGINT and self.is_guest:
                raise KeyboardInterrupt
            if number == signal.SIGINT:
                self._exit_at_once()
            if self.reaction is Reaction.RAISE:  # some library has swallowed the first exception
                raise Signalled(self.received)
            return
        self.received = signal.Signals(number)
        if self.reaction is Reaction.EXIT:
            reason = f"stopped by {self.received.name} before anything was started"
            print_at_once(reason)
            self._end(STOPPED, reason)
        if self.reaction is Reaction.RAISE:
            self.is_answered = True  # by the last line of the command
            raise Signalled(self.received)
        if number == signal.SIGINT:
            self._answer()

    def _read_pipe(self, reading: int) -> None:
        """In a thread: react to Ctrl-C for the main thread, until the pipe is closed."""
        is_first = True
        with open(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number == END:
                    self.is_read.set()
                is_answered = number[0] == signal.SIGINT and self.on_ctrl_c is not None
                if number[0] not in SIGNALS or is_answered:
                    continue
                if number[0] == signal.SIGINT and self.reaction is not Reaction.EXIT:
                    if not is_first and not self.is_guest:
                        self._exit_at_once()
                    time.sleep(SOON)
                    self._answer()
                is_first = False

    def _answer(self) -> None:
        if not self.is_answered:
            self.is_answered = True
            when = " after this step" if self.reaction is Reaction.RECORD else ""
            print_at_once(f"stopping{when}; Ctrl-C again stops now")

    def _exit_at_once(self) -> None:
        for call in self.at_once:
            with contextlib.suppress(Exception):
                call()
        with contextlib.suppress(OSError):
            if os.isatty(1):
                # Show the cursor, which a progress bar hides, and leave the bar's line.
                os.write(1, b"\x1b[?25h\n")
        self._end(AT_ONCE, "a second Ctrl-C ended it at once")

    def _end(self, status: int, reason: str) -> None:
        with contextlib.suppress(Exception):
            if self.last_words is not None:
                self.last_words(status, reason)
        os._exit(status)


def print_at_once(line: str) -> None:
    """Print a line on standard error without Python's buffers and locks."""
    with contextlib.suppress(OSError):
        newline = "\n" if os.isatty(2) else ""  # ends the line of a progress bar
        os.write(2, f"{newline}{line}\n".encode())


listener = Listener()
# A forked child must not write to the pipe of its parent: one Ctrl-C would count twice.
os.register_at_fork(after_in_child=lambda: listener.previous and signal.set_wakeup_fd(-1))


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While inside, a signal raises :class:`Signalled`, until :func:`remember` is called."""
    listener.listen()
    listener.reaction = Reaction.RAISE
    try:
        yield
    finally:
        remember()  # the process is about to end anyway


@contextlib.contextmanager
def ctrl_c_calls(call: Callable[[], object]) -> Iterator[None]:
    """While inside, Ctrl-C calls ``call``, which may raise an exception, and does nothing else."""
    listener.on_ctrl_c = call
    try:
        yield
    finally:
        if listener.previous:  # else the thread would take the last Ctrl-C for a later one
            listener.is_read.clear()
            os.write(listener.pipe, END)
            listener.is_read.wait(SOON)
        listener.on_ctrl_c = None


@contextlib.contextmanager
def as_guest() -> Iterator[None]:
    """For a call from a user's program, whose handlers are restored at the end.

    While inside, the first signal acts as in a command. A second Ctrl-C raises
    ``KeyboardInterrupt`` instead of ending the process.
    """
    if listener.previous or threading.current_thread() is not threading.main_thread():
        yield  # a command listens already; in another thread, Python allows no handlers
        return
    listener.is_guest = True
    try:
        with raised(), unswallowed():
            yield
    finally:
        listener.stop_listening()
        listener.is_guest = False


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """While torch is imported inside, a signal waits; then it raises :class:`Signalled`.

    An exception inside the C++ code of an import would abort the process.
    """
    reaction = listener.reaction
    if reaction is Reaction.RAISE:
        listener.reaction = Reaction.DELAY
    try:
        yield
    finally:
        listener.reaction = reaction
    if reaction is Reaction.RAISE and listener.received is not None:
        raise Signalled(listener.received)


@contextlib.contextmanager
def unswallowed() -> Iterator[None]:
    """Turn an error after a signal into :class:`Signalled`, until :func:`remember` is called.

    An import that swallows :class:`Signalled` leaves a half-imported module, which causes other
    errors later.
    """
    try:
        yield
    except Exception as error:
        if listener.received is not None and listener.reaction is Reaction.RAISE:
            raise Signalled(listener.received) from error
        raise


@contextlib.contextmanager
def said_at_once(line: str) -> Iterator[None]:
    """While inside, a second Ctrl-C prints ``line`` before it ends the process."""

    def say() -> None:
        print_at_once(line)

    listener.at_once.append(say)
    try:
        yield
    finally:
        listener.at_once.remove(say)


def remember() -> None:
    """From now on signals are only recorded."""
    listener.reaction = Reaction.RECORD


def ignore() -> None:
    """Called at exit: a signal must not change the exit status any more."""
    for number in listener.previous:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def remembered() -> Iterator[Listener]:
    """Around the loop: a signal is only recorded, as ``received`` of the yielded listener.

    In a command this stays so after the loop: the work after training is short and must finish.
    """
    is_in_command = bool(listener.previous)
    remember()
    listener.listen()
    try:
        yield listener
    finally:
        if not is_in_command:
            listener.stop_listening()
