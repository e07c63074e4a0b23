"""Runs are found and read, whatever state their folders are in."""

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.made_runs import DATA, make_run, make_sweep
from llm.errors import Refused
from llm.report.reading import Place, ReadRun, read_run
from llm.report.record import DAMAGED, RUNNING, RunRecord
from llm.report.runs import Reader, find_runs
from tests.conftest import ROOT

OVER = {"model.n_layer": [1, 2], "optimizer.lr": [0.01, 0.02]}


def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path / "multirun/depth", OVER, seeds=(1, 2), evaluations=3, rows=2)


def damaged(tmp_path: Path, name: str, text: bytes) -> tuple[list[RunRecord], RunRecord]:
    """The records of three runs of which one has a file with this text."""
    for number in range(3):
        make_run(tmp_path / f"runs/{number}", {"seed": number}, [3.0, 2.0], rows=3)
    (tmp_path / "runs/1" / name).write_bytes(text)
    records = find_runs([tmp_path / "runs"])
    return records, records[1]


def test_a_sweep_has_its_jobs_in_order_with_their_values(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    records = find_runs([folder])
    assert [record.name for record in records] == list(jobs)
    assert [record.values for record in records] == list(jobs.values())
    assert {record.sweep for record in records} == {str(folder)}
    assert {record.status for record in records} == {"finished"}
    assert {record.data_digest for record in records} == {DATA}


def test_runs_that_differ_in_the_seed_are_one_point(tmp_path: Path) -> None:
    records = find_runs([sweep(tmp_path)])
    seeds: dict[str, list[int | None]] = {}
    for record in records:
        seeds.setdefault(record.point, []).append(record.seed)
    assert list(seeds.values()) == [[1, 2]] * 4
    assert {record.settings["model.n_layer"] for record in records} == {1, 2}


def test_a_run_is_found_once_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [f"multirun/depth/{names[0]}", folder, "multirun", ".", "link"]
    records = find_runs(paths)
    assert len(records) == len(names) == 8
    assert records[0].folder == f"multirun/depth/{names[0]}"
    assert records[0].values["seed"] == "1"


def test_a_job_that_the_sweep_file_does_not_list_is_found(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    make_run(folder / "another", {"seed": 3}, [2.0])
    assert find_runs([folder])[-1].name == "another"


@pytest.mark.parametrize("name", ["missing", "empty", "foreign", "file.txt", "nul\0"])
def test_a_path_without_runs_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign/below").mkdir(parents=True)
    (tmp_path / "foreign/notes.txt").write_text("nothing")
    (tmp_path / "file.txt").write_text("nothing")
    with pytest.raises(Refused, match=name.rstrip("\0")) as refusal:
        find_runs([tmp_path / name])
    assert "give a run, a sweep" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("summary.json", b"{", "summary.json cannot be read"),
        ("summary.json", b'{"status": 3}', "status=3 is not the end of a run"),
        ("config.yaml", b"model: &x [1]\nseed: *x\n", "config.yaml cannot be read: line 1 has"),
        ("config.yaml", b"\xff", "config.yaml cannot be read"),
        ("metrics.jsonl", b'{"step": 1}\n{"st\n{"step": 2}\n', "metrics.jsonl: line 2 is not JSON"),
        ("metrics.jsonl", b'{"step": 1}\n\xff\n', "metrics.jsonl: line 2 is not UTF-8"),
        ("metrics.jsonl", b"7\n", "metrics.jsonl: line 1 is not a JSON object"),
        ("metrics.jsonl", b" " * (1 << 23), "metrics.jsonl: line 1 is too long"),
        ("metrics.jsonl", b'{"step": 1}\n{"st', "the last line of metrics.jsonl is cut short"),
        ("test.json", b"[]", "test.json is not a JSON object"),
    ],
)
def test_a_damaged_file_is_named_and_the_other_runs_are_reported(
    tmp_path: Path, name: str, text: bytes, reason: str
) -> None:
    records, record = damaged(tmp_path, name, text)
    assert record.status == DAMAGED
    assert reason in record.reason
    assert [one.status for one in records] == ["finished", DAMAGED, "finished"]


def test_a_link_or_a_pipe_in_place_of_the_metrics_is_damage(tmp_path: Path) -> None:
    for name in ("link", "pipe"):
        make_run(tmp_path / name, {}, [2.0])
        (tmp_path / name / "metrics.jsonl").unlink()
    (tmp_path / "link/metrics.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe/metrics.jsonl")
    reasons = [record.reason for record in find_runs([tmp_path])]
    assert "is a link" in reasons[0]
    assert "is not a regular file" in reasons[1]


def test_a_run_that_is_being_written_has_the_numbers_of_its_last_whole_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {}, [3.0, 2.0, 2.5], rows=4)
    (folder / "summary.json").unlink()
    (folder / ".lock").write_text(f"{os.getpid()}\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 90, "tok')
    (record,) = find_runs([folder])
    assert (record.status, record.step, record.best_val_loss) == (RUNNING, 80, 2.0)
    assert (record.best_step, record.val_loss, record.reason) == (40, 2.5, "")


@pytest.mark.parametrize("lock", [None, "999999999", "nobody"])
def test_a_run_without_summary_and_without_a_living_owner_was_killed(
    tmp_path: Path, lock: str | None
) -> None:
    folder = make_run(tmp_path / "run", {}, [3.0])
    (folder / "summary.json").unlink()
    if lock is not None:
        (folder / ".lock").write_text(lock)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    (record,) = find_runs([folder])
    assert record.status == "killed"
    assert "summary.json" in record.reason


def test_a_run_that_has_not_saved_is_of_the_point_of_its_sweep(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    before = find_runs([folder])
    summary = Path(before[0].folder) / "summary.json"
    summary.unlink()
    after = find_runs([folder])
    assert after[0].data_digest is None
    assert [record.point for record in after] == [record.point for record in before]


def test_a_refused_job_has_only_a_summary(tmp_path: Path) -> None:
    folder = tmp_path / "sweep/job"
    make_run(folder, {}, [3.0], status="refused", reason="model.n_embed=100 is not divisible")
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    (record,) = find_runs([tmp_path])
    assert (record.status, record.point, record.settings) == ("refused", "", {})
    assert "n_embed" in record.reason


def test_a_run_of_an_earlier_version_is_of_the_same_point_as_one_with_the_new_keys(
    tmp_path: Path,
) -> None:
    old = ROOT / "tests/kept/0.2.0/run"
    shutil.copytree(old, tmp_path / "old", symlinks=True)
    shutil.copytree(old, tmp_path / "older", symlinks=True)
    config = tmp_path / "older/config.yaml"
    lacking = ("  skip_spikes: false\n", "  smear: 0\n", "  ns_steps: 5\n", "init_from: null\n")
    text = config.read_text()
    for line in lacking:
        assert line in text
        text = text.replace(line, "")
    config.write_text(text)
    records = find_runs([tmp_path])
    assert len({record.point for record in records}) == 1
    assert records[0].settings == records[1].settings
    assert records[0].best_checkpoint == "checkpoints/best-00000002"
    assert records[0].last_checkpoint == "checkpoints/step-00000002"


def test_only_a_changed_run_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep(tmp_path)
    reader = Reader([folder])
    first = reader.read()
    make_run(Path(first[3].folder), {"seed": 1}, [1.0])
    read: list[str] = []

    def noted(place: Place) -> ReadRun:
        read.append(str(place.folder))
        return read_run(place)

    monkeypatch.setattr("llm.report.runs.read_run", noted)
    second = reader.read()
    assert read == [first[3].folder]
    assert second[3].best_val_loss == 1.0
    assert second[:3] == first[:3]
