"""A run that is killed 50 times at random moments ends with the bits of an unbroken run."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import find_checkpoint
from llm.checkpoint.folder import newest_valid
from tests.command_line import here, listing, rows, summary
from tests.conftest import TINY_RUN

SEEDS, KILLS, STEPS, EVERY = 5, 50, 240, 3
OPTIONS = [
    *TINY_RUN, "model.dropout=0.1", f"trainer.max_steps={STEPS}",
    f"trainer.checkpoint_interval={EVERY}", "trainer.eval_interval=4", "trainer.eval_batches=1",
    "trainer.sample_interval=80",
]  # fmt: skip
PHASES = ("start", "training", "end", "finished")
OF_TIME = {"train_seconds", "tokens_per_second", "mfu", "peak_memory_bytes"}


@pytest.mark.crash
def test_fifty_kills_at_random_moments_change_no_bit_of_what_a_run_ends_with(
    tmp_path: Path, text_file: Path, report: Callable[[str], None]
) -> None:
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", f"data.dir={tmp_path}"]
    assert here("prepare", *data, cwd=tmp_path).returncode == 0
    runs = [(seed, tmp_path / str(seed), data) for seed in range(SEEDS)]
    # Fresh processes, which have no threads: a fork copies only the one that calls it.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ends = pool.starmap(end_after_kills, runs, chunksize=1)
    kills = {phase: sum(end.at[phase] for end in ends) for phase in PHASES}
    same = sum(end.is_the_same for end in ends)
    told = sum(kills.values()), sum(end.resumed for end in ends), same
    report(f"crash: kills={told[0]} resumed={told[1]} bitwise_equal={told[2]}/{SEEDS}")
    report("crash: kills " + ", ".join(f"{phase}={n}" for phase, n in kills.items()))
    assert told == (KILLS * SEEDS, KILLS * SEEDS, SEEDS)
    assert kills["training"] > told[0] / 2 and kills["start"] > 10 and kills["end"] > 5
    assert len({end.weights for end in ends}) == SEEDS, "each seed gives weights of its own"


@dataclass
class End:
    """The result of one run and its kills."""

    weights: str
    is_the_same: bool  # as the end of a run without kills
    resumed: int  # kills after which the next start was not refused
    at: dict[str, int]  # kills in each phase


def end_after_kills(seed: int, cwd: Path, data: list[str]) -> End:
    """Kill a run at random moments, and compare its end with that of an unbroken run."""
    torch.set_num_threads(1)
    cwd.mkdir()
    command = [*data, *OPTIONS, f"seed={seed}"]
    # Import all that a command imports later, once for all forks of this process.
    assert here("train", *command, "trainer.max_steps=1", cwd=cwd).returncode == 0
    whole, run = cwd / "outputs/whole", cwd / "outputs/run"
    times = time_of_phases([*command, "run.name=whole"], whole, cwd)
    rng, step, at, resumed = random.Random(seed), 0, dict.fromkeys(PHASES, 0), 0
    while (kills := sum(at.values())) < KILLS:
        phase = "start" if rng.random() < 0.25 else "training" if kills < KILLS - 8 else "end"
        if (run / "summary.json").exists():
            phase = "finished"
        after, seconds = moment(phase, last_step(run), times)
        child = start([*command, "run.name=run"], cwd)
        ended = wait(child, lambda after=after: last_step(run) > after)
        if ended is None:
            end = time.monotonic() + rng.uniform(0, seconds)
            ended = wait(child, lambda end=end: time.monotonic() > end)
        resumed = kills  # this start was not refused
        if ended is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            at[phase] += 1
        step = valid_step(run, step)
    assert wait(start([*command, "run.name=run"], cwd), lambda: False) == 0
    resumed += 1
    weights = Checkpoint.open(run / "checkpoints/last").files["model.safetensors"]
    return End(weights, ending(run) == ending(whole), resumed, at)


def moment(phase: str, seen: int, times: dict[str, float]) -> tuple[int, float]:
    """The row of metrics after which a kill comes, and within how many seconds after it."""
    last = STEPS - EVERY
    if phase == "training":
        return seen, times[phase]
    if phase == "end":  # if the row is there already, the next start writes it again
        return last, times["end"] + (times["start"] if seen > last else 0)
    return -1, times["start"]


def time_of_phases(command: list[str], run: Path, cwd: Path) -> dict[str, float]:
    """Seconds that a run takes until its first step, for a few steps, and for its end."""
    begin, child, moments = time.monotonic(), start(command, cwd), []
    for step in (1, STEPS - EVERY):
        assert wait(child, lambda step=step: last_step(run) > step) is None
        moments.append(time.monotonic())
    assert wait(child, lambda: False) == 0
    first, last, end = *moments, time.monotonic()
    return {"start": first - begin, "training": 5 * (last - first) / STEPS, "end": end - last}


def start(command: list[str], cwd: Path) -> int:
    """The id of a fork of this process that runs the command."""
    end = time.monotonic() + 30  # a thread of the command before may still be ending
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    tasks = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    assert len(tasks) == 1, f"a fork would lose threads: {tasks}, {threading.enumerate()}"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            done = here("train", *command, cwd=cwd)
            status = done.returncode
            os.write(2, done.stderr.encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait(child: int, until: Callable[[], bool]) -> int | None:
    """None once ``until`` is true; the exit status, 0, if the process has ended before."""
    while not until():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "a start was refused, or failed"
            return status
        time.sleep(0.005)
    return None


def last_step(run: Path) -> int:
    """The step of the last whole line of ``metrics.jsonl``; 0 without one."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0


def valid_step(run: Path, before: int) -> int:
    """The step to continue from; asserts that it is intact and not before ``before``."""
    newest, skipped = newest_valid(run)
    step = newest.step if newest else 0
    assert step >= before and not skipped
    if step > EVERY:  # a kill may come before "last" is a link to the first checkpoint
        Checkpoint.open(find_checkpoint("ckpt", str(run))).verify()
    return step


def ending(run: Path) -> dict[str, Any]:
    """Everything that a run writes, except for times."""
    found: dict[str, Any] = {"names": listing(run)}
    for kind in ("last", "best"):
        checkpoint = Checkpoint.open(run / "checkpoints" / kind)
        checkpoint.verify()
        progress = checkpoint.state["progress"]
        progress["row"] = {k: v for k, v in (progress["row"] or {}).items() if k not in OF_TIME}
        found[kind] = {
            "files": checkpoint.files,  # their digests: weights, optimizer and random state
            "step": checkpoint.step,
            "progress": {
                key: value for key, value in progress.items() if not key.endswith("seconds")
            },
        }
    metrics = rows(run)
    assert [row["step"] for row in metrics] == list(range(STEPS + 1))
    found["metrics"] = [{k: v for k, v in row.items() if k not in OF_TIME} for row in metrics]
    found["samples"] = (run / "samples.jsonl").read_text(encoding="utf-8")
    keys = ("status", "reason", "step", "tokens", "best_val_loss", "val_loss", "config_digest")
    found["summary"] = {key: summary(run)[key] for key in keys}
    assert found["summary"]["status"] == "finished"
    return found
