"""Every command of --help, and of the pages that tests/test_readme.py does not run, has keys and
values that exist.

Their settings are composed and checked as when the command is typed; the slow tests run them.
"""

import copy
import functools
import json
import re
import shlex
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from llm.config.arguments import for_hydra, without_json_word
from llm.config.compose import read_settings
from llm.config.inside import as_command, compose_plans, compose_training
from llm.data.bpe import BPETokenizer
from llm.settings.eval import EvalSettings
from llm.settings.export import ExportSettings
from llm.settings.sample import SampleSettings
from llm.settings.schema import PrepareSettings
from tests.command_line import composed, here
from tests.conftest import PLAY, ROOT, TINY_RUN
from tests.data.test_bpe import library
from tests.interchange.test_hf_writing import saved
from tests.test_readme import make_tiny_llama

PAGES = ("finetune", "interchange", "conversations", "evaluation", "sampling")
KINDS = {
    "eval": EvalSettings, "export": ExportSettings, "prepare": PrepareSettings,
    "sample": SampleSettings,
}  # fmt: skip


def commands(page: str) -> list[str]:
    """What follows ``python run_`` in the blocks and in the sentences of a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`(python run_[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [re.sub(r"\s+#.*|\s+[<>|] .*", "", one).strip() for one in (*lines, *spans)]
    kept = [one.removeprefix("python run_") for one in found if one.startswith("python run_")]
    return list(dict.fromkeys(kept))


def first_values(line: str) -> str:
    """``model.n_layer=4,8`` -> ``model.n_layer=4``: Hydra needs a second for a few options."""
    return re.sub(r"(=[^\s\[,]+),\S+", r"\1", line)


def examples(name: str) -> list[str]:
    """The commands of ``run_<name>.py --help``, which stand before two spaces and their meaning."""
    header = yaml.safe_load((ROOT / f"conf/{name}.yaml").read_text("utf-8"))["hydra"]["help"]
    found = re.findall(r"python run_(.*?)(?:\n|  )", header["header"] + "\n")
    return [line.replace("outputs/<date>/<time>", "outputs/base") for line in found]


LINES = [
    *((page, line) for page in PAGES for line in commands(page)),
    *(("--help", line) for name in KINDS for line in examples(name)),
]
COMMANDS = [
    *((page, first_values(line)) for page, line in LINES),
    *(
        pytest.param(*one, marks=pytest.mark.slow)
        for one in LINES
        if first_values(one[1]) != one[1]
    ),
    *(
        pytest.param("--help", line, marks=pytest.mark.slow)
        for name in ("train", "plan")
        for line in examples(name)
        if "-m " not in line and "resume=" not in line  # tests/test_readme.py runs these
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights that the pages speak of."""
    path = tmp_path_factory.mktemp("docs")
    make_tiny_llama(path / "smollm2")
    for name in ("SmolLM2-135M", "Qwen3-0.6B"):
        (path / name).symlink_to(path / "smollm2")
    tokenizer = BPETokenizer(library("smollm").to_str(), "<|im_end|>")
    saved(path / "base", tokenizer)
    (path / "outputs").mkdir()
    for name in ("base", "bard", "mine", "my_lora", "a", "b"):
        (path / "outputs" / name).symlink_to(path / "base")
    return path


base = functools.cache(composed)


def overridden(name: str, words: list[str]) -> DictConfig:
    """The configuration of a command; without groups Hydra composes it only once."""
    overrides = for_hydra(words)
    if name == "prepare":
        return composed(name, *overrides)
    cfg = copy.deepcopy(base(name))
    for one in OverridesParser.create().parse_overrides(overrides):
        OmegaConf.update(cfg, one.key_or_group, one.value())
    return cfg


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_the_keys_and_values_of_the_command_exist(page: str, line: str, folder: Path) -> None:
    script, *words = without_json_word(shlex.split(line))
    name = script.removesuffix(".py")
    with chdir(folder), as_command(f"run_{script}", words):
        if name == "plan":
            compose_plans(*words)
        elif name == "train":
            compose_training(*words)
        else:
            read_settings(overridden(name, words), KINDS[name])


FEW = [
    "trainer.max_steps=2", "trainer.eval_interval=2", "trainer.eval_batches=1",
    "trainer.batch_size=2", "trainer.device=cpu", "logger=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it with files and with runs: of text, and of adapters beside ``smollm2``."""
    folder = shutil.copytree(folder, tmp_path_factory.mktemp("made") / "docs", symlinks=True)
    shutil.rmtree(folder / "outputs")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "my lord"}]
    rows = [{"messages": [turns[0] | {"content": f"Hi {n}"}, turns[1]]} for n in range(60)]
    pair = {"sentence_good": "The boys walk.", "sentence_bad": "The boys walks."}
    files = {"mine.json": rows, "mine.jsonl": rows, "chat.jsonl": rows, "pairs.jsonl": [pair] * 4}
    for name, lines in files.items():
        (folder / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for name in ("novel.txt", "my.txt"):
        (folder / name).write_text(PLAY, encoding="utf-8")
    text = ["data=text", "data.path=novel.txt", "data.tokenizer=smollm2", "data.test_fraction=0.2"]
    here("train", *text, *TINY_RUN, "model.block_size=256", "run.name=base", cwd=folder)
    chat = ["data=chat", "data.path=mine.jsonl", "model.block_size=256", "finetune=lora"]
    for name in ("a", "b"):
        here("train", "init_from=smollm2", *chat, *FEW, f"run.name={name}", cwd=folder)
    assert here("export", "outputs/a", "out=peft", "format=peft", cwd=folder).returncode == 0
    return folder


def prepared_for(page: str, folder: Path) -> None:
    """Give the runs in ``folder`` the names and kinds that a page speaks of."""
    mine = "a" if page == "finetune" else "base"
    for name, run in (("mine", mine), ("my_lora", "a")):
        (folder / "outputs" / name).symlink_to(folder / "outputs" / run)
    if page == "sampling":
        (folder / "peft").rename(folder / "my_peft")
    if page == "evaluation":
        (folder / "pairs.jsonl").replace(folder / "mine.jsonl")
        (folder / "data/blimp").mkdir()
        shutil.copy(folder / "mine.jsonl", folder / "data/blimp")
        shutil.copytree(folder / "outputs/base", folder / "multirun/depth/base", symlinks=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_work_one_after_another(
    page: str, made: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy", symlinks=True))
    prepared_for(page, folder)
    for line in commands(page):
        script, *words = shlex.split(line)
        if "<digest>" in line:
            (data,) = folder.glob("data/others-*")
            words = [re.sub(r"others-<digest>", data.name, word) for word in words]
        if script == "train.py":
            words = [word for word in words if not word.startswith("trainer.max_steps")] + FEW
        if script == "sample.py" and "max_new_tokens" not in line:
            words.append("max_new_tokens=5")
        told = [word for word in words if word != "run.dry_run=true"]  # first only the plan
        for typed in [words, told][: 1 + (told != words)]:
            done = here(script.removesuffix(".py"), *typed, cwd=folder, stdin=b"Hi\n")
            assert done.returncode == 0, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
