"""Rows are logged to metrics.jsonl and W&B; an error of W&B never ends a run."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from llm.errors import DiskError, Diverged, Refused
from llm.experiment import loggers
from llm.experiment.loggers import RunLogger, new_run_id, open_logger
from llm.settings.schema import LoggerSection
from llm.signals import Signalled
from tests import wandb_file
from tests.command_line import listing, rows, wait_until
from tests.conftest import ROOT, needs_linux

CONFIG = {"model": {"n_layer": 4}, "optimizer": {"betas": [0.9, 0.95]}, "seed": 1}
KEY = "k" * 40


@dataclass
class Saved:
    """The parts of a checkpoint that a logger reads."""

    step: int
    state: dict[str, Any]


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a key, a terminal or settings for W&B."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_RUN_ID", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture(scope="module", autouse=True)
def no_service() -> Iterator[None]:
    """End W&B's service after this file, or later processes use it."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "multirun" / "depth" / "job_1"
    path.mkdir(parents=True)
    return path


def log(logger: RunLogger) -> None:
    """Three rows, as a trainer writes them."""
    logger.log({"step": 0, "tokens": 0, "val/loss": 4.0})
    logger.tick(2)
    logger.log({"step": 2, "tokens": 128, "train/loss": 3.5, "mfu": None})
    logger.sample(4, "<", "O & <b>", {"distinct_1": 1.0})
    logger.log({"step": 4, "tokens": 256, "train/loss": 3.0, "val/loss": 3.25})


def test_without_wandb_the_files_are_written_and_wandb_is_not_imported(folder: Path) -> None:
    with (
        patch.dict(sys.modules, {"wandb": None}),
        open_logger(folder, None, LoggerSection(mode="disabled"), CONFIG, 4, None) as logger,
    ):
        log(logger)
        assert rows(folder)[2]["val/loss"] == 3.25, "a row is written at once"
    assert rows(folder)[1] == {"step": 2, "tokens": 128, "train/loss": 3.5, "mfu": None}
    assert len(rows(folder)) == 3
    sample = (folder / "samples.jsonl").read_text(encoding="utf-8")
    assert sample == '{"step": 4, "prompt": "<", "text": "O & <b>", "distinct_1": 1.0}\n'
    assert listing(folder) == {"metrics.jsonl", "samples.jsonl"}


def test_an_offline_run_has_everything_and_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_train.py", "--password=hunter2"])
    options = LoggerSection(project="p", entity="me", tags=["a", "b c"], notes="what's, this?")
    sweep = folder.parent
    with open_logger(folder, None, options, CONFIG, 4, sweep) as logger:
        log(logger)
    found = wandb_file.read(folder)
    run = found["run"]
    assert (run.project, run.entity, run.display_name) == ("p", "me", "job_1")
    assert (run.run_group, run.job_type, run.notes) == ("depth", "train", "what's, this?")
    assert (list(run.tags), run.run_id) == (["a", "b c"], logger.run_id)
    assert {key: found["config"][key] for key in CONFIG} == CONFIG
    assert found["exit_code"] == 0

    history = [row for row in found["history"] if "sample" not in row]
    plain = [{k: v for k, v in row.items() if not k.startswith("_")} for row in found["history"]]
    assert plain[0] == {"tokens": 0, "val/loss": 4.0}
    assert plain[1] == {"tokens": 128, "train/loss": 3.5}, "None is left out"
    assert [row["_step"] for row in history][:2] == [0, 2]
    assert found["history"][-1]["_step"] == 4
    axes = {m.name or m.glob_name: m for m in found["metrics"]}
    assert axes["*"].step_metric == axes["val/loss"].step_metric == "tokens"
    assert axes["val/loss"].summary.min
    media = [path.read_text(encoding="utf-8") for path in folder.glob("wandb/*/files/**/*.html")]
    assert any("&lt;O &amp; &lt;b&gt;" in text for text in media)

    link = sweep / "wandb" / next(folder.glob("wandb/offline-run-*")).name
    assert link.is_symlink()
    assert not Path(link.readlink()).is_absolute(), "the folder of the sweep can be moved"
    assert wandb_file.read_file(next(link.glob("*.wandb")))["raw"] == found["raw"]

    files = [path for path in folder.glob("wandb/*/files/**/*") if path.is_file()]
    uploaded = found["raw"] + b"".join(path.read_bytes() for path in files)
    for secret in ("hunter2", str(folder), str(ROOT)):
        assert secret.encode() not in uploaded, secret
    assert run.host == ""
    assert not list(folder.glob("wandb/*/files/wandb-metadata.json"))
    assert "wandb:" not in "".join(capfd.readouterr())


def test_a_resumed_run_keeps_its_id_and_a_named_run_its_name(folder: Path) -> None:
    checkpoint: Any = Saved(4, {"run_id": "abcd1234"})
    with open_logger(
        folder, checkpoint, LoggerSection(name="deep, wide"), CONFIG, 8, None
    ) as logger:
        logger.log({"step": 5, "tokens": 320, "train/loss": 2.0})
    found = wandb_file.read(folder)
    assert logger.run_id == found["run"].run_id == "abcd1234"
    assert found["run"].display_name == "deep, wide"
    assert found["run"].run_group == ""
    assert [row["_step"] for row in found["history"]] == [5]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(Diverged("nan"), 3), (ZeroDivisionError(), 1), (Signalled(signal.SIGTERM), 75)],
)
def test_wandb_gets_the_exit_status(error: BaseException, exit_code: int, folder: Path) -> None:
    with pytest.raises(type(error)), open_logger(folder, None, LoggerSection(), {}, 4, None):
        raise error
    assert wandb_file.read(folder)["exit_code"] == exit_code


def test_a_rollback_deletes_later_rows_and_writes_the_earlier_ones_to_one_new_segment(
    folder: Path,
) -> None:
    with open_logger(folder, None, LoggerSection(), CONFIG, 4, folder.parent) as logger:
        log(logger)
        logger.rewind(2)
        assert [row["step"] for row in rows(folder)] == [0, 2]
        assert (folder / "samples.jsonl").read_text(encoding="utf-8") == ""
        logger.log({"step": 3, "tokens": 192, "train/loss": 3.25})
        logger.sample(4, "<", "again", {})
        logger.log({"step": 4, "tokens": 256, "train/loss": 3.0})
    assert [row["step"] for row in rows(folder)] == [0, 2, 3, 4]
    assert "again" in (folder / "samples.jsonl").read_text(encoding="utf-8")
    found = wandb_file.read(folder)
    assert (found["run"].run_id, found["exit_code"]) == (logger.run_id, 0)
    assert [row["_step"] for row in found["history"]] == [0, 2, 3, 4]
    assert [row["_step"] for row in found["history"] if "sample.path" in row] == [4]
    (link,) = (folder.parent / "wandb").iterdir()
    assert wandb_file.read_file(next(link.glob("*.wandb")))["raw"] == found["raw"]


def test_a_run_is_logged_in_its_folder_though_the_process_has_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):  # W&B's service stays where the first run has started it
        (folder / name / "run").mkdir(parents=True)
        monkeypatch.chdir(folder / name)
        with open_logger(Path("run"), None, LoggerSection(), CONFIG, 4, None) as logger:
            log(logger)
        found = wandb_file.read(folder / name / "run")
        assert [row["_step"] for row in found["history"]] == [0, 2, 4]


@pytest.mark.slow
def test_an_older_segment_stays_until_the_new_one_has_its_rows_on_the_disk(folder: Path) -> None:
    sweep = folder.parent
    with open_logger(folder, None, LoggerSection(), CONFIG, 4, sweep) as logger:
        log(logger)
    wandb_file.read(folder)
    (first,) = folder.glob("wandb/offline-run-*")
    checkpoint: Any = Saved(4, {"run_id": logger.run_id})
    with open_logger(folder, checkpoint, LoggerSection(), CONFIG, 8, sweep) as logger:
        # W&B's service writes after two seconds at the earliest.
        assert [path.name for path in (sweep / "wandb").iterdir()] == [first.name]
        assert len(list(folder.glob("wandb/offline-run-*"))) == 2
        wait_until(lambda: logger.log({"step": 5, "tokens": 320}) or not first.exists())
        (link,) = (sweep / "wandb").iterdir()
        assert link.name != first.name and link.is_dir()
        steps = {
            row["_step"] for row in wandb_file.read_file(next(link.glob("*.wandb")))["history"]
        }
        assert steps >= {0, 2, 4}, "as many as a kill now would leave"


def test_a_link_that_another_job_deletes_meanwhile_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = folder.parent / "wandb"
    links.mkdir()
    other = links / "offline-run-20260101_000000-abcd1234"
    other.symlink_to("../job_2/wandb/offline-run-20260101_000000-abcd1234")
    readlink = Path.readlink

    def deleted(path: Path) -> Path:
        if path == other:
            other.unlink()
        return readlink(path)

    monkeypatch.setattr(Path, "readlink", deleted)
    with open_logger(folder, None, LoggerSection(), CONFIG, 4, folder.parent) as logger:
        log(logger)
        assert logger.service is not None
    assert not other.is_symlink()


def test_segments_behind_a_link_are_not_deleted(folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere" / "offline-run-20260101_000000-abcd1234" / "run-abcd1234.wandb"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"of another run")
    (folder / "wandb").symlink_to(foreign.parent.parent)
    with open_logger(folder, None, LoggerSection(), CONFIG, 4, None) as logger:
        log(logger)
    assert foreign.exists()


@needs_linux
def test_rows_are_on_the_disk_after_sync(folder: Path) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(path.read_text(encoding="utf-8"))

    with open_logger(folder, None, LoggerSection(mode="disabled"), CONFIG, 4, None) as logger:
        logger.log({"step": 0, "tokens": 0})
        with patch.object(os, "fsync", fsync):
            logger.sync()
    assert synced == ['{"step": 0, "tokens": 0}\n']


def test_a_failed_write_names_the_file_and_the_free_space(folder: Path) -> None:
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    (folder / "samples.jsonl").symlink_to("/dev/full")
    full = r"could not be written: No space left on device \([\d.]+ [KMG]iB free\)"
    with open_logger(folder, None, LoggerSection(mode="disabled"), CONFIG, 4, None) as logger:
        with pytest.raises(DiskError, match=f"^{folder}/metrics.jsonl {full}"):
            logger.log({"step": 0, "tokens": 0})
        with pytest.raises(DiskError, match=f"^{folder}/samples.jsonl {full}"):
            logger.sample(0, "<", "text", {})
        broken = OSError(errno.EIO, "Input/output error")
        with (
            patch.object(os, "fsync", side_effect=broken),
            pytest.raises(DiskError, match=r"/metrics.jsonl could not be written: Input/output"),
        ):
            logger.sync()
        with (
            patch.object(loggers, "cut_metrics", side_effect=broken),
            pytest.raises(DiskError, match=r"/metrics.jsonl could not be written: Input/output"),
        ):
            logger.rewind(0)


@pytest.mark.parametrize("broken", ["wandb.init", "wandb.Run.log", "wandb.Run.finish"])
def test_an_error_of_wandb_is_one_warning_and_the_run_continues(
    broken: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    with (
        patch(broken, side_effect=RuntimeError("oh")),
        open_logger(folder, None, LoggerSection(), CONFIG, 4, None) as logger,
    ):
        log(logger)
    wandb.finish()  # else the next run of this process would continue this one
    assert [row["step"] for row in rows(folder)] == [0, 2, 4]
    assert capfd.readouterr().out.count("logged to metrics.jsonl only: RuntimeError: oh") == 1


@pytest.mark.parametrize(
    ("key", "warning"), [(None, "without an API key"), ("short", "API key must have 40+")]
)
def test_online_without_a_usable_key_is_offline_with_one_warning(
    key: str | None,
    warning: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with open_logger(folder, None, LoggerSection(mode="online"), CONFIG, 4, None) as logger:
        log(logger)
    shown = capfd.readouterr()
    warnings = [line for line in shown.out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert warning in warnings[0]
    assert shown.err == ""
    assert len(wandb_file.read(folder)["history"]) >= 3
    assert [path.name[:11] for path in folder.glob("wandb/*run-*")] == ["offline-run"]


@pytest.mark.slow  # W&B tries for 15 s
def test_online_without_a_network_is_offline_with_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    wandb.teardown()  # so that it reads the environment again
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with open_logger(folder, None, LoggerSection(mode="online"), CONFIG, 4, None) as logger:
        log(logger)
    shown = capfd.readouterr()
    assert shown.out.count("warning: W&B cannot be used online, so this run is logged offline") == 1
    assert shown.err in ("", "starting W&B ...\n")  # shown only if it takes long
    assert len(wandb_file.read(folder)["history"]) >= 3
    assert wandb_file.read(folder)["run"].run_id == logger.run_id
    wandb.teardown()


def test_a_new_id_has_the_form_of_wandb_or_is_the_id_of_an_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = {new_run_id() for _ in range(20)}
    assert len(ids) == 20
    assert all(len(i) == 8 and i.isalnum() and i == i.lower() for i in ids)
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert new_run_id() == "given"
    monkeypatch.setenv("WANDB_RUN_ID", "exp.1")  # a resume would refuse it
    with pytest.raises(Refused, match=r"WANDB_RUN_ID is not an id of letters.*'exp\.1'"):
        new_run_id()
