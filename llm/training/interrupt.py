"""Ctrl-C and termination: the first signal ends a run after its step, a second Ctrl-C at once."""

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, remembers a signal in ``received`` instead of dying of it."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # Only a flag is set here: work inside a handler may meet the interpreter in any state.
        if self.received is not None and number == signal.SIGINT:
            os._exit(130)
        self.received = signal.Signals(number)
