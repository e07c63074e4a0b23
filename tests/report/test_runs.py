"""Runs are found and read, whatever state their folders are in."""

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.made_runs import DATA, make_run, make_sweep
from llm.errors import Refused
from llm.experiment.rundir import read_summary
from llm.memory.weights import flops_per_token
from llm.model.config import GPTConfig
from llm.report.numbers import analyse
from llm.report.reading import Place, ReadRun, read_run
from llm.report.record import DAMAGED, RUNNING, RunRecord
from llm.report.runs import Reader, find_runs
from tests.command_line import here
from tests.conftest import ROOT, TINY_RUN

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
        ("summary.json", b"{}", "status=None is not the end of a run"),
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A sweep of two seeds, trained for a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=char"]
    for seed in ("1", "2"):
        place = ["run.sweep=seeds", f"run.dir=multirun/seeds/seed-{seed}", f"seed={seed}"]
        done = here("train", *data, *TINY_RUN, *place, "trainer.sample_interval=6", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "multirun/seeds"


def test_trained_runs_have_the_numbers_of_their_summary(trained: Path) -> None:
    records = find_runs([trained])
    summary = read_summary(trained / "seed-1")
    assert summary is not None
    assert [record.seed for record in records] == [1, 2]
    assert records[0].point == records[1].point != ""
    for key in ("step", "tokens", "parameters", "best_val_loss", "val_loss", "bits_per_byte"):
        assert getattr(records[0], key) == summary[key]
    assert records[0].evaluation == summary["evaluation"]
    assert records[0].train_seconds == summary["train_seconds"]
    vocab_size = records[0].settings["model.vocab_size"]
    config = GPTConfig(1, 32, head_size=16, block_size=16, vocab_size=vocab_size).resolve()
    assert records[0].flops_per_token == flops_per_token(config)


def test_the_checkpoints_of_a_trained_run_exist(trained: Path) -> None:
    for record in find_runs([trained]):
        for name in (record.best_checkpoint, record.last_checkpoint):
            assert name is not None
            assert (trained / record.name / name / "checkpoint.json").is_file()
        assert record.best_checkpoint == f"checkpoints/best-{record.best_step:08d}"


def test_a_killed_run_knows_its_data_from_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "seed-1", tmp_path / "run", symlinks=True)
    (tmp_path / "run/summary.json").unlink()
    finished, killed = find_runs([trained / "seed-1", tmp_path / "run"])
    assert killed.status == "killed"
    assert (killed.data_digest, killed.point) == (finished.data_digest, finished.point)
    assert killed.best_val_loss == finished.best_val_loss
    assert killed.step == finished.step


def test_values_of_a_stranger_neither_crash_nor_fill_the_report(tmp_path: Path) -> None:
    huge = {"loss": 1.0, "x" * 99: 1, "nested": [1] * 99, "text": "y" * 99_999}
    folder = make_run(
        tmp_path / "run", {}, [2.0], data_digest=["a list"], evaluation=huge, reason="z" * 99_999,
        parameters="many", best_val_loss=True, step=1e308,
    )  # fmt: skip
    config = (folder / "config.yaml").read_text()
    for old, new in (
        ("budget_gib: 4.0", "budget_gib: 1.0e+308"),
        ("n_layer: 4", "n_layer: four"),
        ("lr: 0.002", "lr: .nan"),
    ):
        assert old in config
        config = config.replace(old, new)
    (folder / "config.yaml").write_text(config)
    (folder / "test.json").write_text(json.dumps(huge))
    (record,) = find_runs([folder])
    assert record.status == "finished"
    assert (record.data_digest, record.parameters, record.budget_bytes) == (None, None, None)
    assert record.flops_per_token is None
    assert record.settings["optimizer.lr"] == "nan"
    assert set(record.test) == set(record.evaluation) == {"loss", "text"}
    assert len(repr(record)) < 12_000


@pytest.mark.parametrize("value", [1e308, -1e308, 1e90, 1e-320])
def test_numbers_that_overflow_a_sum_or_a_square_are_unknown(value: float, tmp_path: Path) -> None:
    keys = ("best_val_loss", "val_loss", "bits_per_byte", "train_seconds", "parameters")
    for seed in (1, 2, 3):
        folder = tmp_path / f"large-{seed}"
        make_run(folder, {"seed": seed}, [2.0], **dict.fromkeys(keys, value))
        (folder / "test.json").write_text(json.dumps({"loss": value}))
        make_run(tmp_path / f"usual-{seed}", {"seed": seed, "model.n_layer": 2}, [2.0 + seed])
    report = analyse(find_runs([tmp_path]))
    assert len(report.points) == 2
    is_large = abs(value) > 1  # then the rows of metrics.jsonl say the loss
    large = [record for record in report.records if record.name.startswith("large")]
    assert {record.best_val_loss for record in large} == {2.0 if is_large else value}
    assert {record.test["loss"] for record in large} == {None if is_large else value}


@pytest.mark.parametrize("size", ["null", "0"])
def test_a_network_without_a_vocabulary_has_no_flops(size: str, tmp_path: Path) -> None:
    config = make_run(tmp_path / "a", {}, [2.0], rows=1) / "config.yaml"
    text = config.read_text()
    assert "  vocab_size: 77\n" in text
    config.write_text(text.replace("  vocab_size: 77\n", f"  vocab_size: {size}\n"))
    (record,) = find_runs([tmp_path])
    assert (record.status, record.flops_per_token) == ("finished", None)


def test_a_test_loss_counts_only_for_the_best_checkpoint_of_now(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {}, [3.0, 2.0], rows=2)
    best = find_runs([folder])[0].best_checkpoint
    for checkpoint, found in ((best, 1.5), ("checkpoints/best-00000001", None)):
        test = json.dumps({"loss": 1.5, "checkpoint": checkpoint})
        (folder / "test.json").write_text(test)
        assert find_runs([folder])[0].test.get("loss") == found
    shutil.rmtree(folder / "checkpoints")  # copied to another machine without its weights
    assert find_runs([folder])[0].test["loss"] == 1.5


def test_settings_that_a_sweep_varies_always_count(tmp_path: Path) -> None:
    over = {"memory.budget_gib": [2.0, 4.0], "trainer.log_interval": [1, 2]}
    folder = make_sweep(tmp_path, over, seeds=(1, 2), evaluations=2, rows=1)
    records = find_runs([folder])
    assert len({record.point for record in records}) == 4
    assert records[0].settings["memory.budget_gib"] == 2.0
    assert records[0].budget_bytes == 2 * 2**30


def test_settings_that_change_no_result_do_not_count(tmp_path: Path) -> None:
    for number, values in enumerate(({}, {"trainer.log_interval": 1, "data.dir": "elsewhere"})):
        make_run(tmp_path / str(number), values, [2.0])
    make_run(tmp_path / "2", {"trainer.eval_batches": 3}, [2.0])
    first, second, third = find_runs([tmp_path])
    assert first.point == second.point != third.point


def test_a_damaged_sweep_file_leaves_the_runs_without_values(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    (folder / "sweep.json").write_text("{")
    reader = Reader([folder, folder])
    records = reader.read()
    assert len(records) == 8
    assert records[0].values == {}
    assert records[0].sweep == str(folder)
    assert len(reader.notes) == 1
    assert "sweep.json cannot be read" in reader.notes[0]
