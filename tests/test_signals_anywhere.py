"""Real commands get a signal at any moment: status 75, and the same bits in the end."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llm.checkpoint.folder import newest_valid
from llm.signals import SIGNALS
from tests.command_line import rows, wait_until
from tests.conftest import HANGS, PLAY, ROOT, TINY_RUN, needs_linux

pytestmark = [needs_linux, pytest.mark.slow]
# Evaluations, samples and saves take much of the time, so that signals hit all of them.
OPTIONS = [
    *TINY_RUN, "model.dropout=0.1", "trainer.max_steps=40", "trainer.eval_interval=10",
    "trainer.eval_batches=9", "trainer.sample_interval=15", "trainer.checkpoint_interval=4",
    "run.name=run",
]  # fmt: skip
TIMES = {"train_seconds", "tokens_per_second", "mfu", "peak_memory_bytes"}


class Attempt:
    """A command in a folder of its own."""

    def __init__(self, cwd: Path, *options: str) -> None:
        self.cwd, self.command = cwd, [sys.executable, str(ROOT / "run_train.py"), *options]
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        cwd.mkdir()

    @property
    def run(self) -> Path:
        return self.cwd / "outputs" / "run"

    def start(self) -> subprocess.Popen[str]:
        """Start the command and wait until it handles signals."""
        process = subprocess.Popen(
            self.command, cwd=self.cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self.environment,
        )  # fmt: skip
        while process.poll() is None and not answers(process.pid):
            time.sleep(0.002)
        return process

    def finish(self) -> None:
        """Run the same command to its end."""
        process = self.start()
        output, _ = process.communicate(timeout=HANGS)
        assert process.returncode == 0, output

    def signals_itself(self, function: str, number: signal.Signals) -> int:
        """Its exit status if it sends itself a signal at each call of ``function``."""
        arguments = ["-c", SIGNALS_ITSELF, function, str(int(number)), *self.command[1:]]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.cwd, text=True, capture_output=True,
            env=self.environment, timeout=HANGS,
        )  # fmt: skip
        assert f"{number.name}" in done.stderr.splitlines()[-1], done.stderr
        return done.returncode

    def stop(self, when: Callable[[], bool], number: signal.Signals) -> int:
        """Its exit status if it gets a signal once ``when`` is true."""
        process = self.start()
        while not when() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        output, _ = process.communicate(timeout=HANGS)
        assert process.returncode in (0, 75), output
        assert "Traceback" not in output, output
        if process.returncode == 75:
            assert f"{number.name}" in output.splitlines()[-1], output
        return process.returncode


def answers(pid: int) -> bool:
    """Whether a process has a handler for SIGUSR1, by the SigCgt line of Linux."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def result(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """Weights, optimizer and random state at the end, and the rows without times."""
    checkpoint, skipped = newest_valid(run)
    assert checkpoint is not None and not skipped
    without_times = [{key: v for key, v in row.items() if key not in TIMES} for row in rows(run)]
    return checkpoint.weights() | checkpoint.training(), without_times


def differences(run: Path, whole: Path) -> list[str]:
    """The names of tensors and files that differ in any bit."""
    (found, found_rows), (wanted, wanted_rows) = result(run), result(whole)
    assert found.keys() == wanted.keys()
    names = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    return names + ["metrics.jsonl"] * (found_rows != wanted_rows)


def test_a_run_stopped_at_any_moment_is_resumed_to_the_same_bits(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    text = tmp_path / "play.txt"
    text.write_text(PLAY, encoding="utf-8")
    options = ["data=text", f"data.path={text}", "data.tokenizer=char", *OPTIONS]
    whole = Attempt(tmp_path / "whole", *options)
    start = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - start
    draw = random.Random(5)

    def moment(number: int) -> tuple[int, list[str]]:
        attempt = Attempt(tmp_path / f"run-{number}", *options)
        later = draw.uniform(0, 1.4 * seconds)  # two at a time are slower
        end = time.monotonic() + later * (number > 0)  # the first one always comes in time
        status = attempt.stop(lambda: time.monotonic() > end, SIGNALS[number % len(SIGNALS)])
        attempt.finish()
        return status, differences(attempt.run, whole.run)

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(moment, range(20)))
    stopped = sum(status == 75 for status, _ in ends)
    same = sum(different == [] for _, different in ends)
    report(f"signals: n={len(ends)} stopped={stopped} bitwise_equal={same}")
    assert stopped  # how many depends on the machine
    assert [different for _, different in ends if different] == []


# The function that sends the signal when it is called, so that no test waits for a moment.
PLACES = {
    "preparing": ("llm.data.writing:TokenWriter.write", []),
    "evaluating": ("llm.data.dataset:Dataset.validation", []),
    "saving": ("llm.checkpoint.folder:CheckpointFolder.save", []),
    "compiling": ("torch._inductor.compile_fx:compile_fx", ["trainer.compile=true"]),
}
SIGNALS_ITSELF = """
import os, pkgutil, runpy, signal, sys
import llm.start
def called(*given, **named):
    os.kill(os.getpid(), int(number))
    return function(*given, **named)
_, place, number, *sys.argv = sys.argv
owner, _, name = place.rpartition(".") if "." in place.partition(":")[2] else place.rpartition(":")
owner = pkgutil.resolve_name(owner)
function = getattr(owner, name)
setattr(owner, name, called)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_the_command_while(place: str, tmp_path: Path, text_file: Path) -> None:
    function, options = PLACES[place]
    attempt = Attempt(
        tmp_path / "run", "data=text", f"data.path={text_file}", "data.tokenizer=char", *OPTIONS,
        *options,
    )  # fmt: skip
    assert attempt.signals_itself(function, signal.SIGTERM) == 75
    if place == "preparing":
        assert [path.name for path in (attempt.cwd / "data").glob("*")] == []
    elif place == "compiling":
        assert not (attempt.run / "checkpoints").exists()
    else:
        newest, _ = newest_valid(attempt.run)
        assert newest is not None and newest.step == {"evaluating": 0, "saving": 4}[place]
    attempt.finish()


def test_a_second_ctrl_c_exits_at_once_in_the_middle_of_a_step(
    tmp_path: Path, text_file: Path
) -> None:
    long_steps = ["trainer.batch_size=20000", "trainer.eval_interval=100", "trainer.log_interval=1"]
    attempt = Attempt(
        tmp_path / "run", "data=text", f"data.path={text_file}", "data.tokenizer=char", *OPTIONS,
        *long_steps,
    )  # fmt: skip
    process = attempt.start()
    wait_until(lambda: rows(attempt.run))  # the row of step 0: the first step runs
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert any("Ctrl-C again stops now" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert [row["step"] for row in rows(attempt.run)] == [0], "the step was not waited for"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_sampling(number: signal.Signals, tmp_path: Path, text_file: Path) -> None:
    attempt = Attempt(
        tmp_path / "run", "data=text", f"data.path={text_file}", "data.tokenizer=char", *OPTIONS,
        "trainer.max_steps=1",
    )  # fmt: skip
    attempt.finish()
    attempt.command[1:] = [
        str(ROOT / "run_sample.py"), "ckpt=outputs/run", "max_new_tokens=100",
    ]  # fmt: skip
    assert attempt.signals_itself("llm.sampling.generate:choose", number) == 75


def test_a_signal_during_imports_never_shows_a_traceback(
    tmp_path: Path, text_file: Path, report: Callable[[str], None]
) -> None:
    options = ["data=text", f"data.path={text_file}", "data.tokenizer=char", *OPTIONS]
    options += ["trainer.max_steps=1"]
    start = time.monotonic()
    Attempt(tmp_path / "whole", *options).finish()
    seconds = time.monotonic() - start
    draw = random.Random(6)

    def moment(number: int) -> int:
        attempt = Attempt(tmp_path / f"start-{number}", *options)
        end = time.monotonic() + draw.uniform(0, seconds) * (number > 0)  # the first one at once
        return attempt.stop(lambda: time.monotonic() > end, SIGNALS[number % len(SIGNALS)])

    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(moment, range(40)))
    report(f"signals while starting: n={len(statuses)} status_75={statuses.count(75)}")
    assert statuses.count(75)  # the others had finished
