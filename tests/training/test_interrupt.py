"""The first signal is remembered, the second Ctrl-C obeyed at once."""

import os
import signal
import subprocess
import sys

import pytest

from llm.training.interrupt import SIGNALS, StopRequest
from tests.conftest import ROOT

WAITING = """
import time
from llm.training.interrupt import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.received is None:
        time.sleep(0.01)
    print(stop.received.name, flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_the_work_goes_on(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number


def test_terminating_twice_does_not_hurry() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_handlers_are_those_of_before_again_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="inside"), StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise ValueError("inside")
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_first_signal_ends_the_process_with_130(first: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == f"{first.name}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
