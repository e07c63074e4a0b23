"""A run that died at any step goes on in a process of its own, to the bits of one that did not."""

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
    ("precision", "micro_batch", "died_at"),
    [("fp32", 200, (1, 5, 6, STEPS - 1)), ("bf16", 50, (6, STEPS - 1)), ("fp16", 50, (1, 6))],
)
def test_a_dead_run_goes_on_to_the_same_bits(
    precision: str, micro_batch: int, died_at: tuple[int, ...], tmp_path: Path, text_file: Path
) -> None:
    options = ["data=text", f"data.path={text_file}", "data.tokenizer=char", *OPTIONS]
    options += [f"precision={precision}", f"trainer.micro_batch_size={micro_batch}", "run.name=run"]
    train(tmp_path, *options)
    whole = tmp_path / "outputs" / "run"

    def goes_on(step: int) -> None:
        place = tmp_path / f"died-{step}"
        run = died_after(whole, step, place)
        train(place, *options)
        assert differences(run, whole) == []

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(goes_on, died_at))


def test_a_dead_run_that_is_compiled_goes_on_to_the_same_bits(
    tmp_path: Path, text_file: Path
) -> None:
    options = ["data=text", f"data.path={text_file}", "data.tokenizer=char", *OPTIONS]
    options += ["trainer.compile=true", "run.name=run"]
    train(tmp_path, *options)
    whole = tmp_path / "outputs" / "run"
    run = died_after(whole, 5, tmp_path / "died")
    train(tmp_path / "died", *options)
    assert differences(run, whole) == []
