"""The first signal ends a command in good order, a second Ctrl-C at once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.signals import (
    SIGNALS,
    Signalled,
    delayed,
    listener,
    raised,
    remembered,
    unswallowed,
)
from tests.command_line import here, summary
from tests.conftest import HANGS, ROOT, TINY_RUN

WAITING = """
import time
from llm.signals import remembered
with remembered() as stop:
    print("ready", flush=True)
    while stop.received is None:
        time.sleep(0.01)
    print(stop.received.name, flush=True)
    time.sleep(30)
"""


COMPUTING = """
import hashlib
import llm.start
from llm.signals import remembered
with remembered():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # one call of C, for half an hour
"""


@pytest.fixture(autouse=True)
def previous_handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    listener.stop_listening()
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_loop_a_signal_is_only_recorded(number: signal.Signals) -> None:
    with remembered() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_loop_a_signal_raises(number: signal.Signals) -> None:
    with pytest.raises(Signalled, match=number.name), raised():
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was ignored")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_of_an_import_and_then_raises(number: signal.Signals) -> None:
    imported = False
    with pytest.raises(Signalled, match=number.name), raised():
        with delayed():
            os.kill(os.getpid(), number)
            imported = True
        raise AssertionError("the signal was ignored")
    assert imported


def test_after_the_loop_of_a_command_a_signal_is_only_recorded() -> None:
    with raised():
        with remembered():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert listener.received is signal.SIGTERM


def test_a_signal_whose_exception_was_swallowed_is_recorded_for_the_loop() -> None:
    with raised():
        with contextlib.suppress(BaseException):  # as a destructor does
            os.kill(os.getpid(), signal.SIGTERM)
        with remembered() as stop:
            assert stop.received is signal.SIGTERM


def test_a_signal_in_a_destructor_raises_a_moment_later() -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGHUP)  # an exception here would be printed and ignored

    with pytest.raises(Signalled, match="SIGHUP"), raised():
        one = Dying()
        del one
        time.sleep(HANGS)


def test_an_error_after_a_swallowed_signal_becomes_the_signal() -> None:
    with pytest.raises(Signalled, match="SIGTERM"), raised(), unswallowed():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        raise RecursionError("half a module")


def test_an_error_without_a_signal_or_in_the_loop_stays_an_error() -> None:
    with pytest.raises(RecursionError), raised(), unswallowed():
        raise RecursionError("a whole module")
    with pytest.raises(RecursionError), raised(), unswallowed(), remembered():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RecursionError("in the loop")


@pytest.mark.parametrize(
    "place",
    [
        "llm.config.arguments.for_hydra",
        "llm.recipe.select_device",
        "llm.recipe.show_start",
    ],
)
def test_a_command_that_fails_after_a_swallowed_signal_ends_as_stopped(
    place: str, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_imported(*_: object, **__: object) -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(place, half_imported)
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    done = here("train", *data, *TINY_RUN, "run.name=a", cwd=tmp_path)
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("\n") == 1
    assert "SIGTERM" in done.stderr and f"to continue: python {ROOT}/run_train.py" in done.stderr
    run = tmp_path / "outputs" / "a"
    assert run.exists() is (place == "llm.recipe.show_start")
    if run.exists():
        assert summary(run)["status"] == "interrupted"


def test_a_signal_ends_an_iteration_before_the_next_item() -> None:
    seen = []
    with remembered() as stop, pytest.raises(Signalled):
        for item in stop.each(range(5)):
            seen.append(item)
            if item == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == [0, 1, 2]
    listener.stop_listening()
    with remembered() as stop:  # a signal with the last item
        assert [os.kill(os.getpid(), signal.SIGTERM) or item for item in stop.each([7])] == [7]


def test_a_second_sigterm_changes_nothing() -> None:
    with remembered() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_handlers_are_restored_after_a_loop_outside_a_command() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="inside"), remembered():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise ValueError("inside")
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert listener.received is None


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
        assert process.wait(timeout=HANGS) == 130


def test_ctrl_c_is_answered_and_a_second_one_ends_the_process_inside_one_long_call() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMPUTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT,
    )  # fmt: skip
    never_longer = threading.Timer(60, process.kill)
    never_longer.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        line = process.stderr.readline()
        assert line == "stopping after this step; Ctrl-C again stops now\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    finally:
        never_longer.cancel()
        process.kill()
        process.communicate()


def test_a_closed_terminal_is_a_signal_except_under_nohup() -> None:
    with remembered() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is signal.SIGHUP
    listener.stop_listening()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with remembered() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_a_forked_process_does_not_reach_its_parent() -> None:
    code = """
import os, signal, sys, time
import llm.start
from llm.signals import listener, raised
with raised():
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGINT, lambda *_: os._exit(7))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert listener.received is None
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, timeout=HANGS
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_signal_at_the_very_end_keeps_the_exit_status() -> None:
    ending = "import llm.start, os\nclass Late:\n def __del__(self): os.kill(os.getpid(), 2)\n"
    done = subprocess.run([sys.executable, "-c", f"{ending}sys = Late()"], cwd=ROOT, timeout=HANGS)
    assert done.returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_imports_ends_the_process_at_once(
    number: signal.Signals,
) -> None:
    loading = f"import llm.start, os; os.kill(os.getpid(), {int(number)}); print('went on')"
    done = subprocess.run(
        [sys.executable, "-c", loading], capture_output=True, text=True, cwd=ROOT, timeout=HANGS
    )
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == f"stopped by {number.name} before anything was started\n"
