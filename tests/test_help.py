"""Help, the composed configuration and shell completion do not import torch, which takes seconds.

How long they take: ``python -m benchmarks.startup``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command_line import composed, here
from tests.conftest import HANGS, ROOT

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


@pytest.mark.parametrize(
    ("name", "typed", "line", "words"), QUICK, ids=[f"{n} {t[0]} {c}" for n, t, c, _ in QUICK]
)
def test_help_and_completion_answer_without_torch(
    name: str, typed: list[str], line: str, words: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / f"run_{name}.py"), *typed]
    line = f"python run_{name}.py {line}" if line else ""
    environment = os.environ | ({"COMP_LINE": line} if line else {})
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
    loaded = {entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines()}
    assert "hydra" in loaded
    assert not {"torch", "wandb", "numpy", "tiktoken"} & loaded
    assert not list(tmp_path.iterdir())
    if typed[0] == "--cfg":
        assert yaml.safe_load(done.stdout)["model"]["n_layer"] == 10


@pytest.mark.parametrize("name", ["train", "prepare"])
def test_help_lists_all_options_by_the_words_that_choose_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine$.yaml").write_text("defaults: [text]\n", encoding="utf-8")
    done = here(name, "--help", "--config-dir", str(tmp_path), cwd=tmp_path)
    lines = done.stdout.partition("choose with group=option ==\n")[2].partition("\n\n")[0]
    listed = {group: options.split(", ") for group, _, options in
              (line.partition(": ") for line in lines.splitlines())}  # fmt: skip
    listed["data"].remove("mine$")
    folders = {"data.template": "templates"}
    for group, options in listed.items():
        files = (ROOT / "conf" / folders.get(group, group)).glob("*.yaml")
        assert options == sorted(path.stem for path in files)
    composed(name, *(f"{group}={options[-1]}" for group, options in listed.items()))
    known = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    complete = known - {"hydra", "templates"} | {"data.template"}
    assert listed.keys() == (complete if name != "prepare" else {"data", "data.template"})
