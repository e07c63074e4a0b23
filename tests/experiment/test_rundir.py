"""A run folder belongs to one run; its summary is complete and says how the run ended."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from llm.errors import DiskError, Diverged, Interrupted, OutOfMemory, Refused
from llm.experiment import rundir
from llm.experiment.rundir import (
    claim,
    cut_metrics,
    git_commit,
    new_folder,
    read_summary,
    recording,
    versions,
    write_summary,
)
from llm.signals import Signalled, listener, raised
from tests.command_line import listing, summary
from tests.conftest import HANGS, ROOT

# Scripts rely on these keys.
CONTRACT = [
    "status", "reason", "step", "tokens", "parameters", "best_val_loss", "val_loss",
    "bits_per_byte", "evaluation", "tokens_per_second", "peak_memory_bytes",
    "reserved_memory_bytes", "predicted_memory_bytes", "memory_changes", "wall_seconds",
    "train_seconds", "config_digest", "data_digest", "git_commit", "versions",
]  # fmt: skip
AGAIN = "python run_train.py 'resume=outputs/it'\\''s'"
FULL_DISK = OSError(errno.ENOSPC, "No space left on device", "checkpoints/step-1")


def test_two_runs_in_the_same_second_get_two_folders(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path) for _ in range(5)]
    assert len(set(folders)) == 5
    for folder in folders:
        assert folder.is_dir()
        assert not list(folder.iterdir())
        relative = folder.relative_to(tmp_path)
        assert len(relative.parts) == 2
        assert set(str(relative)) <= set("0123456789-/")


def test_a_folder_that_exists_is_never_claimed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").touch()
    assert [claim(tmp_path / "a").name, claim(tmp_path / "a").name] == ["a-3", "a-4"]


def test_a_summary_has_the_keys_of_the_contract_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_summary(tmp_path, status="finished", step=3, invented="no")
    written = summary(tmp_path)
    assert list(written) == CONTRACT
    assert (written["status"], written["step"], written["reason"]) == ("finished", 3, None)
    assert read_summary(tmp_path) == written
    assert listing(tmp_path) == {"summary.json"}


def test_a_summary_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    write_summary(tmp_path, status="finished", step=3)
    before = (tmp_path / "summary.json").read_bytes()
    with patch.object(os, "fsync", side_effect=FULL_DISK), pytest.raises(OSError, match="space"):
        write_summary(tmp_path, status="killed")
    assert (tmp_path / "summary.json").read_bytes() == before


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"status": "finis', "\udcff"])
def test_a_missing_or_torn_summary_is_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        raw = text.encode("utf-8", errors="surrogateescape")
        (tmp_path / "summary.json").write_bytes(raw)
    assert read_summary(tmp_path) is None


def test_rows_after_a_step_and_torn_rows_are_cut(tmp_path: Path) -> None:
    metrics = [json.dumps({"step": step, "train/loss": 1.0}) for step in range(6)]
    torn = '{"step": 2, "tok'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*metrics, torn]), encoding="utf-8")
    odd = json.dumps({"step": 2, "text": "a\u2028b\x85c"}, ensure_ascii=False)
    late = json.dumps({"step": 4, "text": "x"})
    raw = f"{odd}\n{late}\n".encode() + '{"step": 4, "text": "é'.encode()[:-1]
    (tmp_path / "samples.jsonl").write_bytes(raw)
    cut_metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(metrics[:4]) + "\n"
    assert (tmp_path / "samples.jsonl").read_text(encoding="utf-8") == odd + "\n"
    cut_metrics(tmp_path, -1)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_finished_run_is_recorded(tmp_path: Path) -> None:
    write_summary(tmp_path, status="interrupted", wall_seconds=100.0)
    start = time.perf_counter()
    with recording(tmp_path, {"config_digest": "c"}, AGAIN, remove_if_refused=True) as facts:
        assert read_summary(tmp_path) is None, "the old summary is deleted"
        logging.getLogger("llm").info("hello")
        facts["step"] = 7
    found = summary(tmp_path)
    assert (found["status"], found["reason"], found["step"]) == ("finished", None, 7)
    assert found["config_digest"] == "c"
    took = time.perf_counter() - start
    assert 100 <= found["wall_seconds"] <= 100 + took, "time before an interruption counts"
    assert found["versions"] == versions()
    assert {"python", "torch", "numpy", "tiktoken", "hydra-core"} <= found["versions"].keys()
    assert found["git_commit"] == git_commit()
    logging.getLogger("llm").info("from the next run")
    log = (tmp_path / "run_train.log").read_text(encoding="utf-8")
    assert "INFO hello" in log and "next run" not in log


ENDS = [
    (Diverged("the loss is nan"), Diverged, "diverged", "the loss is nan"),
    (OutOfMemory("no room"), OutOfMemory, "out_of_memory", "no room"),
    (MemoryError(), OutOfMemory, "out_of_memory", "out of memory"),
    (RuntimeError("can't allocate memory: 9 GB"), OutOfMemory, "out_of_memory", "9 GB"),
    (FULL_DISK, DiskError, "disk_error", "checkpoints/step-1: No space left on device"),
    (ZeroDivisionError("oh"), ZeroDivisionError, "failed", "ZeroDivisionError: oh"),
    (KeyboardInterrupt(), Interrupted, "interrupted", "stopped at once by Ctrl-C"),
    (FileNotFoundError(errno.ENOENT, "gone"), FileNotFoundError, "failed", "gone"),
]


@pytest.mark.parametrize(
    ("error", "raised", "status", "reason"), ENDS, ids=[repr(case[0])[:30] for case in ENDS]
)
def test_every_end_has_its_status_and_reason(
    error: BaseException, raised: type, status: str, reason: str, tmp_path: Path
) -> None:
    facts = {"step": 3}
    with pytest.raises(raised), recording(tmp_path, facts, AGAIN, remove_if_refused=True):
        raise error
    found = summary(tmp_path)
    assert found["status"] == status
    assert reason in found["reason"]
    log = (tmp_path / "run_train.log").read_text(encoding="utf-8")
    assert "ERROR" in log
    assert ("Traceback" in log) is not isinstance(error, Diverged | OutOfMemory)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (
            Interrupted("SIGTERM at step 4: the checkpoint is saved"),
            "SIGTERM at step 4: the checkpoint is saved",
        ),
        (Signalled(signal.SIGUSR1), "SIGUSR1 before the first step"),
    ],
    ids=["in the loop", "while it is set up"],
)
def test_an_interrupted_run_says_how_to_resume_on_the_screen_only(
    end: BaseException, reason: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(Interrupted) as stop,
        recording(tmp_path, {}, AGAIN, remove_if_refused=True),
    ):
        raise end
    assert str(stop.value) == f"{reason}; to continue: {AGAIN}"
    found = summary(tmp_path)
    assert (found["status"], found["reason"]) == ("interrupted", reason)
    log = (tmp_path / "run_train.log").read_text(encoding="utf-8")
    assert log.endswith(f"ERROR interrupted: {reason}\n")


STOPPED_AT_ONCE = """
import llm.start, os, signal, sys
from pathlib import Path
from llm.experiment.rundir import recording
from llm.signals import remembered
with recording(Path(sys.argv[1]), {}, sys.argv[2], True), remembered():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_second_ctrl_c_says_how_to_continue_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED_AT_ONCE, str(tmp_path), AGAIN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == f"stopped at once; to continue: {AGAIN}"
    with recording(tmp_path, {}, AGAIN, remove_if_refused=True):
        assert len(listener.at_once) == 1
    assert not listener.at_once


def test_a_signal_before_the_first_step_is_recorded_too(tmp_path: Path) -> None:
    write_summary(tmp_path, status="finished")
    git = patch.object(rundir, "git_commit", side_effect=Signalled(signal.SIGINT))
    with git, pytest.raises(Interrupted), recording(tmp_path, {}, AGAIN, True):
        raise AssertionError("the signal was ignored")
    assert summary(tmp_path)["status"] == "interrupted"


def test_a_signal_after_training_does_not_interrupt_writing(tmp_path: Path) -> None:
    replace_text = rundir.replace_text

    def interrupted(path: Path, text: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        replace_text(path, text)

    writing = patch.object(rundir, "replace_text", interrupted)
    try:
        with writing, raised(), pytest.raises(Diverged), recording(tmp_path, {}, AGAIN, True):
            raise Diverged("nan", loss=1.0)
    finally:
        listener.stop_listening()
    assert {"summary.json", "diverged.json"} <= listing(tmp_path)


def test_the_numbers_of_a_divergence_are_written_as_standard_json(tmp_path: Path) -> None:
    facts = {"step": 9, "loss": math.nan, "grad_norm": -math.inf, "positions": [3, 1], "scale": 1.0}
    with pytest.raises(Diverged), recording(tmp_path, {}, AGAIN, True):
        raise Diverged("step 9: loss nan", **facts)
    text = (tmp_path / "diverged.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "reason": "step 9: loss nan", "step": 9, "loss": "nan", "grad_norm": "-inf",
        "positions": [3, 1], "scale": 1.0,
    }  # fmt: skip


def test_a_resumed_run_deletes_diverged_json(tmp_path: Path) -> None:
    with pytest.raises(Diverged), recording(tmp_path, {}, AGAIN, True):
        raise Diverged("nan")
    with recording(tmp_path, {}, AGAIN, True):
        assert listing(tmp_path) == {"run_train.log"}
    assert listing(tmp_path) == {"run_train.log", "summary.json"}


def test_a_refused_run_leaves_no_folder_but_a_refused_job_leaves_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for remove in (True, False):
        folder = new_folder(Path("outputs"))
        with pytest.raises(Refused), recording(folder, {}, AGAIN, remove_if_refused=remove):
            raise Refused("no")
        assert (tmp_path / "outputs").exists() is not remove
    assert summary(folder)["status"] == "refused"


def test_a_full_disk_does_not_hide_why_a_run_ended(tmp_path: Path) -> None:
    with patch.object(rundir, "write_summary", side_effect=FULL_DISK):
        with pytest.raises(Diverged, match="nan"), recording(tmp_path, {}, AGAIN, True):
            raise Diverged("nan")
        with pytest.raises(DiskError, match=r"summary.json"), recording(tmp_path, {}, AGAIN, True):
            pass
