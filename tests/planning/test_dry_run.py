"""``run.dry_run=true`` of a single run says what would happen, and writes nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm.data.conversation_dataset import ConversationDataset
from llm.data.dataset import Dataset
from tests.command_line import Done, here, listing, summary
from tests.conftest import PLAY, ROOT, TINY_RUN

DATA = ["data=text", "data.path=play.txt", "data.tokenizer=byte"]
NO_TORCH = """
import runpy, sys
sys.argv = ["run_train.py", "run.dry_run=true"]
runpy.run_path("run_train.py", run_name="__main__")
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and the finished run ``outputs/a``."""
    cwd = tmp_path_factory.mktemp("dry")
    (cwd / "play.txt").write_text(PLAY, encoding="utf-8")
    assert here("train", *DATA, *TINY_RUN, "run.name=a", cwd=cwd).returncode == 0
    return cwd


@pytest.fixture
def cwd(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy", symlinks=True))


def dry(cwd: Path, *typed: str) -> Done:
    """The dry run, which has left every file as it was."""
    before = {name: (cwd / name).stat().st_mtime_ns for name in listing(cwd)}
    done = here("train", *DATA, *TINY_RUN, *typed, "run.dry_run=true", cwd=cwd)
    assert {name: (cwd / name).stat().st_mtime_ns for name in listing(cwd)} == before
    return done


def test_a_new_run_is_shown_as_run_plan_shows_it(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    done = dry(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    plan = here("plan", *DATA, *TINY_RUN, cwd=tmp_path)
    assert plan.stdout.strip() in done.stdout
    for words in (
        "384 tokens in 6 steps", "a guess: 0s to", "would be prepared in data/text-",
        "outputs/<date>/<time>: new", "nothing was started; to run it: python",
    ):  # fmt: skip
        assert words in done.stdout
    assert "dry_run" not in done.stdout
    assert listing(tmp_path) == {"play.txt"}


def test_the_folder_of_a_named_run_is_looked_at(cwd: Path) -> None:
    assert "outputs/b: new" in dry(cwd, "run.name=b").stdout
    done = dry(cwd, "run.name=a")
    assert "outputs/a: finished already: nothing would be trained" in done.stdout
    assert "would be replaced" in dry(cwd, "run.name=a", "run.retry=all", "seed=2").stdout
    done = here("train", "resume=outputs/a", "trainer.max_steps=9", "run.dry_run=true", cwd=cwd)
    assert "outputs/a: would continue at step 6" in done.stdout, done
    (cwd / "outputs/a/summary.json").unlink()
    assert "outputs/a: would continue at step 6" in dry(cwd, "run.name=a").stdout


@pytest.mark.parametrize(
    "typed",
    [
        ["run.name=a", "seed=2"],
        ["run.name=a", "run.retry=none"],
        ["run.name=file"],
        ["run.name=c", "init_from=gone"],
        [
            "memory.fit=check",
            "memory.budget_gib=0.4",
            "memory.reserve_mib=390",
            "model.n_embed=512",
        ],
        ["model.block_size=4000"],
        ["data.path=gone.txt"],
        ["trainer.device=cuda:99"],
        ["resume=outputs/none"],
        ["init_from=outputs/a", "data.tokenizer=char"],
        ["init_from=outputs/a", "data.tokenizer=gpt2", "finetune=lora"],
    ],
)
def test_what_the_run_would_refuse_is_refused_in_the_same_line(typed: list[str], cwd: Path) -> None:
    (cwd / "outputs/file").write_text("", encoding="utf-8")
    path = cwd / "outputs/a/summary.json"
    path.write_text(path.read_text().replace('"finished"', '"diverged"'), encoding="utf-8")
    done = dry(cwd, *typed)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr == here("train", *DATA, *TINY_RUN, *typed, cwd=cwd).stderr
    assert summary(cwd / "outputs/a")["status"] == "diverged"


def test_weights_with_another_tokenizer_are_refused_before_the_run(cwd: Path) -> None:
    typed, other = [*DATA[:2], *TINY_RUN], "data.tokenizer=char"
    for one in ("dry run", "plan"):
        is_plan = one == "plan"
        done = here(
            "plan" if is_plan else "train", *typed, "init_from=outputs/a",
            *[] if is_plan else ["run.dry_run=true"], cwd=cwd,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, ""), done
        for words in ("257 tokens of byte", "data.tokenizer=gpt2 has", "set data.tokenizer=null"):
            assert words in done.stderr, done.stderr
    assert here("plan", *typed, "init_from=outputs/a", "data.tokenizer=null", cwd=cwd).stdout
    declared = [*typed, "init_from=outputs/a", "data.tokenizer=null", "data.vocab_size=999"]
    assert "is smaller than data.vocab_size=999: set" in here("plan", *declared, cwd=cwd).stderr
    assert here("train", *typed, other, "run.name=char", cwd=cwd).returncode == 0
    (cwd / "play.txt").write_text("another alphabet\n" * 99, encoding="utf-8")
    assert here("prepare", *DATA[:2], other, cwd=cwd).returncode == 0
    alphabet = dry(cwd, "init_from=outputs/char", other)
    assert "outputs/char was trained on an alphabet of" in alphabet.stderr, alphabet
    run = here("train", *typed, "init_from=outputs/char", other, cwd=cwd)
    assert alphabet.stderr == run.stderr


def test_adapters_are_planned_with_the_optimizer_that_they_get(cwd: Path) -> None:
    lora = ["init_from=outputs/a", "finetune=lora", "optimizer=muon", "optimizer.lr=0.002"]
    done = dry(cwd, *lora)
    words = ", adamw at 0.003 (muon has no effect on adapters)"
    assert words in done.stdout, done
    planned = ["plan", *DATA, *TINY_RUN, *lora[:-1]]
    assert words in here(*planned, lora[-1], cwd=cwd).stdout
    both = here(*planned, "optimizer.lr=0.002,0.004", "-m", cwd=cwd).stdout
    assert f"{words} or{words[1:].replace('0.003', '0.006')}" in " ".join(both.split()), both
    assert ", muon " in dry(cwd, "optimizer=muon").stdout
    assert "adamw (muon" not in dry(cwd, *lora[:2], "optimizer=adamw").stdout


def test_the_length_that_keeps_prepared_conversations_whole_is_shown(cwd: Path) -> None:
    rows = [{"instruction": "?", "output": "!" * n} for n in range(1, 41)]
    (cwd / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    typed = ["data=instruct", "data.path=mine.jsonl", "data.tokenizer=byte", "data.template=plain"]
    train = ["train", *typed, *TINY_RUN, "model.block_size=256", "run.dry_run=true"]
    assert "whole" not in here(*train, cwd=cwd).stdout, "not prepared yet"
    assert here("prepare", *typed, cwd=cwd).returncode == 0
    shown = here(*train, cwd=cwd).stdout
    said = re.search(r"model.block_size=(\d+) keeps 95% of them whole, (\d+) all", shown)
    data = Dataset.open(next((cwd / "data").glob("instruct-*")))
    assert said is not None and isinstance(data, ConversationDataset)
    most, longest = map(int, said.groups())
    cut = [data.rows("train", size).cut for size in (longest, longest - 1, most, most - 1)]
    count = len(data.conversations["train"].lengths)
    assert cut[:2] == [0, 1] and cut[2] <= 0.05 * count < cut[3], (said, count)
    (cwd / "mine.jsonl").write_text("\n".join(map(json.dumps, rows[-3:])), encoding="utf-8")
    assert here("prepare", *typed, "data.val_fraction=0.4", cwd=cwd).returncode == 0
    shown = here(*train, "data.val_fraction=0.4", cwd=cwd).stdout
    assert "keeps all of them whole" in shown and "95%" not in shown


def test_an_unread_alphabet_leaves_the_plan_open(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    done = dry(tmp_path, "data.tokenizer=char")
    assert done.returncode == 0
    assert "the vocabulary is unknown before the text is read" in done.stdout
    assert listing(tmp_path) == {"play.txt"}


def test_a_dry_run_needs_no_torch() -> None:
    subprocess.run([sys.executable, "-c", NO_TORCH], cwd=ROOT, check=True, capture_output=True)
