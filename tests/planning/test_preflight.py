"""The summary and the table of a sweep before its first job."""

from collections.abc import Callable
from typing import Any

import pytest

from llm import commands
from llm.experiment.console import console
from llm.experiment.watch import Forecast, Rates
from llm.planning.preflight import PlannedJob, show_jobs, show_preflight
from llm.settings.earlier import FINISHED, NEW, UNFINISHED, UNVERIFIED, Earlier

GIB = 2**30
Show = Callable[..., str]


def job(
    number: int = 0, earlier: Earlier | None = None, retry: str = "failed", fit: str = "off",
    **known: Any,
) -> PlannedJob:  # fmt: skip
    plain = Forecast(
        parameters=1_000_000 * (number + 1), max_steps=100, tokens=1_000_000, minutes=None,
        flops_per_token=1e6, peak=GIB, budget=4 * GIB, fits=True,
    )  # fmt: skip
    values = {"model.n_layer": str(number), "seed": "1"}
    forecast = Forecast(**vars(plain) | known)
    return PlannedJob(values, forecast, earlier or Earlier(NEW), retry, fit)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.setattr(console, "_width", 80)
    monkeypatch.setattr(commands, "TYPED", ["run_train.py", "-m"])  # not pytest's arguments

    def show(
        call: Callable[..., None],
        jobs: list[PlannedJob],
        rates: Rates = Rates(),  # noqa: B008
        at_once: int = 1,
    ) -> str:
        call("s", jobs, rates, at_once)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        return text

    return show


def test_the_summary_counts_jobs_tokens_and_parameters_of_what_will_run(shown: Show) -> None:
    finished = Earlier(FINISHED, "finished", {"tokens": 1_000_000})
    half = Earlier(UNFINISHED, "killed", {"tokens": 500_000})
    jobs = [job(0, finished), job(1, half), job(2), job(3, peak=3 * GIB), job(4, Earlier(NEW))]
    text = shown(show_preflight, jobs)
    for words in (
        "5: 1 finished, 1 to continue, 3 new", "4,000,000 tokens", "2,000,000 to 5,000,000",
        "at most 3.00 GiB predicted, of 4.00 GiB", "known after the first steps of a job",
    ):  # fmt: skip
        assert words in text
    assert "may not fit" not in text


@pytest.mark.parametrize(("at_once", "time"), [(1, "3m 35s"), (2, "2m 00s, 2 at a time")])
def test_the_time_follows_from_measured_rates(at_once: int, time: str, shown: Show) -> None:
    rates = Rates([(1e6, 2e10)], overhead=10)  # 50 s of training for each job
    half = Earlier(UNFINISHED, None, {"tokens": 500_000})
    jobs = [job(0, Earlier(FINISHED, "finished")), job(1), job(2), job(3, half), job(4)]
    # 60 + 60 + 35 + 60 s, one after another; two at a time 60 + 60
    assert f"about {time}" in shown(show_preflight, jobs, rates, at_once)


def test_jobs_with_a_budget_in_minutes_need_no_rate(shown: Show) -> None:
    jobs = [job(n, tokens=None, max_steps=None, minutes=5.0) for n in range(3)]
    text = shown(show_preflight, jobs)
    assert "15 minutes" in text and "about 15m 00s" in text and "tokens" not in text
    one = job(tokens=None, max_steps=None, minutes=1.0)
    assert "1 minute " in shown(show_preflight, [one])


def test_at_most_ten_jobs_that_may_not_fit_are_named(shown: Show) -> None:
    jobs = [job(n, peak=5 * GIB, fits=False) for n in range(13)]
    jobs += [job(99, Earlier(FINISHED, "finished"), fits=False)]  # it will not run
    text = shown(show_preflight, jobs)
    assert "13 jobs may not fit memory.budget_gib; memory.fit=auto tries to change that:" in text
    assert "  n_layer=9 seed=1: 5.00 GiB of 4.00 GiB" in text
    assert "n_layer=10" not in text and "  and 3 more" in text
    one = shown(show_preflight, [job(0, fit="auto", peak=5 * GIB, fits=False)])
    assert "1 job may not fit memory.budget_gib:" in one


def test_jobs_of_an_unread_text_are_not_guessed_at(shown: Show) -> None:
    jobs = [job(0), PlannedJob({"seed": "2"}, None, Earlier(NEW), "failed", "off")]
    text = shown(show_preflight, jobs, Rates([(1e6, 1e10)]))
    assert "1 job: size, memory and time are known once run_prepare.py has" in text
    assert "known after the first steps of a job" in text
    assert "-" in shown(show_jobs, jobs)


@pytest.mark.parametrize(
    ("earlier", "retry", "state"),
    [
        (Earlier(NEW), "failed", "new"),
        (Earlier(NEW, "refused"), "failed", "new"),
        (Earlier(UNFINISHED, "diverged"), "failed", "to continue"),
        (Earlier(UNFINISHED, "out_of_memory"), "none", "out_of_memory"),
        (Earlier(FINISHED, "finished"), "none", "finished"),
        (Earlier(FINISHED, "finished"), "all", "anew"),
        (Earlier(NEW), "all", "new"),
        (Earlier(UNVERIFIED, "finished"), "failed", "to be compared"),
    ],
)
def test_the_state_of_a_job_says_what_this_command_does(
    earlier: Earlier, retry: str, state: str
) -> None:
    assert job(0, earlier, retry).state == state


def test_a_dry_run_shows_a_row_for_each_job_and_the_command(
    shown: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["run_train.py", "-m", "seed=1,2", "run.dry_run=true", "run.sweep=s"]
    monkeypatch.setattr(commands, "TYPED", typed)
    jobs = [job(0), job(1, Earlier(FINISHED, "finished")), job(2, peak=9 * GIB, fits=False)]
    text = shown(show_jobs, jobs, Rates([(1e6, 2e10)]))
    rows = [line.split() for line in text.splitlines() if line.startswith("n_layer=")]
    assert rows == [
        ["n_layer=0", "seed=1", "1M", "1M", "1.00", "yes", "50s", "new"],
        ["n_layer=1", "seed=1", "2M", "1M", "1.00", "yes", "-", "finished"],
        ["n_layer=2", "seed=1", "3M", "1M", "9.00", "no", "50s", "new"],
    ]
    command = " ".join(text.split()).partition("to run them: ")[2]
    assert command.endswith("-m seed=1,2 run.sweep=s")


def test_the_table_of_200_jobs_with_long_values_stays_readable(shown: Show) -> None:
    jobs = [
        PlannedJob(
            {"data.path": "文" * 60 + str(n)}, job(n).forecast, Earlier(NEW), "failed", "off"
        )
        for n in range(200)
    ]
    text = shown(show_jobs, jobs)
    assert "and 160 more" in text and "200: 200 new" in text
