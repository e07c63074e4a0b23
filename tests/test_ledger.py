"""The ledger and the note of a run, by commands as they are typed."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm.checkpoint.find import find_checkpoint, read_manifest
from tests.command_line import Done, here, summary
from tests.conftest import TINY_RUN

NOTE = "try relu2, (again) ${seed} 'x'\nnext line"
SUMMARIZED = (
    "reason", "config_digest", "data_digest", "git_commit", "best_val_loss", "val_loss",
    "bits_per_byte", "step", "tokens", "parameters", "peak_memory_bytes", "train_seconds",
    "wall_seconds",
)  # fmt: skip


@pytest.fixture
def data(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte", *TINY_RUN]


def ledger(cwd: Path) -> list[dict[str, Any]]:
    text = (cwd / "outputs/ledger.jsonl").read_text(encoding="ascii")
    return [json.loads(line) for line in text.splitlines()]


def trained(cwd: Path, *typed: str) -> Done:
    done = here("train", *typed, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def test_each_end_of_a_run_is_a_line_and_the_same_run_elsewhere_is_named(
    tmp_path: Path, data: list[str]
) -> None:
    shown = trained(tmp_path, *data, "run.name=a", f"run.note={NOTE}").stdout
    assert "try relu2, (again) ${seed} 'x'" in shown and "already run" not in shown
    first, found = ledger(tmp_path)[-1], summary(tmp_path / "outputs/a")
    assert {key: first[key] for key in SUMMARIZED} == {key: found[key] for key in SUMMARIZED}
    assert (first["folder"], first["status"], first["sweep"]) == ("outputs/a", "finished", None)
    assert (first["seed"], first["note"]) == (1337, NOTE)
    assert first["overrides"] == [*data, "run.name=a", f"run.note={NOTE}"]

    dry = trained(tmp_path, *data, "run.dry_run=true", "run.name=b").stdout
    named = f"already run: outputs/a, val loss {found['val_loss']:.4f}\n"
    assert named in dry
    again = trained(tmp_path, *data, "run.name=b", "run.note=other").stdout
    assert named in again and "next: " in again, "it is trained all the same"
    other = trained(tmp_path, *data, "seed=2", "run.dir=elsewhere/c").stdout
    assert "already run" not in other
    more = trained(tmp_path, "resume=outputs/b", "trainer.max_steps=8", "run.note=longer").stdout
    assert "already run" not in more
    trained(tmp_path, *data, "run.name=a")  # is finished already, so nothing ends
    here("train", *data, "run.name=a", "model.n_layer=2", cwd=tmp_path)  # refused

    _, second, third, fourth = ledger(tmp_path)
    assert second["config_digest"] == first["config_digest"], "a note changes no digest"
    assert third["config_digest"] != first["config_digest"]
    assert second["point"] == third["point"] == first["point"], "the seed is not part of it"
    assert (third["folder"], third["seed"], third["note"]) == ("elsewhere/c", 2, None)
    assert (fourth["folder"], fourth["step"], fourth["note"]) == ("outputs/b", 8, "longer")
    assert fourth["point"] != first["point"]
    manifest = read_manifest(find_checkpoint("ckpt", str(tmp_path / "outputs/a")))
    assert NOTE not in json.dumps(manifest.identity)


def test_a_diverged_run_is_a_line_and_a_refused_one_is_not(tmp_path: Path, data: list[str]) -> None:
    refused = here("train", *data, "model.n_embed=33", "run.name=a", cwd=tmp_path)
    assert refused.returncode == 2 and not (tmp_path / "outputs").exists()
    diverged = here(
        "train", *data, "run.name=a", "optimizer=adamw", "optimizer.lr=1e30",
        "trainer.max_skipped=1", cwd=tmp_path,
    )  # fmt: skip
    assert diverged.returncode == 3, diverged
    (line,) = ledger(tmp_path)
    assert (line["status"], line["folder"]) == ("diverged", "outputs/a")
    assert line["reason"] == summary(tmp_path / "outputs/a")["reason"]


@pytest.mark.slow
def test_a_note_of_a_sweep_is_for_all_its_jobs_and_names_no_folder(
    tmp_path: Path, data: list[str]
) -> None:
    words = ["-m", *data, "run.sweep=s", f"run.note={NOTE}"]
    done = here("train", *words, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = here("train", *words[:-1], "run.note=second", "seed=2,3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = ledger(tmp_path)
    assert [line["note"] for line in lines] == [NOTE, NOTE, "second"]
    assert {line["sweep"] for line in lines} == {"multirun/s"}
    assert [line["folder"] for line in lines] == [f"multirun/s/seed-{n}" for n in (1, 2, 3)]
    assert all(set(line["overrides"]) >= set(data) for line in lines)
    assert all(not word.startswith("run.dir=") for line in lines for word in line["overrides"])


def test_a_note_that_is_too_long_is_refused(tmp_path: Path, data: list[str]) -> None:
    done = here("train", *data, f"run.note={'x' * 10_001}", cwd=tmp_path)
    assert done.returncode == 2
    assert "run.note has 10001 characters: give at most 10000" in done.stderr
