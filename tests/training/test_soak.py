"""A long run takes no more memory, files or disk at its end than soon after its start."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.sampling.options import SamplingOptions
from tests.conftest import needs_linux
from tests.training.conftest import MakeTrainer

pytestmark = [needs_linux, pytest.mark.slow]
STEPS, WARM = 20_000, 4_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_twenty_thousand_steps_take_no_more_memory_files_or_disk(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
) -> None:
    monkeypatch.setattr("llm.training.trainer.SAMPLE", SamplingOptions(max_new_tokens=20))
    trainer = make_trainer(
        max_steps=STEPS, batch_size=2, checkpoint_interval=200, eval_interval=500, log_interval=50,
        sample_interval=1000,
    )  # fmt: skip
    memory, files, disk = [], [], []

    def look(step: int) -> None:
        trainer.logger.rows.clear()  # the notebook of this test is not what is measured
        trainer.logger.samples.clear()
        trainer.logger.steps.clear()
        if step >= WARM and step % 1000 == 1:
            memory.append(resident_bytes())
            files.append(len(os.listdir("/proc/self/fd")))
            found = [path for path in trainer.folder.rglob("*") if path.is_file()]
            disk.append(sum(path.stat().st_size for path in found))

    trainer.logger.on_tick = look
    assert trainer.fit().step == STEPS
    grown = (memory[-1] - memory[0]) / 2**20
    used = disk[-1] / 2**20
    report(f"soak: steps={STEPS} grown_mib={grown:.1f} files={files[-1]} disk_mib={used:.1f}")
    assert grown < 20
    assert len(set(files)) == 1
    assert max(disk) < 1.1 * min(disk)
