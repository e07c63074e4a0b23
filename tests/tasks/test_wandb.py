"""The results of an evaluation are added to the run in W&B."""

import json
from pathlib import Path

from tests.command_line import here
from tests.conftest import PLAY, TINY_RUN
from tests.test_eval_command import DATA, tasks_of
from tests.wandb_file import read, records


def test_the_results_are_added_to_the_offline_run_of_wandb(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    typed = [word for word in TINY_RUN if word != "logger=none"]
    done = here("train", *DATA, *typed, "run.name=logged", "logger.mode=offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read(tmp_path / "outputs/logged")
    found = tasks_of(tmp_path, "outputs/logged")["loss"]
    assert read(tmp_path / "outputs/logged")["history"][-1]["val/loss"] > 0
    (path,) = tmp_path.glob("outputs/logged/wandb/offline-run-*/*.wandb")
    kinds = [record for record in records(path) if record.WhichOneof("record_type") == "summary"]
    logged = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in kinds
        for item in record.summary.update
    }
    assert logged["eval/loss"] == found["loss"]
    assert logged["eval/bits/byte"] == found["bits_per_byte"]
