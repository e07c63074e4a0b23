"""Every command of the README and of the pages it leads to runs, in order, shrunk by overrides."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.made_runs import make_run, make_sweep
from llm.config import launcher
from llm.data.bpe import BPETokenizer
from llm.interchange.hf_writing import write_hf
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from tests.command_line import here, jobs_here
from tests.conftest import HANGS, PLAY, ROOT
from tests.data.test_bpe import library

SHRINK = [
    "model.n_embed=32", "model.head_size=16", "model.block_size=16", "trainer.max_steps=4",
    "trainer.batch_size=2", "trainer.micro_batch_size=null", "trainer.eval_interval=2",
    "trainer.eval_batches=1", "trainer.checkpoint_interval=2", "schedule.warmup_steps=1",
    "trainer.device=cpu", "logger=none",
]  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    README,
    *(
        (ROOT / "docs" / page).read_text("utf-8")
        for page in ("commands.md", "sweeps.md", "scripts.md")
    ),
]
LONG = ("sweep=learning_rate",)  # 30 runs; tests/test_configs.py composes each


def commands(*pages: str) -> list[str]:
    """The lines of all bash blocks, without their comments."""
    blocks = [b for page in pages for b in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)]
    found = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    kept = [line for line in dict.fromkeys(found) if "run_" in line]
    return [line for line in kept if not any(long in line for long in LONG)]


# A sweep starts processes: the sweeps of the README are enough for the default suite.
COMMANDS = [
    pytest.param(line, marks=pytest.mark.slow)
    if " -m " in line and line not in commands(README)
    else line
    for line in commands(*PAGES)
]


def shrunk(command: str, newest: str) -> str:
    """The command with overrides that make it take seconds, and a real run for <date>/<time>."""
    command = command.replace("outputs/<date>/<time>", newest).replace("=3000", "=6")
    command = command.replace("multirun/<sweep>", "multirun/depth")
    command = command.replace("=4,6,8", "=1,2").replace(" seed=1,2 ", " seed=1 ")
    command = command.replace("optimizer.lr=0.01,0.02", "optimizer.lr=0.01")
    command = command.replace(
        "model.n_layer=2,8 model.n_embed=256,128", "model.n_layer=1,2 model.n_embed=64,32"
    )
    sweep = "n_layer=1,2,4,8 model.n_embed=64,128 seed=1,2,3"
    command = command.replace(sweep, "n_layer=1,2 seed=1")
    command = command.replace("trainer.max_minutes=5", "trainer.max_minutes=0.001")
    pairs = "model.n_layer=1,2 model.n_embed=32,64 seed=1"
    command = command.replace("sweep=width_depth", f"sweep=width_depth {pairs}")
    command = command.replace("=smollm2", "=tiny_llama").replace("max_steps=100", "max_steps=4")
    as_it_is = ("run_prepare", "run_report", "run_eval", "run_export", "resume=")
    if any(word in command for word in as_it_is):
        return command
    if "run_sample" in command:
        return command if "max_new_tokens" in command else f"{command} max_new_tokens=5"
    typed = {word.partition("=")[0] for word in shlex.split(command)}
    if "tiny_llama" in command:  # its weights say how large it is
        typed |= {"model.n_embed", "model.head_size", "model.block_size"}
    return " ".join([command, *(o for o in SHRINK if o.partition("=")[0] not in typed)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the README's commands speak of."""
    path = tmp_path_factory.mktemp("newcomer")
    (path / "my_novel.txt").write_text(PLAY, encoding="utf-8")
    (path / "folder_of_texts").mkdir()
    for number in range(2):
        (path / "folder_of_texts" / f"{number}.txt").write_text(PLAY, encoding="utf-8")
    for name in ("a", "b", "mine"):
        make_run(path / "outputs" / name, {}, [3.0, 2.0], rows=1)
    for name, depth, loss in (("base", 4, 2.0), ("mine", 3, 1.0)):
        for seed in range(3):
            values = {"model.n_layer": depth, "seed": seed}
            losses = [3.0, loss + seed / 100]
            make_run(path / f"outputs/{name}-{seed}", values, losses, rows=1)
    make_sweep(path / "multirun/depth", {"model.n_layer": [2, 4]}, rows=1)
    make_tiny_llama(path / "tiny_llama")
    return path


def make_tiny_llama(folder: Path) -> None:
    """Random weights in the place of SmolLM2, with its kind of tokenizer."""
    tokenizer = BPETokenizer(library("smollm").to_str(), "<|im_end|>")
    config = GPTConfig(1, 32, head_size=16, block_size=1024, vocab_size=tokenizer.vocab_size)
    model = GPT(**asdict(config))
    folder.mkdir()
    write_hf(folder, model.config, model.state_dict(), tokenizer, "fp32")


def newest_run(folder: Path) -> str:
    runs = sorted(folder.glob("outputs/????-??-??/*"), key=lambda path: path.stat().st_mtime)
    return str(runs[-1].relative_to(folder)) if runs else "outputs/none"


def test_the_readme_has_commands() -> None:
    assert len(commands(README)) >= 20
    assert len(README.splitlines()) <= 205, "a newcomer reads it in a few minutes"
    assert any("What's this, (my lord)?" in command for command in commands(README))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works_as_written(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = shrunk(command, newest_run(folder))
    if "n_jobs" not in line:  # else in processes, as for a user
        monkeypatch.setattr(launcher, "run_jobs", jobs_here)
    if found := re.fullmatch(r"python run_(\w+)\.py( [^|*]*)?", line):
        done = here(found[1], *shlex.split(found[2] or ""), cwd=folder)
    else:
        done = subprocess.run(
            ["bash", "-c", line.replace("python ", f"{sys.executable} {ROOT}/")],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            capture_output=True, text=True, timeout=HANGS,
        )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_relative_link_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (page.parent / link).exists()], page


def test_the_files_it_lists_exist() -> None:
    tree = re.search(r"## Read the code\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert tree
    listed = re.findall(r"^(\S+/)\s", tree.group(1), flags=re.MULTILINE)
    assert len(listed) >= 10
    assert not [name for name in listed if not (ROOT / name).is_dir()]


def test_the_options_it_lists_are_those_of_conf() -> None:
    section = PAGES[1].partition("## Groups")[2].partition("## Training")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", section, flags=re.MULTILINE)
    files = {"data.template": "templates"}  # a key that takes the files of a folder
    table = {
        files.get(key, key): set(re.findall(r"\w+", re.sub(r"\(.*?\)|or a file", "", names)))
        for key, names in rows
    }
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"hydra"}
    assert set(table) == groups
    for group in groups:
        assert table[group] == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def test_every_check_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## The checks")[2].splitlines() if line[:1] == "|"]
    firsts = [row.split(" | ")[0][:8] for row in rows if re.match(r"\| \d", row)]
    numbers = [int(n) for first in firsts for n in re.findall(r"\d+", first)]
    assert [n for n in range(1, 35) if n not in numbers] == []
    for file, test in re.findall(r"`([\w/]+\.py)(?:::(\w+))?", "\n".join(rows)):
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert f"def {test}" in path.read_text(encoding="utf-8"), f"{file}::{test}"
