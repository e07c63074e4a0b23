"""A run that died at any step continues in a new process to the bits of an unbroken run."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm.checkpoint.folder import resumable
from llm.disk import withdraw
from tests.conftest import HANGS, ROOT
from tests.test_signals_anywhere import differences

pytestmark = pytest.mark.slow
STEPS = 12
OPTIONS = [
    "model.n_layer=1", "model.n_embed=32", "model.head_size=16", "model.block_size=16",
    "model.dropout=0.1", f"trainer.max_steps={STEPS}", "trainer.batch_size=200",
    "trainer.eval_interval=4", "trainer.eval_batches=2", "trainer.log_interval=1",
    "trainer.checkpoint_interval=1", "trainer.keep_last=100", "trainer.device=cpu", "logger=none",
]  # fmt: skip


def train(cwd: Path, *options: str) -> None:
    command = [sys.executable, str(ROOT / "run_train.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr


def died_after(whole: Path, step: int, place: Path) -> Path:
    """A copy of a run that looks as if it had been killed right after ``step``."""
    run = Path(shutil.copytree(whole, place / "outputs" / "run", symlinks=True))
    (run / "summary.json").unlink()
    for path in resumable(run / "checkpoints")[step:]:
        withdraw(path)
    return run


# The sixth step ends one epoch and begins another.
@pytest.mark.parametrize(
    ("options", "died_at"),
    [
        (["precision=fp32", "trainer.micro_batch_size=200"], (1, 5, 6, STEPS - 1)),
        (["precision=bf16", "trainer.micro_batch_size=50"], (6, STEPS - 1)),
        (["precision=fp16", "trainer.micro_batch_size=50"], (1, 6)),
        (["trainer.compile=true"], (5,)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_dead_run_continues_to_the_same_bits(
    options: list[str], died_at: tuple[int, ...], tmp_path: Path, text_file: Path
) -> None:
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=char"]
    command = [*data, *OPTIONS, *options, "run.name=run"]
    train(tmp_path, *command)
    whole = tmp_path / "outputs" / "run"

    def check(step: int) -> None:
        place = tmp_path / f"died-{step}"
        run = died_after(whole, step, place)
        train(place, *command)
        assert differences(run, whole) == []

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, died_at))
