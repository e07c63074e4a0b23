"""A run folder that was deleted, is incomplete, or is not a run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from llm.experiment.loggers import RunLogger
from llm.experiment.rundir import write_summary
from llm.training.trainer import Trainer
from tests.command_line import Done, here, listing, rows, summary
from tests.conftest import TINY_RUN


@pytest.fixture(scope="module")
def data(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a dataset that is prepared already."""
    folder = tmp_path_factory.mktemp("prepared")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", f"data.dir={folder}"]
    assert here("prepare", *data, cwd=text_file.parent).returncode == 0
    return data


@pytest.fixture
def without_config(tmp_path: Path) -> Path:
    """A folder with ``outputs/a``, in which there is only a checkpoint."""
    (tmp_path / "outputs/a/checkpoints/step-00000002").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def gone_after_step_3(tmp_path: Path) -> Iterator[None]:
    """Somebody deletes the folder of the run, or the folder above it."""
    tick = RunLogger.tick

    def deleting(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 3:
            shutil.rmtree(tmp_path / "outputs")

    with patch.object(RunLogger, "tick", deleting):
        yield


@pytest.mark.usefixtures("gone_after_step_3")
@pytest.mark.parametrize(
    ("typed", "place"),
    [
        (["trainer.eval_interval=100"], "metrics.jsonl"),
        (["trainer.log_interval=100", "trainer.eval_interval=100"], "checkpoints/step-00000004"),
        ([], "checkpoints/best-00000003"),
        (
            ["trainer.log_interval=100", "trainer.eval_interval=100", "trainer.sample_interval=3"],
            "samples.jsonl",
        ),
    ],
)
def test_a_run_folder_that_is_deleted_ends_the_run_at_the_next_write_and_is_not_made_again(
    typed: list[str], place: str, tmp_path: Path, data: list[str]
) -> None:
    done = here("train", *data, *TINY_RUN, *typed, "run.name=a", cwd=tmp_path)
    assert done.returncode == 5, done
    assert done.stderr.startswith("run_train.py: ") and done.stderr.count("\n") == 1
    assert f"outputs/a/{place} could not be written: No such file or directory" in done.stderr
    assert listing(tmp_path) == {"outputs", "outputs/ledger.jsonl"}
    line = json.loads((tmp_path / "outputs/ledger.jsonl").read_text())
    assert (line["folder"], line["status"]) == ("outputs/a", "disk_error")


def one_refusal(done: Done) -> str:
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_checkpoints_without_a_config_are_named_and_left_alone(
    without_config: Path, data: list[str]
) -> None:
    before = listing(without_config)
    said = one_refusal(here("train", "resume=outputs/a", cwd=without_config))
    assert "resume=outputs/a has checkpoints but no config.yaml" in said
    assert "ckpt=outputs/a or init_from=outputs/a" in said
    said = one_refusal(here("train", *data, *TINY_RUN, "run.name=a", cwd=without_config))
    assert "outputs/a has checkpoints but no config.yaml in it: take another run.name" in said
    assert listing(without_config) == before


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_again(
    tmp_path: Path, data: list[str]
) -> None:
    typed = [*TINY_RUN, *data, "run.name=a"]
    assert here("train", *typed, cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "outputs/a/checkpoints")
    done = here("train", "resume=outputs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "outputs/a has no checkpoint of its 6 steps: it starts again at step 0"
    assert said in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/last", "checkpoints/step-00000002/"])
def test_resume_of_a_part_of_a_run_is_answered_with_the_name_of_the_run(
    part: str, without_config: Path
) -> None:
    (without_config / "outputs/a/checkpoints/last").symlink_to("step-00000002")
    (without_config / "outputs/a/config.yaml").write_text("{}", encoding="utf-8")
    said = one_refusal(here("train", f"resume=outputs/a/{part}", cwd=without_config))
    assert "is part of a run: continue the whole run by resume=outputs/a\n" in said


@pytest.fixture(scope="module")
def trained(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``outputs/a``, which is finished, and its best weights after step 6."""
    cwd = tmp_path_factory.mktemp("trained")
    assert here("train", *data, *TINY_RUN, "run.name=a", cwd=cwd).returncode == 0
    return cwd


@pytest.fixture
def cwd(trained: Path, tmp_path: Path) -> Path:
    """A copy of ``trained``."""
    return Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))


def log_of(run: Path) -> str:
    return (run / "run_train.log").read_text(encoding="utf-8")


def test_the_log_says_whether_auto_or_the_configuration_chose_the_precision(cwd: Path) -> None:
    assert "precision: fp32, 16-bit is not faster on cpu" in log_of(cwd / "outputs/a")
    done = here("train", "resume=outputs/a", "trainer.max_steps=7", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "precision: fp32, as configured" in log_of(cwd / "outputs/a")


@pytest.mark.parametrize(
    ("typed", "step", "reason"),
    [
        (
            ["trainer.patience=1", "optimizer.lr=1e-30", "trainer.eval_interval=1"],
            1,
            "trainer.patience=1 evaluations without a better loss",
        ),
        (["trainer.max_minutes=1e-9"], 1, "trainer.max_minutes=1e-09 are used up"),
    ],
)
def test_a_run_that_ends_before_its_last_step_says_why(
    typed: list[str], step: int, reason: str, data: list[str], tmp_path: Path
) -> None:
    command = [*data, *TINY_RUN, *typed, "run.name=a"]
    done = here("train", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/a"
    assert (summary(run)["status"], summary(run)["step"]) == ("finished", step)
    assert summary(run)["reason"] == reason
    said = f"at step {step}: {reason}"
    assert said in done.stdout and said in log_of(run)
    done = here("train", *command, cwd=tmp_path)
    assert "is finished already" in done.stdout and reason in done.stdout


def test_a_run_with_a_budget_in_minutes_is_named_by_it_and_can_be_extended(
    data: list[str], tmp_path: Path
) -> None:
    command = [*data, *TINY_RUN, "trainer.max_steps=null", "trainer.max_minutes=1e-9", "run.name=a"]
    done = here("train", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training tokens, 1e-09 minutes of training" in " ".join(done.stdout.split())
    assert "the schedule ends at step 1: 1e-09 minutes at " in done.stdout
    run = tmp_path / "outputs/a"
    assert (summary(run)["status"], summary(run)["step"]) == ("finished", 1)
    assert summary(run)["reason"] is None
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["trainer"]["max_steps"] is config["schedule"]["warmup_steps"] is None

    for again in (command, ["resume=outputs/a"]):
        done = here("train", *again, cwd=tmp_path)
        assert "is finished already" in done.stdout
        assert "resume=outputs/a trainer.max_minutes=MORE" in done.stdout
    done = here("train", *command, "trainer.max_minutes=2e-9", cwd=tmp_path)
    assert done.returncode == 2
    assert "(trainer.max_minutes was 1e-09, now 2e-09)" in done.stderr
    done = here("train", "resume=outputs/a", "trainer.max_minutes=2e-9", cwd=tmp_path)
    assert done.returncode == 0 and "already" not in done.stdout, "it is used up at once"
    assert summary(run)["step"] == 1
    done = here("train", "resume=outputs/a", "trainer.max_steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(run)["reason"] == "trainer.max_minutes=2e-09 are used up"
    done = here(
        "train", "resume=outputs/a", "trainer.max_steps=3", "trainer.max_minutes=null", cwd=tmp_path
    )
    assert (done.returncode, summary(run)["step"]) == (0, 3)


def test_an_evaluation_alone_reports_the_step_of_its_weights(cwd: Path) -> None:
    best = int((cwd / "outputs/a/checkpoints/best").readlink().name.rpartition("-")[2])
    done = here("train", "resume=outputs/a", "trainer.eval_only=true", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in cwd.glob("outputs/*/*/summary.json"))
    assert best > 0
    assert [row["step"] for row in rows(run)] == [best] == [summary(run)["step"]]
    assert f"step {best}/6  val loss" in log_of(run)
    assert f"evaluates: the weights after step {best}" in log_of(run)
    assert rows(run)[0]["tokens"] == rows(cwd / "outputs/a")[best]["tokens"]
    assert rows(run)[0]["val/loss"] == rows(cwd / "outputs/a")[best]["val/loss"]


def test_the_reason_in_a_summary_is_one_line(tmp_path: Path) -> None:
    write_summary(tmp_path, status="failed", reason="ValueError: no\n  such\tthing\n")
    assert summary(tmp_path)["reason"] == "ValueError: no such thing"


@pytest.mark.parametrize(("fit", "advised"), [("auto", False), ("check", True)])
def test_memory_fit_auto_is_not_advised_when_it_is_on(
    fit: str, advised: bool, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Trainer, "optimizer_step", no_room)
    typed = [f"memory.fit={fit}", "trainer.batch_size=1", "run.name=a"]
    done = here("train", *data, *TINY_RUN, *typed, cwd=tmp_path)
    assert done.returncode == 4
    for said in (done.stderr, summary(tmp_path / "outputs/a")["reason"]):
        assert ("try memory.fit=auto" in said) is advised
        assert ("memory.fit=auto is on and was not enough" in said) is not advised


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("model.n_layer=3", "model.n_layer was 1, now 3"),
        ("trainer.batch_size=8", "trainer.batch_size was 4, now 8"),
        ("optimizer.lr=0.5", "optimizer.lr was 0.02, now 0.5"),
    ],
)
def test_a_plan_of_a_resume_is_refused_as_the_run_would_be(
    typed: str, named: str, cwd: Path
) -> None:
    for command in ("train", "plan"):
        said = one_refusal(here(command, "resume=outputs/a", typed, cwd=cwd))
        assert "outputs/a holds another run" in said and named in said


def test_a_plan_of_a_resume_may_change_what_the_run_may_change(cwd: Path) -> None:
    for typed in ([], ["trainer.max_steps=9"], ["trainer.micro_batch_size=2", "precision=auto"]):
        done = here("plan", "resume=outputs/a", *typed, cwd=cwd)
        assert done.returncode == 0, done.stderr
