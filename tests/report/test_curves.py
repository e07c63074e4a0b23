"""Curves, samples and logs for the page: few points, bounded texts."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.made_runs import make_run, make_sweep
from llm.report.curves import MOST_RUNS, end_of_log, extra, last_sample, logs
from llm.report.record import RunRecord
from llm.report.rows import Curve, read_rows
from llm.report.runs import Reader
from llm.sealed import Plain
from tests.conftest import ROOT


def of(folder: Path, **options: int) -> tuple[list[RunRecord], Plain]:
    reader = Reader([folder])
    records = reader.read()
    return records, extra(reader, records, **options)


def write_rows(folder: Path, rows: list[Plain]) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    return folder


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.integers(3, 120))
def test_a_thinned_curve_keeps_the_first_the_last_and_the_lowest_point(
    losses: list[float], most: int
) -> None:
    curve = Curve()
    for step, loss in enumerate(losses):
        curve.add(step, 10 * step, 0.5 * step, loss)
    thin = curve.thinned(most)
    steps = list(thin.step)
    assert len(steps) <= most
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, len(losses) - 1)
    assert min(thin.loss) == min(losses)
    assert all(losses[int(step)] == loss for step, loss in zip(steps, thin.loss, strict=True))


def test_a_curve_has_steps_tokens_seconds_and_flops(tmp_path: Path) -> None:
    make_run(tmp_path / "run", {}, [3.0, 2.123456789], rows=1)
    (record,), page = of(tmp_path)
    (curve,) = page["curves"]
    assert curve["run"] == 0
    assert curve["val"]["step"] == [0, 10]
    assert curve["val"]["tokens"] == [0, 10_240]
    assert curve["val"]["loss"] == [3, 2.1235]
    assert record.flops_per_token is not None
    assert curve["val"]["flops"][1] == pytest.approx(10_240 * record.flops_per_token, rel=1e-4)
    assert curve["val"]["seconds"][1] == pytest.approx(record.train_seconds, rel=1e-4)
    assert len(curve["train"]["step"]) == 1


def test_seconds_of_an_earlier_version_follow_from_its_speed(tmp_path: Path) -> None:
    rows = read_rows(ROOT / "tests/kept/0.2.0/run")
    assert list(rows.val.seconds) == pytest.approx([0, 32 / 1707.3022383499608])
    row: Plain = {"train/loss": 1.0, "tokens_per_second": 10.0}
    slower = [row | {"step": n, "tokens": 20 * n} for n in range(3)]
    del slower[2]["tokens_per_second"]
    found = read_rows(write_rows(tmp_path / "run", slower))
    assert list(found.train.seconds)[:2] == [0, 2]
    assert math.isnan(found.train.seconds[2])


def test_numbers_that_json_does_not_allow_are_unknown(tmp_path: Path) -> None:
    rows = [{"step": n, "tokens": n, "train/loss": loss} for n, loss in enumerate((1.0, math.nan))]
    rows += [{"step": 2, "tokens": 10**400, "train/loss": 2.0}, {"tokens": 3, "train/loss": 1.0}]
    found = read_rows(write_rows(tmp_path / "run", rows))
    assert list(found.train.step) == [0, 2]
    assert math.isnan(found.train.tokens[1])


def test_rows_before_a_damaged_one_are_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {}, [3.0, 2.0, 1.0], rows=2)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:3], "torn", *lines[3:]]) + "\n")
    _, page = of(tmp_path)
    assert page["curves"][0]["val"]["loss"] == [3, 2]


def test_the_page_of_many_runs_stays_small(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    make_run(folder / "0", {}, [3.0] * 150, rows=2)
    text = (folder / "0/metrics.jsonl").read_bytes()
    for number in range(1, 120):
        (folder / str(number)).mkdir()
        for name in ("config.yaml", "summary.json", "samples.jsonl"):
            os.link(folder / "0" / name, folder / str(number) / name)
        (folder / str(number) / "metrics.jsonl").write_bytes(text)
    _, page = of(folder)
    assert len(page["curves"]) == 120
    assert len(json.dumps(page)) < 1_100_000
    _, page = of(folder, most_runs=7)
    assert len(page["curves"]) == 7
    assert "7 runs with the lowest loss" in page["notes"][0]
    assert MOST_RUNS == 300


def test_the_runs_with_the_lowest_losses_have_curves(tmp_path: Path) -> None:
    for number, loss in enumerate((2.0, 1.0, 3.0)):
        make_run(tmp_path / str(number), {"seed": number}, [loss])
    _, page = of(tmp_path, most_runs=2)
    assert [curve["run"] for curve in page["curves"]] == [0, 1]
    assert [sample["run"] for sample in page["samples"]] == [1, 0]


def test_the_last_whole_sample_is_shown_with_its_scores(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {}, [2.0])
    with (folder / "samples.jsonl").open("a") as file:
        row = {"step": 9, "prompt": "A", "text": "x" * 9000, "distinct_1": 0.5, "phrase": "x"}
        file.write(json.dumps(row) + '\n{"step": 10, "text": "to')
    sample = last_sample(folder)
    assert sample is not None
    assert (sample["step"], sample["prompt"], sample["scores"]) == (9, "A", {"distinct_1": 0.5})
    assert sample["text"] == "x" * 2000


@pytest.mark.parametrize("text", [b"", b"\xff\n", b'{"text": 3}\n', b"[" * 100_000])
def test_a_file_without_a_sample_shows_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "samples.jsonl").write_bytes(text)
    assert last_sample(tmp_path) is None


def test_the_end_of_a_log_is_printable_and_short(tmp_path: Path) -> None:
    lines = [f"line {number} \x1b[2J\x00 \xff" for number in range(100)]
    (tmp_path / "run_train.log").write_bytes("\n".join([*lines, "y" * 9000]).encode("latin-1"))
    shown = end_of_log(tmp_path).splitlines()
    assert len(shown) == 15
    assert shown[0].startswith(r"line 86 \x1b[2J\x00")
    assert len(shown[-1]) == 300


def test_only_runs_that_did_not_finish_show_their_log(tmp_path: Path) -> None:
    for number, status in enumerate(("finished", "diverged", "failed")):
        folder = make_run(tmp_path / str(number), {}, [2.0], status=status)
        if status != "failed":
            (folder / "run_train.log").write_text(f"it has {status}")
    assert logs(Reader([tmp_path]).read()) == {1: "it has diverged"}


def test_a_link_is_not_followed_to_a_file_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"text": "secret"}\n')
    for name in ("run_train.log", "samples.jsonl"):
        (tmp_path / name).symlink_to(secret)
    assert end_of_log(tmp_path) == ""
    assert last_sample(tmp_path) is None


def test_the_jobs_that_a_running_sweep_has_not_started_are_waiting(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", {"model.n_layer": [1]}, evaluations=2, rows=1)
    file = json.loads((folder / "sweep.json").read_text())
    file["jobs"]["later"] = {"model.n_layer": "2", "seed": "1"}
    (folder / "sweep.json").write_text(json.dumps(file))
    assert len(Reader([folder]).read()) == 3, "the sweep does not run"
    (folder / ".lock").write_text(f"{os.getpid()}\n")
    records, page = of(folder)
    assert [record.status for record in records] == ["finished"] * 3 + ["waiting"]
    assert records[-1].values == file["jobs"]["later"]
    assert page["curves"][-1]["val"]["loss"] == []
