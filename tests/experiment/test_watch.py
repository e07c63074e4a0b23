"""The state and the numbers of a job, read from the files of its run, and the time left."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.experiment.rundir import LONGEST_ROW, METRICS, SUMMARY, cut_metrics, write_summary
from llm.experiment.tail import Metrics
from llm.experiment.watch import Forecast, Rates, Watched, estimate, rates_of, sweep_seconds_left
from llm.lock import LOCK, locked

FORECAST = Forecast(
    parameters=1000, max_steps=100, tokens=10_000, minutes=None, flops_per_token=6e3, peak=2**30,
    budget=2**32, fits=True,
)  # fmt: skip


def row(step: int, **values: Any) -> str:
    numbers = {"train/loss": 5 - step / 100, "tokens_per_second": 50.0, "peak_memory_bytes": 2**20}
    return json.dumps({"step": step, "tokens": 100 * step} | numbers | values) + "\n"


def watched(folder: Path, forecast: Forecast | None = FORECAST, will_run: bool = True) -> Watched:
    folder.mkdir(exist_ok=True)
    return Watched(folder, {"seed": "1"}, forecast, will_run)


def state(job: Watched) -> str:
    job.refresh()
    return job.state


def rewrite(folder: Path, **values: Any) -> None:
    """Write a summary whose time differs from the one before, as after some seconds."""
    write_summary(folder, **values)
    later = time.time_ns() + 10**9
    os.utime(folder / SUMMARY, ns=(later, later))


def test_a_job_waits_starts_runs_and_ends(tmp_path: Path) -> None:
    job = watched(tmp_path / "job")
    assert state(job) == "waiting"
    job.started()
    assert state(job) == "starting"
    with locked(job.folder):
        assert state(job) == "running"
        (job.folder / METRICS).write_text(row(1) + row(2, **{"val/loss": 4.5}))
        job.refresh()
        assert (job.number("step"), job.loss, job.best) == (2, 4.98, 4.5)
        write_summary(job.folder, status="finished", step=100, best_val_loss=4.25, wall_seconds=9.0)
        assert state(job) == "finished"
    assert (job.number("step"), job.best, job.seconds) == (100, 4.25, 9)
    assert job.has_ended and job.is_finished


@pytest.mark.parametrize("status", ["interrupted", "killed", "diverged", "out_of_memory", "failed"])
def test_the_end_of_an_earlier_command_does_not_count(tmp_path: Path, status: str) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / METRICS).write_text(row(7))
    write_summary(folder, status=status, reason="earlier", step=7)
    (folder / LOCK).write_text("1\n")  # left by a run that was killed
    job = watched(folder)
    assert state(job) == "waiting" and not job.has_ended
    assert job.number("step") == 7  # it continues there
    (folder / LOCK).unlink()
    with locked(folder):
        assert state(job) == "running"
        (folder / SUMMARY).unlink()  # as a run does when it starts
        assert state(job) == "running"
        rewrite(folder, status=status, reason="now", step=8)
    assert state(job) == status
    assert job.reason == "now"
    not_run_again = watched(folder, will_run=False)
    assert state(not_run_again) == status


def test_a_job_that_had_finished_before_is_skipped(tmp_path: Path) -> None:
    job = watched(tmp_path / "job", will_run=False)
    write_summary(job.folder, status="finished", step=5, best_val_loss=1.5, parameters=7)
    assert state(job) == "skipped"
    assert job.is_finished and (job.best, job.number("parameters")) == (1.5, 7)


def test_a_launcher_may_say_how_a_job_ended_that_left_no_summary(tmp_path: Path) -> None:
    job = watched(tmp_path / "job")
    job.started()
    job.ended("killed", "killed by SIGKILL")
    assert (state(job), job.reason) == ("killed", "killed by SIGKILL")
    write_summary(job.folder, status="diverged", reason="the loss is nan")
    assert (state(job), job.reason) == ("diverged", "the loss is nan")  # the run knows better
    again = watched(job.folder)
    again.ended()  # the launcher started it, and there was nothing left to do
    assert state(again) == "diverged"
    refused = watched(job.folder)
    refused.ended("refused", "exit status 2")
    assert (state(refused), refused.reason) == ("refused", "exit status 2")


def test_a_job_that_starts_a_second_time_runs_again(tmp_path: Path) -> None:
    job = watched(tmp_path / "job")
    write_summary(job.folder, status="killed", reason="the worker died")
    assert state(job) == "killed"
    (job.folder / SUMMARY).unlink()
    with locked(job.folder):
        assert state(job) == "running" and job.reason == ""


def test_the_numbers_of_a_killed_job_come_from_its_rows(tmp_path: Path) -> None:
    job = watched(tmp_path / "job")
    (job.folder / METRICS).write_text(row(3, **{"val/loss": 4.0, "val/bits_per_byte": 2.0}))
    write_summary(job.folder, status="killed", reason="killed by SIGKILL", wall_seconds=3.0)
    assert state(job) == "killed"
    keys = ("step", "tokens", "best_val_loss", "val_loss", "bits_per_byte", "peak_memory_bytes")
    assert [job.number(key) for key in keys] == [3, 300, 4, 4, 2, 2**20]
    assert (job.number("parameters"), job.number("predicted_memory_bytes")) == (1000, 2**30)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"finished"', '{"status": 3}', '{"status": "x"}', "\x00" * 99, "{" * 999],
)
def test_a_damaged_summary_is_no_end(tmp_path: Path, text: str) -> None:
    job = watched(tmp_path / "job")
    (job.folder / SUMMARY).write_text(text)
    assert state(job) == "waiting"
    write_summary(job.folder, status="finished", step="many", best_val_loss=float("inf"))
    assert state(job) == "waiting"  # infinity is not JSON
    rewrite(job.folder, status="finished", step="many", best_val_loss=True)
    assert state(job) == "finished"
    assert (job.number("step"), job.best) == (None, None)


def test_a_folder_that_is_deleted_or_replaced_is_survived(tmp_path: Path) -> None:
    job = watched(tmp_path / "job")
    (job.folder / METRICS).write_text(row(1))
    with locked(job.folder):
        assert state(job) == "running"
        (job.folder / METRICS).unlink()
        (job.folder / LOCK).unlink()
        job.folder.rmdir()
        assert state(job) == "waiting" and job.number("step") is None
        job.folder.write_text("a file")
        assert state(job) == "waiting"
        job.folder.unlink()
        job.folder.mkdir()
    (job.folder / SUMMARY).mkdir()
    os.mkfifo(job.folder / METRICS)  # nobody writes to it
    assert state(job) == "waiting"


JUNK = ["\n", "null\n", "[1]\n", '{"step": "a"}\n', '{"step": 1e999}\n', "\x00\xff\n", "{{{\n"]
JUNK += ['{"step": ' + "9" * 400 + "}\n", '{"step": ' + "9" * 5000 + "}\n", "[" * 99999 + "\n"]
LOSSES = st.none() | st.floats(0.5, 9)
ROWS = st.lists(st.builds(lambda loss: {"val/loss": loss}, LOSSES) | st.sampled_from(JUNK))


@given(ROWS, st.lists(st.integers(0, 400)), st.integers(0, 30), st.data())
def test_rows_may_grow_by_any_piece_and_be_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], cuts: list[int], step: int, data: Any
) -> None:
    """After any pieces, cuts and rewrites, the numbers are those of the whole rows of the file."""
    path = tmp_path_factory.mktemp("run") / METRICS
    lines = [one if isinstance(one, str) else row(n, **one) for n, one in enumerate(rows)]
    text = "".join(lines).encode("utf-8")
    seen, done = Metrics(path), 0
    for piece in cuts:
        with path.open("ab") as file:
            file.write(text[done : done + piece])
        done += piece
        seen.refresh()
        assert seen.numbers == reading(path)
        if data.draw(st.integers(0, 4)) == 0:
            cut_metrics(path.parent, step)  # as a run that resumes
            if data.draw(st.booleans()):
                with path.open("a") as file:
                    file.write(row(step + 1, **{"val/loss": 3.0}))
            seen.refresh()
            assert seen.numbers == reading(path)


def reading(path: Path) -> dict[str, float]:
    """The numbers by reading the whole file at once."""
    once = Metrics(path)
    once.refresh()
    return once.numbers


def test_only_new_rows_are_read_and_the_lowest_loss_is_kept(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    seen = Metrics(path)
    path.write_text(row(1, **{"val/loss": 2.0, "peak_memory_bytes": 50}) + '{"step": 2, "val')
    seen.refresh()
    assert seen.numbers["step"] == 1
    with path.open("a") as file:
        file.write('/loss": 3.0, "peak_memory_bytes": 40}\n')
    seen.refresh()
    numbers = seen.numbers
    assert (numbers["step"], numbers["val/loss"], numbers["best_val_loss"]) == (2, 3, 2)
    assert numbers["peak_memory_bytes"] == 50
    path.write_text(row(9))  # another run, as long or longer
    seen.refresh()
    assert "val/loss" not in seen.numbers and seen.numbers["step"] == 9


def test_a_row_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text("7" * (3 * LONGEST_ROW) + "\n" + row(4))
    seen = Metrics(path)
    seen.refresh()
    assert seen.numbers["step"] == 4


# --- the time left ---


def test_speed_is_that_of_the_job_of_nearest_size() -> None:
    rates = Rates([(1e6, 10.0), (1e6, 20.0), (1e9, 100.0)])
    assert [rates.flops_per_second(size) for size in (1.0, 1e7, 1e8, 1e12)] == [15, 15, 100, 100]
    assert Rates().flops_per_second(1e6) is None
    assert Rates([(1e6, 0.0)]).flops_per_second(1e6) is None


def test_the_time_of_a_job_is_its_flops_by_the_speed_and_the_overhead() -> None:
    rates = Rates([(6e3, 6e5)], overhead=5)
    assert rates.seconds(FORECAST) == 100 + 5  # 10,000 tokens at 100 tokens/s
    assert rates.train_seconds(FORECAST, tokens=9_000) == 10
    assert rates.train_seconds(FORECAST, tokens=99_000) == 0
    assert rates.seconds(replace(FORECAST, minutes=1.0)) == 60 + 5
    in_minutes = replace(FORECAST, tokens=None, max_steps=None, minutes=2.0)
    assert Rates().seconds(in_minutes) == 120
    assert Rates().seconds(FORECAST) is None


def test_jobs_take_the_place_of_those_that_end() -> None:
    assert estimate([]) == 0
    assert estimate([3, 1, 2]) == 6
    assert estimate([3, 1, 2], 2) == 3
    assert estimate([1, 1, 1], 2) == 2
    assert estimate([4, 1], 9) == 4
    assert estimate([3, None], 2) is None


@given(st.lists(st.floats(0, 1e6)), st.integers(1, 9))
def test_a_sweep_takes_at_least_its_longest_job_and_a_fair_share(
    seconds: list[float], at_once: int
) -> None:
    total = estimate(seconds, at_once)
    assert total is not None
    longest, share = max(seconds, default=0), sum(seconds) / at_once
    assert max(longest, share) * (1 - 1e-9) <= total <= (share + longest) * (1 + 1e-9)


def test_the_sweep_ends_after_the_jobs_that_run_and_those_that_wait(tmp_path: Path) -> None:
    done, running, waiting, new = (watched(tmp_path / name) for name in ("d", "r", "w", "n"))
    jobs = [done, waiting, running, new]
    assert sweep_seconds_left(jobs, Rates(), 1) is None  # nothing is measured yet
    write_summary(
        done.folder, status="finished", step=100, tokens_per_second=100.0, wall_seconds=110.0,
        train_seconds=100.0,
    )  # fmt: skip
    (waiting.folder / METRICS).write_text(row(50, tokens_per_second=100.0))  # interrupted half-way
    with locked(running.folder):
        (running.folder / METRICS).write_text(row(80))  # 20 steps left, at 50 tokens/s
        for job in jobs:
            job.refresh()
        rates = rates_of(jobs)
        assert rates.overhead == 10
        assert done.seconds_left(rates) == 0
        # The mean speed of the three is 83.3 tokens/s.
        assert waiting.seconds_left(rates) == pytest.approx(60 + 5)
        assert new.seconds_left(rates) == pytest.approx(120 + 10)
        left = running.seconds_left(rates)
        assert left is not None and 20 < left <= 40 + 2  # less what has passed since the row
        assert sweep_seconds_left(jobs, rates, 1) == pytest.approx(left + 65 + 130, abs=1)
        assert sweep_seconds_left(jobs, rates, 2) == pytest.approx(max(left, 65) + 130, abs=130)


def test_a_budget_in_minutes_counts_what_earlier_commands_trained(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    write_summary(folder, status="interrupted", train_seconds=90.0, wall_seconds=100.0)
    job = watched(folder, replace(FORECAST, tokens=None, max_steps=None, minutes=2.0))
    job.refresh()
    assert job.seconds_left(Rates()) == 30
    with locked(folder):
        (folder / SUMMARY).unlink()
        job.refresh()
        left, seconds = job.seconds_left(Rates()), job.seconds
        assert left is not None and 0 <= left <= 30
        assert seconds is not None and seconds >= 100
    assert watched(tmp_path / "other", None).seconds_left(Rates([(1.0, 1.0)])) is None
