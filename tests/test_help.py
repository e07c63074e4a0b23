"""Help, the composed configuration and shell completion: at once, and without torch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

HELP = ["model=small data=shakespeare", "cosine, wsd", "max_steps: ", "-sc install"]
QUICK: list[tuple[str, list[str], str, list[str]]] = [
    ("train", ["--help"], "", HELP),
    ("train", ["--cfg", "job", "model=small"], "", ["n_embed: 768", "block_size: 128", "seed: 13"]),
    ("train", ["-sc", "query=bash"], "model=", ["model=nano", "model=gpt2"]),
    ("train", ["-sc", "query=bash"], "trainer.max_s", ["trainer.max_steps="]),
    ("plan", ["--help"], "", [*HELP, "memory.largest=n_layer", "picture: null"]),
    ("plan", ["--cfg", "job", "model=small"], "", ["n_embed: 768", "largest: null"]),
    ("plan", ["-sc", "query=bash"], "sweep=", ["sweep=depth", "sweep=width"]),
    ("plan", ["-sc", "query=bash"], "memory.la", ["memory.largest="]),
]


def timed(command: list[str], **options: Any) -> tuple[subprocess.CompletedProcess[str], float]:
    """What came of a command, and its seconds of the processor."""
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    after = os.times()
    return done, after[2] - before[2] + after[3] - before[3]


@pytest.mark.parametrize(
    ("name", "typed", "line", "words"), QUICK, ids=[f"{n} {t[0]} {c}" for n, t, c, _ in QUICK]
)
def test_help_and_completion_answer_at_once_without_torch(
    name: str, typed: list[str], line: str, words: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / f"run_{name}.py"), *typed]
    line = f"python run_{name}.py {line}" if line else ""
    environment = os.environ | ({"COMP_LINE": line} if line else {})
    for _ in range(3):
        done, seconds = timed(command, cwd=tmp_path, env=environment)
        # Or others slow the machine down, and what no command can do without as well.
        if seconds < max(1, 2.5 * timed([sys.executable, "-c", "import hydra"])[1]):
            break
    else:
        pytest.fail(f"{seconds:.2f} s")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
    loaded = {entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines()}
    assert "hydra" in loaded
    assert not {"torch", "wandb", "numpy", "tiktoken"} & loaded
    assert not list(tmp_path.iterdir())
    if typed[0] == "--cfg":
        assert yaml.safe_load(done.stdout)["model"]["n_layer"] == 10
