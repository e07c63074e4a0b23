"""docs/extending.md, done as it says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import here, rows
from tests.conftest import ROOT, TINY_RUN

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
OWN, EDITS = PAGE.split("\n# Edits\n")
FILE = re.compile(r"`(mine/[\w/.]+)`:\n\n```(?:yaml|python)\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"^python run_(\w+)\.py (.*)$", re.MULTILINE)
DIFF = re.compile(r"```diff\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with the files of the page in ``mine``."""
    place = tmp_path_factory.mktemp("extending")
    for name, text in FILE.findall(OWN):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copy(text_file, place / "play.txt")
    return place


def tiny(typed: list[str]) -> list[str]:
    """Overrides for a run of seconds, without those that are typed or in the page's files."""
    given = {word.partition("=")[0] for word in typed} | {"logger"}
    given |= {"model.n_layer", "model.n_embed", "trainer.batch_size"} if "mine" in typed else set()
    own = [word for word in TINY_RUN if word.partition("=")[0] not in given]
    data = ["data=text", "data.path=play.txt", "data.dir=data", "data.tokenizer=byte"]
    data = [word for word in data if word.partition("=")[0] not in given]
    quiet = [] if "logger" in str(typed) or "all_mine" in str(typed) else ["logger=none"]
    return own + data + quiet


def sections() -> list[Any]:
    """The heading, command and arguments of each command for a folder of one's own."""
    return [
        pytest.param(
            part.partition("\n")[0], command, arguments,
            marks=[pytest.mark.slow] if "-m" in arguments.split() else [],  # it starts processes
        )
        for part in OWN.split("\n## ")[1:]
        for command, arguments in COMMANDS.findall(part)
    ]  # fmt: skip


def test_each_part_takes_two_files_at_most() -> None:
    parts = {part.partition("\n")[0]: FILE.findall(part) for part in OWN.split("\n## ")[1:]}
    assert set(parts) == {
        "A preset", "An optimizer", "A schedule", "A logger", "An experiment",
    }  # fmt: skip
    assert {name: len(files) for name, files in parts.items()} == {
        "A preset": 1, "An optimizer": 3, "A schedule": 2, "A logger": 2, "An experiment": 1,
    }  # fmt: skip  # of the optimizers one takes one file, the other two


@pytest.mark.parametrize(("heading", "command", "arguments"), sections())
def test_the_commands_of_the_page_do_what_it_says(
    heading: str, command: str, arguments: str, place: Path
) -> None:
    typed = shlex.split(arguments)
    done = here(command, *typed, *tiny(typed), cwd=place)
    assert done.returncode == 0, done.stderr
    if command == "train" and "-m" not in typed:
        newest = max(place.glob("outputs/**/metrics.jsonl"), key=lambda p: p.stat().st_mtime_ns)
        assert rows(newest.parent)[-1]["step"] == 6
        if heading in ("A logger", "An experiment"):
            losses = (newest.parent / "losses.txt").read_text(encoding="utf-8")
            assert len(losses.splitlines()) == 3
        if heading == "An experiment":
            config = (newest.parent / "config.yaml").read_text(encoding="utf-8")
            assert all(f"option: {name}" in config for name in ("lion", "halves", "losses"))
            assert "n_embed: 192" in config


PREDICTED = """
from benchmarks.tracked import tracked_peak
from llm.memory.predict import Setup, training_step
from llm.model.config import GPTConfig

for norm in ("rmsnorm", "layernorm"):
    model = GPTConfig(vocab_size=257, embed_norm=True, norm=norm, n_layer=1).resolve()
    peaks = [sum(lines.values()) for lines in training_step(Setup(model)).values()]
    assert abs(max(peaks) / tracked_peak(Setup(model)) - 1) < 0.003
"""


@pytest.mark.slow
def test_the_edits_of_the_page_can_be_made_and_work_together(tmp_path: Path) -> None:
    for name in ("llm", "conf", "benchmarks", "run_train.py"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    changes = DIFF.findall(EDITS)
    assert len(changes) == 2
    for change in changes:
        files = re.findall(r"^--- a/(.*)$", change, re.MULTILINE)
        assert len(files) <= 4
        assert all(f"`{name}`" in EDITS for name in files), "the page names each file"
        apply = ["git", "apply", "--unidiff-zero", "-"]
        subprocess.run(apply, cwd=tmp_path, input=change, text=True, check=True)
    (tmp_path / "play.txt").write_text("Be GREAT in act, as you have been in thought. " * 80)
    typed = [word for _, words in COMMANDS.findall(EDITS) for word in shlex.split(words)]
    train = ["run_train.py", *typed, *tiny([*typed]), "logger=none", "run.name=x"]
    for arguments in (train, ["-c", PREDICTED]):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "embed_norm: true" in (tmp_path / "outputs/x/config.yaml").read_text()
