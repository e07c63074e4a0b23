"""Texts, names and options in any script."""

from pathlib import Path

import pytest
import yaml

from tests.command_line import here
from tests.conftest import TINY_RUN
from tests.test_bad_input import assert_refused

TEXT = "data.path=小说.txt"
CHAR = ["data=text", "data.tokenizer=char", TEXT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with only a text, where commands are typed."""
    path = tmp_path / "这里"
    path.mkdir()
    (path / "小说.txt").write_text("天地玄黄。宇宙洪荒。\n" * 300, encoding="utf-8")
    return path


def test_text_in_any_script_reaches_a_run(folder: Path) -> None:
    typed = [
        *CHAR, *TINY_RUN, "run.name=我的模型", "data.name=小说", "logger.project=我的项目",
        "logger.tags=[ü, a b, 你好 世界]", "logger.notes=第一次 (真的)", "logger.entity=é",
        "run.note=为什么 (真的)",
    ]  # fmt: skip
    done = here("train", *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((folder / "outputs/我的模型/config.yaml").read_text(encoding="utf-8"))
    assert config["logger"]["project"] == "我的项目"
    assert config["logger"]["entity"] == "é"
    assert config["logger"]["tags"] == ["ü", "a b", "你好 世界"]
    assert config["logger"]["notes"] == "第一次 (真的)"
    assert config["run"]["note"] == "为什么 (真的)"
    assert [path.name[:3] for path in (folder / "data").iterdir()] == ["小说-"]
    again = here("train", *typed, cwd=folder)
    assert again.returncode == 0, "the same name is the same run"
    assert {path.name for path in (folder / "outputs").iterdir()} - {"ledger.jsonl"} == {"我的模型"}
    decomposed = here("train", *[w.replace("é", "e\u0301") for w in typed], cwd=folder)
    assert decomposed.returncode == 0, decomposed.stderr


def test_a_sweep_and_its_values_may_be_called_in_any_script(folder: Path) -> None:
    conf = folder / "conf" / "experiment"
    conf.mkdir(parents=True)
    for name, steps in (("实验一", 1), ("实验二", 2)):
        text = f"# @package _global_\ntrainer: {{max_steps: {steps}}}\n"
        (conf / f"{name}.yaml").write_text(text, encoding="utf-8")
    grid = ["--config-dir", "conf", "-m", "run.sweep=扫描", "experiment=实验一,实验二"]
    done = here("plan", *grid[:2], grid[4], *CHAR[:2], TEXT, "data.vocab_size=100", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = here("train", *grid, "data.corpus=none", cwd=folder)
    assert_refused(done, "job experiment=实验一 cannot run, so none was started: data.corpus=none")
