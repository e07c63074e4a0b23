"""Resuming a run: what may change, what is repaired, and what is refused."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.lock import locked
from llm.settings.saved import load_plain
from tests.checkpoint.conftest import edit
from tests.command_line import here, rows, summary
from tests.conftest import TINY_RUN


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder in which ``outputs/base`` has finished."""
    cwd = tmp_path_factory.mktemp("base")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", "data.dir=data"]
    done = here("train", *data, *TINY_RUN, "run.name=base", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def cwd(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))


@pytest.fixture
def data(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte", "data.dir=data"]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_evaluation_alone_never_changes_the_run(cwd: Path, data: list[str]) -> None:
    refused = here("train", *data, *TINY_RUN, "run.name=x", "trainer.eval_only=true", cwd=cwd)
    assert refused.returncode == 2
    assert "run.name" in refused.stderr
    before = contents(cwd / "outputs/base")
    done = here("train", "resume=outputs/base", "trainer.eval_only=true", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert contents(cwd / "outputs/base") == before
    (other,) = cwd.glob("outputs/????-??-??/*")
    assert summary(other)["best_val_loss"] == summary(cwd / "outputs/base")["best_val_loss"]
    assert summary(other)["step"] > 0  # the step of the weights
    assert not (other / "checkpoints").exists()


def test_a_run_says_that_its_cpu_is_slow_in_16_bits(
    cwd: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    said = "precision=bf16: this CPU has no instructions for it, so a step takes several times"
    for precision, times in (("bf16", 1), ("fp32", 0)):
        typed = [*data, *TINY_RUN, f"precision={precision}", f"run.name={precision}"]
        done = here("train", *typed, "trainer.max_steps=1", cwd=cwd)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count(said) == times


def test_a_run_that_is_made_longer_keeps_what_was_derived_when_it_began(cwd: Path) -> None:
    base = cwd / "outputs/base"
    began = load_plain(base)
    assert began["schedule"]["warmup_steps"] == 0  # of 6 steps; of 40 it would be 4
    done = here("train", "resume=outputs/base", "trainer.max_steps=40", cwd=cwd)
    assert done.returncode == 0, done.stderr
    goes_on = load_plain(base)
    assert goes_on.pop("trainer") == began.pop("trainer") | {"max_steps": 40}
    goes_on.pop("run"), began.pop("run")
    assert goes_on == began
    (rate,) = (row["lr"] for row in rows(base) if row["step"] == 8)
    assert rate == began["optimizer"]["lr"]


def test_a_run_given_fewer_steps_than_its_warm_up_says_where_it_is(
    cwd: Path, data: list[str]
) -> None:
    typed = ["schedule.warmup_steps=4", "run.name=warm"]
    assert here("train", *data, *TINY_RUN, *typed, cwd=cwd).returncode == 0
    done = here("train", "resume=outputs/warm", "trainer.max_steps=3", cwd=cwd)
    words = "outputs/warm is already at step 6, and its warm-up takes 4 steps: give more"
    assert done.returncode == 2 and f"{words} than 6\n" in done.stderr, done
    typed = ["resume=outputs/warm", "trainer.max_steps=3", "schedule.warmup_steps=3"]
    assert "schedule.warmup_steps=3 must be less" in here("train", *typed, cwd=cwd).stderr


def damage(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def ending(run: Path) -> tuple[object, ...]:
    """What a run ends with, without what depends on the time."""
    last = Checkpoint.open(run / "checkpoints/last")
    of_time = ("train_seconds", "tokens_per_second", "mfu", "peak")
    metrics = [{k: v for k, v in row.items() if not k.startswith(of_time)} for row in rows(run)]
    return last.step, last.files, metrics, summary(run)["status"]


def test_a_damaged_checkpoint_is_renamed_and_the_run_ends_as_it_would_have(
    cwd: Path,
) -> None:
    base = cwd / "outputs/base"
    wanted = ending(base)
    damage(base / "checkpoints/step-00000006/training.safetensors")
    done = here("train", "resume=outputs/base", cwd=cwd)
    assert done.returncode == 0, done.stderr
    said = (
        "outputs/base/checkpoints/step-00000006/training.safetensors is damaged: its sha256 is not "
        "the recorded one: renamed to damaged-step-00000006, continuing from step 4"
    )
    assert said in " ".join(done.stdout.split())
    assert ending(base) == wanted
    names = {path.name for path in (base / "checkpoints").iterdir()}
    steps = {"step-00000004", "step-00000006", "damaged-step-00000006"}
    assert names == {"best", "best-00000006", "last"} | steps


def test_with_no_whole_checkpoint_a_run_is_refused_and_stays_as_it_is(cwd: Path) -> None:
    base = cwd / "outputs/base"
    for name in ("step-00000004/checkpoint.json", "step-00000006/model.safetensors"):
        damage(base / "checkpoints" / name)
    before = contents(base)
    done = here("train", "resume=outputs/base", "trainer.max_steps=9", cwd=cwd)
    assert done.returncode == 2
    assert "no checkpoint of outputs/base can be continued from" in done.stderr
    for name in ("step-00000004/checkpoint.json", "step-00000006/model.safetensors is damaged"):
        assert name in done.stderr
    assert contents(base) == before


def test_verify_prints_a_line_for_each_folder_and_changes_nothing(cwd: Path) -> None:
    base = cwd / "outputs/base"
    before = contents(base)
    done = here("train", "resume=outputs/base", "verify=true", cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    steps = ("best-00000006", "step-00000004", "step-00000006")
    (dataset,) = (path.name for path in (cwd / "data").iterdir())
    assert lines == [
        *([f"outputs/base/checkpoints/{step}", "intact"] for step in steps),
        [f"data/{dataset}", "intact"],
    ]
    assert contents(base) == before


@pytest.mark.parametrize(
    "name", ["best-00000006/model.safetensors", "step-00000004/checkpoint.json"]
)
def test_verify_names_what_is_damaged_and_ends_with_2(cwd: Path, name: str) -> None:
    damage(cwd / "outputs/base/checkpoints" / name)
    done = here("train", "resume=outputs/base", "verify=true", cwd=cwd)
    assert done.returncode == 2
    assert f"outputs/base: {name.partition('/')[0]} cannot be used" in done.stderr
    assert name in done.stdout
    assert done.stdout.count("intact") == 3


def test_verify_names_data_that_is_damaged_or_not_what_was_trained_on(cwd: Path) -> None:
    (folder,) = (cwd / "data").iterdir()
    damage(folder / "train.bin")
    done = here("train", "resume=outputs/base", "verify=true", cwd=cwd)
    assert done.returncode == 2
    assert f"data/{folder.name} cannot be used" in done.stderr
    assert "train.bin is damaged" in done.stdout
    damage(folder / "train.bin")  # the same bit again
    edit(cwd / "outputs/base/checkpoints/step-00000006", lambda m: m["identity"].clear())
    done = here("train", "resume=outputs/base", "verify=true", cwd=cwd)
    assert done.returncode == 2
    assert "is not what step-00000006 was trained on" in done.stdout


def test_verify_is_refused_where_no_run_is_named(cwd: Path, data: list[str]) -> None:
    before = set(contents(cwd))
    for typed in (["run.name=base"], []):
        done = here("train", *data, *TINY_RUN, "verify=true", *typed, cwd=cwd)
        assert done.returncode == 2
        assert "verify=true needs a run folder: add resume=FOLDER" in done.stderr
    assert set(contents(cwd)) == before


def test_a_checkpoint_of_a_later_version_is_refused_and_not_passed_over(cwd: Path) -> None:
    base = cwd / "outputs/base"
    edit(base / "checkpoints/step-00000006", lambda m: m.update(format_version=2))
    before = contents(base)
    done = here("train", "resume=outputs/base", "trainer.max_steps=9", cwd=cwd)
    assert done.returncode == 2
    assert "step-00000006/checkpoint.json has format_version=2" in done.stderr
    assert "update the program" in done.stderr
    assert contents(base) == before


def test_temporary_files_of_killed_processes_are_gone_after_the_next_start(
    cwd: Path, data: list[str]
) -> None:
    base = cwd / "outputs/base"
    before = {path.relative_to(base) for path in base.rglob("*")}
    for left in (".probe.tmp", ".config.yaml.7.tmp", ".summary.json.7.tmp", ".lock"):
        (base / left).write_text("7", encoding="ascii")
    for half in (".step-00000006.tmp", ".step-00000002.tmp"):
        (base / "checkpoints" / half).mkdir()
        (base / "checkpoints" / half / "model.safetensors").write_bytes(b"half")
    (base / "checkpoints/.last.tmp").symlink_to("step-00000002")
    (base / "summary.json").unlink()
    done = here("train", *data, *TINY_RUN, "run.name=base", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert {path.relative_to(base) for path in base.rglob("*")} == before


def test_a_run_folder_in_use_is_refused_by_the_number_of_its_process_and_left_alone(
    cwd: Path, data: list[str]
) -> None:
    base = cwd / "outputs/base"
    (base / "checkpoints/.step-00000008.7").mkdir()
    (base / "summary.json").unlink()
    command = [*data, *TINY_RUN]
    # As a process that has just started, and one that is long at it.
    (cwd / "outputs/new").mkdir()
    job = ["run.sweep=s", "run.dir=outputs/base"]  # as the launcher of a sweep starts one
    with locked(base), locked(cwd / "outputs/new"):
        before = contents(cwd), {path.name for path in base.rglob("*")}
        for typed in (
            [*command, "run.name=base"], ["resume=outputs/base"], [*command, *job],
            [*command, "run.name=new"],
        ):  # fmt: skip
            done = here("train", *typed, cwd=cwd)
            assert done.returncode == 2
            assert f"is in use by another run (process {os.getpid()})" in done.stderr
        done = here("train", *command, *job, "model.block_size=100000", cwd=cwd)
        assert done.returncode == 2
        assert "model.block_size=100000 needs" in done.stderr
        assert (contents(cwd), {path.name for path in base.rglob("*")}) == before
    done = here("train", *command, "run.name=base", cwd=cwd)
    assert done.returncode == 0, done.stderr


def test_a_run_that_started_from_other_weights_is_resumed_without_them(
    cwd: Path, data: list[str]
) -> None:
    tuned = [*data, *TINY_RUN, "init_from=outputs/base", "run.name=tuned"]
    assert here("train", *tuned, cwd=cwd).returncode == 0
    shutil.rmtree(cwd / "outputs/base")
    done = here("train", "resume=outputs/tuned", "trainer.max_steps=8", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(cwd / "outputs/tuned")] == list(range(9))


def test_the_same_weights_elsewhere_are_the_same_and_others_are_not(
    cwd: Path, data: list[str]
) -> None:
    command = [*data, *TINY_RUN, "run.name=tuned"]
    done = here("train", *command, "init_from=outputs/base", cwd=cwd)
    assert done.returncode == 0, done.stderr
    digest = summary(cwd / "outputs/tuned")["config_digest"]
    assert load_plain(cwd / "outputs/tuned")["init_from"] == "outputs/base"
    shutil.copytree(cwd / "outputs/base", cwd / "moved", symlinks=True)
    for same in ("outputs/base/", f"{cwd}/outputs/base", "moved", "moved/checkpoints/best"):
        done = here("train", *command, f"init_from={same}", cwd=cwd)
        assert "outputs/tuned is finished already" in done.stdout, done.stderr
    done = here("train", *command[:-1], "run.name=again", "init_from=moved", cwd=cwd)
    assert summary(cwd / "outputs/again")["config_digest"] == digest
    (other,) = (cwd / "outputs/base/checkpoints").glob("step-00000004")
    done = here("train", *command, f"init_from={other}", cwd=cwd)
    assert done.returncode == 2
    said = f"init_from was outputs/base, now {other}, and its weights are not the same"
    assert said in done.stderr
    done = here("train", *command, "init_from=nowhere", cwd=cwd)
    assert done.returncode == 2
    assert "init_from=nowhere does not exist" in done.stderr
    shutil.rmtree(cwd / "outputs/base")
    done = here("train", *command, "init_from=outputs/base", cwd=cwd)
    assert "outputs/tuned is finished already" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("run.sweep=x", "add -m"),
        ("logger.project=me/llm", "logger.project=me/llm"),
        ("logger.tags=['']", "1 to 64 characters"),
    ],
)
def test_it_is_refused_before_anything_is_made(
    typed: str, named: str, cwd: Path, data: list[str]
) -> None:
    before = set(contents(cwd))
    done = here("train", *data, *TINY_RUN, typed, cwd=cwd)
    assert done.returncode == 2
    assert named in done.stderr
    assert set(contents(cwd)) == before


def test_a_run_is_not_resumed_with_another_optimizer(cwd: Path) -> None:
    before = contents(cwd / "outputs/base")
    done = here("train", "resume=outputs/base", "optimizer=adamw", "trainer.max_steps=9", cwd=cwd)
    assert done.returncode == 2
    assert "was trained with optimizer=muon" in done.stderr
    assert "init_from=outputs/base" in done.stderr
    assert contents(cwd / "outputs/base") == before
