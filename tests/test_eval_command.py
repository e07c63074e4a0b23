"""``run_eval.py`` as typed: its output, its files and its exit status. What it says first comes
from llm/experiment/introduce.py.
"""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.data.dataset import Dataset
from llm.evaluation.text import evaluate_tokens
from llm.model.gpt import GPT
from tests.command_line import Done, here, summary
from tests.conftest import PLAY, TINY_RUN

DATA = ["data=text", "data.path=play.txt", "data.tokenizer=char", "data.test_fraction=0.2"]
RUNS = {
    "fp32": ["precision=fp32"],
    "bf16": ["precision=bf16", "trainer.eval_batches=null", "trainer.micro_batch_size=2"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs below ``outputs/``."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "play.txt").write_text(PLAY, encoding="utf-8")
    for name, options in RUNS.items():
        done = here("train", *DATA, *TINY_RUN, *options, f"run.name={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, as the current folder."""
    copy = Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))
    with chdir(copy):
        yield copy


def evaluated(folder: Path, *typed: str) -> dict[str, Any]:
    """The document of a command that succeeds."""
    done = here("eval", *typed, "device=cpu", "json=true", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def tasks_of(folder: Path, *typed: str) -> dict[str, Any]:
    """The results of the only network."""
    (run,) = evaluated(folder, *typed)["runs"]
    return dict(run["tasks"])


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_as_in_training_is_the_best_validation_loss_to_the_last_bit(
    folder: Path, name: str
) -> None:
    found = tasks_of(folder, f"outputs/{name}", "as_in_training=true")["loss"]
    said = summary(folder / "outputs" / name)
    assert found["loss"] == said["best_val_loss"]
    assert found["bits_per_byte"] == said["bits_per_byte"]
    assert (found["precision"], found["windows"]) == (name, said["evaluation"]["windows"])


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_the_loss_of_a_split_counts_all_its_tokens_and_says_how(folder: Path, split: str) -> None:
    typed = ["outputs/fp32", f"split={split}", "window=12", "stride=5", "batch_size=3"]
    ((name, found),) = tasks_of(folder, *typed).items()
    assert name == ("loss" if split == "val" else f"loss_{split}")
    dataset = Dataset.open(next(Path("data").glob("text-*")))
    checkpoint = Checkpoint.open(Path("outputs/fp32/checkpoints/best"))
    model = checkpoint.load_model(torch.device("cpu"))
    ids = dataset.splits[split]
    expected, windows = evaluate_tokens(model, ids, dataset.tokenizer.byte_lengths, 12, 5, 7)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)
    n_bytes = len(dataset.tokenizer.decode(ids[1:].tolist()).encode())
    assert found == found | {
        "kind": "loss", "split": split, "window": 12, "stride": 5, "precision": "fp32",
        "tokens": len(ids) - 1, "bytes": n_bytes, "windows": len(windows.starts()),
    }  # fmt: skip


def test_several_tasks_are_merged_in_eval_json_until_the_weights_change(folder: Path) -> None:
    (folder / "mine.txt").write_text("What say you, my lord?", encoding="utf-8")
    first = tasks_of(folder, "outputs/fp32")
    second = tasks_of(folder, "outputs/fp32", "tasks=mine.txt")
    path = folder / "outputs/fp32/eval.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["tasks"] == first | second
    assert written["checkpoint"].startswith("checkpoints/best-")
    assert second["mine.txt"]["bytes"] == len("What say you, my lord?") - 1
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 1 '), encoding="utf-8")
    tasks_of(folder, "outputs/fp32", "tasks=mine.txt")
    assert json.loads(path.read_text())["tasks"] == written["tasks"], "only spaces have changed"
    path.write_text(path.read_text().replace(written["weights"], "0" * 64), encoding="utf-8")
    tasks_of(folder, "outputs/fp32", "tasks=mine.txt")
    assert json.loads(path.read_text())["tasks"] == second, "a damaged file is replaced"


def test_the_checkpoint_is_named_before_the_evaluation_and_a_refusal_is_one_line(
    folder: Path,
) -> None:
    (folder / "foreign.txt").write_text("Здравствуй", encoding="utf-8")
    (folder / "mine").symlink_to("outputs/fp32/checkpoints/best")
    name = f"{(folder / 'mine').resolve().name} of outputs/fp32"
    for tasks, said in (("foreign.txt,loss", []), ("loss,foreign.txt", [name])):
        done = here("eval", "mine", f"tasks=[{tasks}]", "device=cpu", cwd=folder)
        *lines, refusal = done.stderr.splitlines()
        assert (done.returncode, lines, "foreign.txt: " in refusal) == (2, said, True)
    done = here("eval", "outputs", "device=cpu", cwd=folder)
    assert name in done.stderr.splitlines() and done.stderr.count(" of outputs/") == 2
    (run,) = evaluated(folder, "mine")["runs"]
    assert (run["folder"], run["checkpoint"]) == ("outputs/fp32", f"checkpoints/{name.split()[0]}")


def test_all_finished_runs_of_a_folder_are_evaluated_with_one_table(folder: Path) -> None:
    broken = folder / "outputs" / "running"
    shutil.copytree("outputs/fp32", broken, symlinks=True)
    (broken / "summary.json").unlink()
    done = here("eval", "outputs", "int8=true", "device=cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()
    titles = ["run", "loss", "bits/byte", "on disk", "in int8", "int8 bits/byte"]
    assert re.split(r" {2,}", heading) == titles
    assert [row.split()[0] for row in rows] == ["outputs/bf16", "outputs/fp32"]
    for row, name in zip(rows, ("bf16", "fp32"), strict=True):
        written = json.loads((folder / "outputs" / name / "eval.json").read_text())
        loss = written["tasks"]["loss"]
        stored, small = loss["sizes"]["stored"], loss["sizes"]["int8"]
        numbers = [f"{loss['loss']:.4f}", f"{loss['bits_per_byte']:.4f}"]
        sizes = [f"{one['bytes'] / 1024:.0f} KiB" for one in (stored, small)]
        assert re.split(r" {2,}", row)[1:] == [*numbers, *sizes, f"{small['bits_per_byte']:.4f}"]
    assert not (broken / "eval.json").exists()


def test_a_run_whose_data_is_gone_does_not_stop_the_others(folder: Path) -> None:
    config = folder / "outputs/bf16/config.yaml"
    config.write_text(config.read_text().replace("play.txt", "gone.txt"), encoding="utf-8")
    done = here("eval", "outputs", "device=cpu", cwd=folder)
    assert done.returncode == 0
    assert "outputs/bf16: data.path=gone.txt does not exist" in done.stdout
    found = evaluated(folder, "outputs")
    assert [one["reason"] is None for one in found["runs"]] == [False, True]
    config = folder / "outputs/fp32/config.yaml"
    config.write_text(config.read_text().replace("play.txt", "gone.txt"), encoding="utf-8")
    assert here("eval", "outputs", cwd=folder).returncode == 2


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_questions_pairs_and_grammar_are_scored_and_shown(folder: Path) -> None:
    rows = [
        {"context": "What", "choices": ["say", "yas"], "answer": "A"},
        {"context": "What say you to line", "choices": ["aa", "oo"], "answer": 1},
    ]
    write_rows(folder / "mine.jsonl", rows[:1] * 3 + rows[1:])
    pair = {"sentence_good": "What say you", "sentence_bad": "Whyy say you", "UID": "x"}
    (folder / "data/blimp").mkdir()
    for name in ("a", "b"):
        write_rows(folder / f"data/blimp/{name}.jsonl", [pair | {"linguistics_term": name}])
    typed = ["outputs/fp32", "tasks=[mine.jsonl,blimp]", "device=cpu"]
    done = here("eval", *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (
        "correct (95 % interval" in done.stdout and "of 4 questions; 1 context cut" in done.stdout
    )
    assert "data/blimp has 2 files of BLiMP's 67" in done.stdout
    found = json.loads((folder / "outputs/fp32/eval.json").read_text())["tasks"]
    assert [one["n"] for one in found["blimp"]["phenomena"].values()] == [1, 1]
    for name, one in found["blimp"]["phenomena"].items():
        assert f"  {name}  {one['acc']:6.1%} of 1\n" in done.stdout
    assert found["mine.jsonl"]["kind"] == "choice" and found["mine.jsonl"]["n"] == 4
    assert found["mine.jsonl"]["cut"] == 1 and found["mine.jsonl"]["starts_with"] is None


def test_int8_shows_the_size_beside_the_loss_of_both(folder: Path) -> None:
    done = here("eval", "outputs/fp32", "int8=true", "device=cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "outputs/fp32/eval.json").read_text())["tasks"]["loss"]
    stored, small = found["sizes"]["stored"], found["sizes"]["int8"]
    weights = Path("outputs/fp32/checkpoints/best/model.safetensors")
    assert stored["bytes"] == weights.stat().st_size > 3 * small["bytes"]
    assert stored["bits_per_byte"] == found["bits_per_byte"]
    assert 0 < abs(small["bits_per_byte"] - stored["bits_per_byte"]) < 0.05
    assert f"{small['bytes'] / 1024:.0f} KiB  loss {small['loss']:.4f}" in done.stdout
    shown = f"{stored['bytes'] / 1024:.0f} KiB on disk)"
    assert shown in done.stdout.splitlines()[0]
    done = here("eval", "outputs/fp32", "device=cpu", cwd=folder)
    assert done.stdout.count("\n") == 1 and shown in done.stdout


def test_the_stored_size_counts_only_weights_and_those_of_the_base_too(folder: Path) -> None:
    def stored(*typed: str) -> int:
        (result,) = tasks_of(folder, *typed).values()
        return int(result["sizes"]["stored"]["bytes"])

    adapters = ["finetune=lora", "init_from=outputs/fp32", "run.name=lora"]
    assert here("train", *DATA, *TINY_RUN, *adapters, cwd=folder).returncode == 0
    own, base = (folder / f"outputs/{name}/checkpoints/best" for name in ("lora", "fp32"))
    sizes = [(path / "model.safetensors").stat().st_size for path in (own, base)]
    assert sizes[0] < sizes[1] and stored("outputs/lora") == sum(sizes)
    assert here("export", "outputs/fp32", "out=hf", cwd=folder).returncode == 0
    (folder / "hf/training_args.bin").write_bytes(b"not weights")
    size = (folder / "hf/model.safetensors").stat().st_size
    assert stored("hf", "data_path=play.txt") == size


def test_a_causal_network_passes_and_a_broken_one_exits_with_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluated(folder, "outputs", "verify_causal=true")["verify_causal"]
    assert [one["causal"] for one in found] == [True, True]
    assert not list(folder.glob("outputs/*/eval.json"))
    whole = GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, x: whole(self, x + x.roll(-1, dims=1)))
    done = here("eval", "outputs/fp32", "verify_causal=true", "device=cpu", cwd=folder)
    assert done.returncode == 1 and "NOT causal" in done.stdout
    assert done.stderr.endswith("in outputs/fp32 logits depend on later tokens\n")
    monkeypatch.setattr(GPT, "logits", lambda self, x: whole(self, x) * torch.inf)
    done = here("eval", "outputs/fp32", "verify_causal=true", "device=cpu", cwd=folder)
    assert done.returncode == 1 and "NOT causal: logits are not finite" in done.stdout


def test_a_report_has_the_results_of_the_best_checkpoint(folder: Path) -> None:
    (folder / "mine.txt").write_text("What say you, my lord?", encoding="utf-8")
    tasks_of(folder, "outputs/fp32", "tasks=[loss,mine.txt]")
    typed = ["outputs/fp32", "outputs/bf16", "out=report", "json=true"]
    done = here("report", *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    scores = {run["folder"]: run["scores"] for run in json.loads(done.stdout)["runs"]}
    written = json.loads((folder / "outputs/fp32/eval.json").read_text())["tasks"]
    assert scores["outputs/bf16"] == {}
    assert scores["outputs/fp32"] == {
        "eval/loss": written["loss"]["loss"], "eval/bits/byte": written["loss"]["bits_per_byte"],
        "eval/mine.txt": written["mine.txt"]["loss"],
        "eval/mine.txt bits/byte": written["mine.txt"]["bits_per_byte"],
    }  # fmt: skip
    points = json.loads((folder / "report/report.json").read_text())["points"]
    assert {name: one for point in points for name, one in point["scores"].items()} == scores[
        "outputs/fp32"
    ]
    heading, *rows = csv.reader((folder / "report/summary.csv").read_text("utf-8-sig").splitlines())
    column = heading.index("eval/loss")
    assert sorted(bool(row[column]) for row in rows) == [False, True]


def refusal(folder: Path, *typed: str) -> str:
    done: Done = here("eval", *typed, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].removeprefix("run_eval.py: ")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "ckpt is missing: give a run, a sweep or weights"),
        (["nowhere"], "ckpt=nowhere does not exist"),
        (["outputs/fp32", "tasks=[]"], "tasks is empty"),
        (["outputs/fp32", "tasks=[grammar]", "split=test"], "split=test has no effect: of these"),
        (
            ["outputs/fp32", "data_path=play.txt", "split=test"],
            "split=test has no effect: data_path=play.txt is one text without splits; leave",
        ),
        (["outputs/fp32", "tasks=[7]"], "tasks=7 must be names of tasks or paths of files"),
        (["outputs/fp32", "tasks=los"], "path of a file; did you mean 'loss'?"),
        (["outputs/fp32", "tasks=outputs/fp32/summary.json"], "summary.json is JSON: questions"),
        (["outputs/fp32", "tasks=blimp"], "blimp needs its files in data/blimp: git clone"),
        (["outputs/fp32", "tasks=[loss,bad.JSONL]"], "bad.JSONL, line 2: answer=5 is out of range"),
        (["outputs/fp32", "tasks=long.jsonl"], "long.jsonl, line 1: a choice has 21 tokens, and"),
        (["outputs/fp32", "window=17"], "window=17 is longer than the model's block_size=16"),
        (["outputs/fp32", "stride=17"], "stride=17 is larger than the window of 16 tokens"),
        (["outputs/fp32", "window=4", "stride=5"], "stride=5 is larger than window=4"),
        (["outputs/fp32", "split=vall"], "split=vall must be one of train, val, test"),
        (
            ["outputs/fp32", "data_path=nowhere"],
            "data_path=nowhere is neither a text file nor a prepared",
        ),
        (["outputs/fp32", "data_path=" + "x" * 300], "is neither a text file nor a prepared"),
        (["outputs/fp32", "tasks=[a/same.txt,b/same.txt]"], "two results with the name same.txt"),
        (
            ["outputs/fp32", "as_in_training=true", "tasks=[loss,grammar]"],
            "evaluate grammar without",
        ),
        (["outputs/fp32", "tasks=cyrillic.txt"], "cyrillic.txt: not in this vocabulary of"),
        (["outputs/fp32", "tasks=binary.txt"], "binary.txt is not UTF-8: byte 0xff at offset 0"),
        (["outputs/fp32", "tasks=empty.txt"], "empty.txt: the text has fewer than two tokens"),
        (["outputs/fp32", "as_in_training=true", "window=3"], "leave out window"),
        (["outputs/fp32/checkpoints/best/model.safetensors"], "ckpt="),
        (["data"], "data has no runs in it"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_writes_nothing(
    trained: Path, typed: list[str], said: str
) -> None:
    (trained / "cyrillic.txt").write_text("\u0434\u0430", encoding="utf-8")
    (trained / "binary.txt").write_bytes(b"\xff\xfe")
    (trained / "empty.txt").write_bytes(b"")
    for name in "ab":
        (trained / name).mkdir(exist_ok=True)
        (trained / name / "same.txt").write_text("What", encoding="utf-8")
    good = {"context": "What", "choices": ["say", "sat"], "answer": 0}
    write_rows(trained / "bad.JSONL", [good, good | {"answer": 5}])
    write_rows(trained / "long.jsonl", [good | {"choices": ["a", "say " * 5]}])
    assert said in refusal(trained, *typed, "device=cpu")
    assert not list(trained.glob("outputs/*/eval.json"))


def test_other_data_is_read_as_training_reads_it_and_has_a_result_of_its_own(folder: Path) -> None:
    own = tasks_of(folder, "outputs/fp32")
    data = next(Path("data").glob("text-*"))
    typed = ["outputs/fp32", f"data_path={data}"]
    assert tasks_of(folder, *typed) == {data.name: own["loss"]}
    assert list(tasks_of(folder, *typed, "split=test")) == [f"{data.name}_test"]
    for raw in (b"What say\nyou", b"\xef\xbb\xbfWhat say\r\nyou"):
        (folder / "mine.txt").write_bytes(raw)
        found = tasks_of(folder, "outputs/fp32", "data_path=mine.txt")
        assert found["mine.txt"]["tokens"] == len("hat say\nyou")
    written = json.loads((folder / "outputs/fp32/eval.json").read_text())["tasks"]
    assert set(written) == {"loss", data.name, f"{data.name}_test", "mine.txt"}
    assert written["loss"] == own["loss"]


def test_data_of_another_tokenizer_is_refused_and_a_text_is_not(folder: Path) -> None:
    typed = ["data=text", "data.path=play.txt", "data.tokenizer=byte", "data.name=bytes"]
    assert here("prepare", *typed, cwd=folder).returncode == 0
    other = next(Path("data").glob("bytes-*"))
    said = refusal(folder, "outputs/fp32", f"data_path={other}")
    assert "outputs/fp32 has an alphabet of" in said and "the 257 tokens of byte" in said
    assert tasks_of(folder, "outputs/fp32", "data_path=play.txt")["play.txt"]["tokens"] > 1000
