"""The list of commands, the version, and commands in messages."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from llm import __version__, commands
from llm.commands import TYPED, command_line, purposes, typed_command
from tests.conftest import HANGS, ROOT


def test_python_m_llm_lists_every_command_with_its_purpose(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llm"], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for script in ROOT.glob("run_*.py"):
        assert f"python {script}   " in done.stdout
    assert "Train a language model" in done.stdout
    assert done.stdout.startswith(f"llm {__version__} (torch 2.")
    assert " torch\n" not in done.stderr
    names = ["prepare", "train", "sample", "plan", "report", "eval", "export"]
    assert list(purposes()) == [f"run_{name}.py" for name in names]


@pytest.mark.parametrize("name", ["train", "plan"])
def test_version_prints_the_version_of_this_program(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / f"run_{name}.py"), "--version", "seed=1"], cwd=tmp_path,
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.startswith(f"llm {__version__} (torch 2.") and "hydra-core 1.3" in done.stdout
    )
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("started", "folder", "typed"),
    [
        ("run_train.py", ROOT, "run_sample.py"),
        (str(ROOT / "run_train.py"), ROOT, "run_sample.py"),
        (str(ROOT / "run_train.py"), ROOT.parent, f"{ROOT.name}/run_sample.py"),
        ("../run_train.py", ROOT / "tests", "../run_sample.py"),
        (str(ROOT / "run_train.py"), ROOT / "tests", str(ROOT / "run_sample.py")),
        ("-m", ROOT, "run_sample.py"),
    ],
)
def test_a_command_in_a_message_works_from_the_current_folder(
    started: str, folder: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with patch.object(sys, "argv", [started]):
        words = shlex.split(command_line("run_sample.py", "ckpt=it's"))
    assert words == ["python", typed, "ckpt=it's"]
    assert Path(words[1]).exists()


def test_a_repeated_command_names_a_folder_of_options_once() -> None:
    typed, folder = (
        ["run_train.py", "--config-dir", "conf", "run.name=a"],
        ["--config-dir", "/conf"],
    )
    with patch.object(sys, "argv", typed), patch.object(commands, "OPTION_FOLDERS", folder):
        TYPED.clear()
        assert typed_command() == "python run_train.py --config-dir conf run.name=a"
        resumed = command_line("run_train.py", "resume=outputs/a")
    assert resumed == "python run_train.py --config-dir /conf resume=outputs/a"
