"""Texts of any shape take little memory, and a kill at any moment leaves no half dataset."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from tests.conftest import HANGS, ROOT

MIB = 1 << 20
# Spaces for gpt2: a word of 200 MiB would take tiktoken minutes.
ONE_LINE = {"byte": "x" * MIB, "gpt2": ("What say you to our words, my lord? " * 30_000)[:MIB]}


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["byte", "gpt2"])
def test_a_line_of_200_mib_is_prepared_within_a_gigabyte_and_a_half(
    tmp_path: Path, tokenizer: str
) -> None:
    with (tmp_path / "line.txt").open("w") as file:
        file.writelines([ONE_LINE[tokenizer]] * 200)
    command = ["data=text", "data.path=line.txt", f"data.tokenizer={tokenizer}"]
    limited = ["sh", "-c", 'ulimit -v 1464843 && exec "$@"', "sh"]  # 1.5 GB of address space
    done = subprocess.run(
        [*limited, sys.executable, str(ROOT / "run_prepare.py"), *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "data").iterdir()
    made = Dataset.open(folder)
    made.verify()
    if tokenizer == "byte":
        assert len(made.train) + len(made.val) == 200 * MIB
    else:
        tail = made.val[-1000:].tolist()
        assert ONE_LINE[tokenizer].endswith(made.tokenizer.decode(tail))


PROCESS = """
import json, sys
from llm.data.config import DataConfig
from llm.data.prepare import prepare
print("ready", flush=True)
sys.stdin.readline()
prepare(DataConfig(**json.loads(sys.argv[1])))
"""


def killed_after(seconds: float, config: DataConfig) -> bool:
    """Start a process that prepares ``config`` and kill it; whether it was still running."""
    command = [sys.executable, "-c", PROCESS, json.dumps(asdict(config))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(seconds)
        process.kill()
    return process.returncode != 0


@pytest.mark.slow
def test_a_preparation_killed_at_any_moment_leaves_nothing_or_a_whole_folder(
    tmp_path: Path,
) -> None:
    path, chance = tmp_path / "play.txt", random.Random(0)
    path.write_text(ONE_LINE["gpt2"] * 4)
    config = DataConfig("play", "text", str(tmp_path / "data"), str(path), "byte", val_fraction=0.1)
    began = time.monotonic()
    folder = prepare(config)
    seconds, killed = time.monotonic() - began, 0
    for _ in range(10):
        if folder.exists():
            Dataset.open(folder).verify()
            shutil.rmtree(folder)
        in_time = killed_after(chance.uniform(0, 1.1 * seconds), config)
        killed += in_time
        seconds *= 1 if in_time else 0.7  # the machine was busier during the measurement
    assert killed  # the number depends on the machine
    assert prepare(config) == folder
    Dataset.open(folder).verify()
    assert list(folder.parent.iterdir()) == [folder]
