"""Prepare, train, resume and sample as a user does, and check the files and the output."""

import ast
import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from llm.errors import Diverged
from llm.experiment.rundir import SUMMARY_KEYS
from llm.sampling.cache import KVCache
from llm.settings.identity import config_digest
from llm.settings.saved import load_plain
from llm.training.trainer import Trainer
from tests import wandb_file
from tests.command_line import here, listing, rows, started, summary
from tests.conftest import HANGS, ROOT, TINY_RUN

TINY = [override for override in TINY_RUN if override != "logger=none"]
LOGGED = {"train/loss", "lr", "grad_norm", "tokens_per_second", "mfu", "peak_memory_bytes"}
EVALUATED = {"val/loss", "val/perplexity", "val/bits_per_byte", "best/val_loss"}


@pytest.fixture(scope="module")
def text(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> Path:
    """A folder in which a dataset was prepared and ``outputs/a`` trained, logged to W&B offline."""
    folder = tmp_path_factory.mktemp("commands")
    prepared = here("prepare", *text, cwd=folder)
    assert prepared.returncode == 0, prepared.stderr
    (dataset,) = (folder / "data").iterdir()
    assert {path.name for path in dataset.iterdir()} == {"train.bin", "val.bin", "meta.json"}
    meta = json.loads((dataset / "meta.json").read_text(encoding="utf-8"))
    for fact in (f"data/{dataset.name}", "byte, 257 tokens", f"{meta['tokens']['train']:,} tokens"):
        assert fact in prepared.stdout
    assert f"\nnext: python {ROOT}/run_train.py {' '.join(text)}" in prepared.stdout
    before = (dataset / "meta.json").stat().st_mtime_ns
    with started("train", *text, *TINY, "run.name=a", "logger.notes=a, b", cwd=folder) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, shown
    assert (dataset / "meta.json").stat().st_mtime_ns == before, "it was prepared already"
    assert "step 6/6  loss" in shown
    assert f"python {ROOT}/run_sample.py ckpt=outputs/a" in shown
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of :func:`original` that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "copy", symlinks=True))


def test_a_run_folder_has_the_promised_files(original: Path) -> None:
    run = original / "outputs" / "a"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "run_train.log", "metrics.jsonl", "checkpoints", "wandb", "summary.json",
    }  # fmt: skip
    assert {path.name for path in original.iterdir()} == {"data", "outputs"}
    checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
    assert checkpoints == {"last", "best", "step-00000004", "step-00000006", "best-00000006"}
    assert (run / "checkpoints/last").resolve().name == "step-00000006"
    assert (run / "checkpoints/best").resolve().name == "best-00000006"

    logged = rows(run)
    assert [row["step"] for row in logged] == list(range(7))
    assert [row["tokens"] for row in logged] == [64 * step for step in range(7)]
    for row in logged:
        evaluated = EVALUATED if row["step"] % 3 == 0 else set()
        trained = LOGGED if row["step"] else set()
        assert row.keys() == {"step", "tokens", "train_seconds"} | trained | evaluated

    found = summary(run)
    assert tuple(found) == SUMMARY_KEYS
    assert (found["status"], found["reason"], found["step"]) == ("finished", None, 6)
    assert found["tokens"] == 6 * 64
    assert found["evaluation"].keys() == {
        "split", "text", "block_size", "windows", "stride", "tokens", "bytes",
    }  # fmt: skip
    assert found["best_val_loss"] == found["val_loss"] == logged[-1]["val/loss"]
    assert 0 < found["train_seconds"] < found["wall_seconds"]
    assert found["predicted_memory_bytes"] > 0
    assert "step 6/6" in (run / "run_train.log").read_text(encoding="utf-8")

    config = load_plain(run)
    assert config["logger"]["notes"] == "a, b"
    assert config["model"]["vocab_size"] == 257
    assert config["trainer"]["micro_batch_size"] == 4
    assert config_digest(config, found["data_digest"]) == found["config_digest"]


def test_wandb_has_the_same_rows(original: Path) -> None:
    run = original / "outputs" / "a"
    found = wandb_file.read(run)
    assert found["run"].display_name == "a"
    assert found["run"].notes == "a, b"
    assert found["config"]["model"] == load_plain(run)["model"]
    assert [row["_step"] for row in found["history"]] == list(range(7))
    assert [row["tokens"] for row in found["history"]] == [row["tokens"] for row in rows(run)]
    assert found["history"][-1]["val/loss"] == rows(run)[-1]["val/loss"]
    assert found["exit_code"] == 0


def test_the_same_command_again_is_skipped_and_another_is_refused(
    original: Path, text: list[str]
) -> None:
    files = [path for path in sorted(original.rglob("*")) if path.is_file()]
    files = [path for path in files if path.parent.name != "logs"]  # W&B may still write them
    before = [(path, path.stat().st_mtime_ns) for path in files]
    again = here("train", *text, *TINY, "run.name=a", cwd=original)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith(
        f"outputs/a is finished already. To train on: python {ROOT}/run_train.py"
    )
    other = here("train", *text, *TINY, "run.name=a", "model.n_layer=2", "seed=2", cwd=original)
    assert other.returncode == 2
    for key in ("model.n_layer was 1, now 2", "seed was 1337, now 2", "take another run.name"):
        assert key in other.stderr
    more = here("train", *text, *TINY, "run.name=a", "trainer.max_steps=7", cwd=original)
    assert "trainer.max_steps was 6, now 7" in more.stderr
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted(files)]


def test_a_finished_run_can_be_trained_further_in_its_folder(folder: Path) -> None:
    first = rows(folder / "outputs/a")
    more = ["trainer.max_steps=9", "logger=none"]
    done = here("train", "resume=outputs/a", *more, "trainer.eval_interval=4", cwd=folder)
    assert done.returncode == 0, done.stderr
    logged = rows(folder / "outputs/a")
    assert logged[:7] == first
    assert [row["step"] for row in logged] == list(range(10))
    assert [row["step"] for row in logged if "val/loss" in row] == [0, 3, 6, 8, 9]
    config, found = load_plain(folder / "outputs/a"), summary(folder / "outputs/a")
    assert (config["trainer"]["max_steps"], config["trainer"]["eval_interval"]) == (9, 4)
    assert config["model"]["n_layer"] == 1, "other settings are those of the folder"
    assert (found["status"], found["step"], found["tokens"]) == ("finished", 9, 9 * 64)
    assert {path.name for path in (folder / "outputs").iterdir()} == {"a", "ledger.jsonl"}
    refused = here("train", "resume=outputs/a", "model.n_layer=2", cwd=folder)
    assert refused.returncode == 2
    assert "model.n_layer was 1, now 2" in refused.stderr


def test_weights_can_be_evaluated_alone_and_trained_further(folder: Path, text: list[str]) -> None:
    best = summary(folder / "outputs/a")["best_val_loss"]
    before = listing(folder / "outputs/a")
    looked = here("train", "resume=outputs/a", "trainer.eval_only=true", "logger=none", cwd=folder)
    assert looked.returncode == 0, looked.stderr
    (new,) = folder.glob("outputs/2*/*")
    assert [row.keys() for row in rows(new)] == [{"step", "tokens", "train_seconds"} | EVALUATED]
    assert summary(new)["val_loss"] == pytest.approx(best, rel=1e-6)
    assert listing(new) == {"config.yaml", "run_train.log", "metrics.jsonl", "summary.json"}
    assert load_plain(new)["init_from"] == "outputs/a"
    assert listing(folder / "outputs/a") == before

    tuned = [*text, *TINY, "logger=none", "init_from=outputs/a", "run.name=b", "optimizer.lr=1e-4"]
    assert here("train", *tuned, cwd=folder).returncode == 0
    first, *_, last = [row["val/loss"] for row in rows(folder / "outputs/b") if "val/loss" in row]
    assert first == pytest.approx(best, rel=1e-6)
    assert last < first


ENDS: list[tuple[Exception, int, str]] = [
    (Diverged("the loss is nan"), 3, "diverged"),
    (MemoryError(), 4, "out_of_memory"),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 5, "disk_error"),
    (ZeroDivisionError("a bug"), 1, "failed"),
]


@pytest.mark.parametrize(("error", "status", "word"), ENDS, ids=[word for _, _, word in ENDS])
def test_every_end_has_its_exit_status_and_its_summary(
    error: Exception, status: int, word: str, original: Path, text: list[str]
) -> None:
    ends = patch.object(Trainer, "optimizer_step", side_effect=error)
    command = [*text, *TINY, "logger=none", f"run.name={word}"]
    if status == 1:  # Python shows the traceback
        with ends, pytest.raises(ZeroDivisionError):
            here("train", *command, cwd=original)
    else:
        with ends:
            done = here("train", *command, cwd=original)
        assert done.returncode == status
        assert done.stderr.startswith("run_train.py: ")
        assert done.stderr.count("\n") == 1
    found = summary(original / "outputs" / word)
    assert (found["status"], found["step"]) == (word, 0)
    assert found["reason"]
    shutil.rmtree(original / "outputs" / word)


def sample(folder: Path, *typed: str, **more: Any) -> str:
    done = here("sample", "ckpt=outputs/a", "max_new_tokens=8", *typed, cwd=folder, **more)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if " samples loop " not in line]
    assert said.pop() == f"best-{6:08d} of outputs/a"  # the weights; never on stdout
    assert all(line.startswith("the model sees") for line in said)
    return done.stdout


def test_a_prompt_is_continued_exactly_as_typed(original: Path) -> None:
    for prompt in ("What's this, (my lord)?", '"', "a, b", "${x}", "???", " é\n", "null", "[1"):
        assert sample(original, f"prompt={prompt}").startswith(prompt)
    assert sample(original, "prompt_file=-", stdin=b"to be\n") == sample(original, "prompt=to be")
    assert sample(original, "prompt=to be", "echo=false") == sample(original, "prompt=to be")[5:]


def test_the_same_seed_gives_the_same_samples(original: Path) -> None:
    three = sample(original, "prompt=x", "num_samples=3", "seed=5", "stream=false")
    assert three == sample(original, "prompt=x", "num_samples=3", "seed=5")
    assert three.split("-" * 80 + "\n")[1] == sample(original, "prompt=x", "seed=6")
    assert len(set(three.split("-" * 80 + "\n"))) == 3
    greedy = {sample(original, "prompt=x", "temperature=0", f"seed={seed}") for seed in (1, 2)}
    assert len(greedy) == 1


def test_samples_of_several_settings_are_drawn_in_turn(original: Path, tmp_path: Path) -> None:
    run = original / "outputs/a"
    typed = [f"ckpt={run}", "prompt=x", "max_new_tokens=3", "stream=false"]
    each = [here("sample", *typed, f"seed={seed}", cwd=tmp_path) for seed in (1, 2)]
    done = here("sample", "-m", *typed, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(one.stdout for one in each)


def test_a_stop_string_ends_a_sample_and_is_not_printed(original: Path) -> None:
    typed = ["prompt=x", "num_samples=3", "max_new_tokens=60", "temperature=1.5"]
    whole = sample(original, *typed).split("-" * 80 + "\n")
    stops = [re.findall(r"(?<!^)[!-~]{2}", text)[-1] for text in whole[:2]]
    found = sample(original, *typed, *(f"stop={stop}" for stop in stops))
    ends = [[i for stop in stops if (i := text.find(stop, 1)) > 0] for text in whole]
    assert found.split("-" * 80 + "\n") == [
        text[: min(at)] + "\n" if at else text for text, at in zip(whole, ends, strict=True)
    ]
    lines = sample(original, *typed[:1], *typed[2:], f"stop={stops[0]}", "logprobs=true")
    pieces = [ast.literal_eval(line[12:]) for line in lines.splitlines()]
    raw = b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces)
    shown = raw.decode("utf-8", errors="replace")
    assert shown.startswith("x")
    assert stops[0] not in shown


def test_penalties_and_no_repeat_ngram_change_the_text(original: Path) -> None:
    greedy = ["prompt=x", "temperature=0", "max_new_tokens=60"]
    plain = sample(original, *greedy)
    for less in ("repetition_penalty=3", "frequency_penalty=2", "presence_penalty=5", "min_p=0.1"):
        assert (sample(original, *greedy, less) != plain) == (less != "min_p=0.1"), less
    assert sample(original, *greedy, "no_repeat_ngram=2") != plain


def test_a_text_that_loops_is_reported_with_a_setting_that_ends_the_loop(original: Path) -> None:
    typed = ["ckpt=outputs/a", "prompt=x", "temperature=0", "max_new_tokens=200"]
    said = here("sample", *typed, cwd=original).stderr.splitlines()[-1]
    assert re.fullmatch(r"1 of 1 samples loop \('.+' \d+ times in a row\): try \S+=\S+", said), said
    (setting,) = said.rsplit(" ", 1)[1:]
    assert setting == "temperature=0.8"
    assert "loop" not in here("sample", *typed, setting, cwd=original).stderr


def test_the_cache_is_verified_on_the_users_own_model(original: Path) -> None:
    for typed in (["temperature=0"], ["temperature=1", "top_k=null", "prompt=it was"]):
        said = sample(original, "verify_cache=true", "max_new_tokens=40", *typed)
        assert said.startswith("verify_cache: all 40 tokens are the same without the cache; ")
        assert said.count("\n") == 1
    step = KVCache.step
    with patch.object(KVCache, "step", lambda self, new, at, mask: -step(self, new, at, mask)):
        done = here("sample", "ckpt=outputs/a", "verify_cache=true", cwd=original)
    assert done.returncode == 1
    assert re.search(r"verify_cache: token \d+ differs with and without the cache", done.stderr)
    assert done.stdout == ""


def test_a_benchmark_prints_tokens_per_second(original: Path) -> None:
    for texts in (1, 3):
        said = sample(original, "benchmark=true", f"num_samples={texts}").splitlines()
        assert [line.split()[:2] for line in said] == [
            ["prefill", str(texts * 8)], ["decode", str(texts * 7)],
        ]  # fmt: skip
        assert all(float(line.split()[3].replace(",", "")) > 0 for line in said)


def test_a_checkpoint_alone_can_be_sampled(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "outputs/a/checkpoints/best", tmp_path / "it's (alone)")
    (tmp_path / "cache").mkdir()
    done = here(
        "sample", "ckpt=it's (alone)", "prompt=x", "max_new_tokens=8", cwd=tmp_path,
        LLM_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, sample(original, "prompt=x"))
    assert not list((tmp_path / "cache").iterdir())
