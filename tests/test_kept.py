"""This version reads runs, checkpoints and prepared data of earlier ones, since 0.2.0.

``python -m tests.test_kept`` makes the files of a new version, after ``llm.__version__`` changed.
Never remake the files of a released version.
"""

import json
import shutil
from pathlib import Path

import pytest

import llm
from llm.checkpoint.find import find_checkpoint, read_manifest
from tests.command_line import here, rows, summary
from tests.conftest import ROOT

KEPT = ROOT / "tests" / "kept"
TEXT = "What say you, my lord?\n" * 40
TRAIN = [
    "data=text", "data.path=play.txt", "data.tokenizer=char", "data.dir=prepared", "run.dir=run",
    "model.n_layer=1", "model.n_embed=8", "model.head_size=8", "model.block_size=8",
    "trainer.max_steps=2", "trainer.batch_size=2", "trainer.eval_interval=2",
    "trainer.eval_batches=1", "trainer.checkpoint_interval=2", "trainer.keep_last=1",
    "trainer.device=cpu", "logger=none",
]  # fmt: skip


@pytest.mark.parametrize("version", sorted(path.name for path in KEPT.glob("*")))
def test_a_run_of_an_earlier_version_is_sampled_verified_and_resumed(
    version: str, tmp_path: Path
) -> None:
    shutil.copytree(KEPT / version, tmp_path, symlinks=True, dirs_exist_ok=True)
    assert read_manifest(find_checkpoint("ckpt", str(tmp_path / "run"))).step == 2
    sampled = here("sample", "ckpt=run", "max_new_tokens=4", "device=cpu", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    verified = here("train", "resume=run", "verify=true", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    resumed = here("train", "resume=run", "trainer.max_steps=4", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "run")[-1]["step"] == summary(tmp_path / "run")["step"] == 4
    started_from = here("train", *TRAIN, "run.dir=new", "init_from=run", cwd=tmp_path)
    assert started_from.returncode == 0, started_from.stderr


def make() -> Path:
    """Train the run of this version in ``tests/kept/<version>``."""
    folder = KEPT / llm.__version__
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "play.txt").write_text(TEXT, encoding="utf-8")
    done = here("train", *TRAIN, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "run/run_train.log").unlink()
    path = folder / "run/summary.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"git_commit": None}, indent=1) + "\n"
    )
    return folder


if __name__ == "__main__":
    print(make())
