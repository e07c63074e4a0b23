"""``json=true``: one JSON document is the last line of standard output, however a command ends."""

import contextlib
import errno
import importlib
import io
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import answer as answers
from llm.errors import DiskError, Diverged, OutOfMemory
from llm.experiment.samples import RULE
from llm.signals import listener
from tests.command_line import Done, here, summary
from tests.conftest import PLAY, ROOT, TINY_RUN

COMMANDS = [path.stem.removeprefix("run_") for path in sorted(ROOT.glob("run_*.py"))]
DATA = ["data=text", "data.path=play.txt", "data.tokenizer=char"]
REQUIRED = {"schema", "command", "status", "exit", "reason", "key", "suggestions"}


def document(done: Done, command: str, status: str, code: int) -> dict[str, Any]:
    """The document, which is all of standard output; what every document has is checked."""
    lines = done.stdout.splitlines()
    assert len(lines) == 1 and done.stdout.endswith("\n"), done.stdout + done.stderr
    found = json.loads(lines[0], parse_constant=pytest.fail)
    assert isinstance(found, dict) and set(found) >= REQUIRED
    assert found["schema"] == 1 and found["command"] == f"run_{command}"
    assert (found["status"], found["exit"], done.returncode) == (status, code, code), done.stderr
    if code:
        assert found["reason"] and f"{found['reason']}" in done.stderr
    return found


TOO_LARGE = ["trainer.batch_size=64", "memory.budget_gib=2", "memory.fit=check"]
# The command, a mistake, its key, and the first suggestion
MISTAKES = [
    *((one, ["json=true", "modl=nano"], "modl", None) for one in COMMANDS if one != "train"),
    ("train", ["modl=nano"], "modl", "model=nano"),
    ("train", ["model=smal"], "model", "model=small"),
    ("train", ["model.n_layr=5"], "model.n_layr", "model.n_layer=5"),
    ("train", ["n_layer=5"], "n_layer", "model.n_layer=5"),
    ("train", ["+model.n_layr=5"], "model.n_layr", "model.n_layer=5"),
    ("train", ["model.n_layer=0"], "model.n_layer", "model.n_layer=1"),
    ("train", ["memory.fit=aut"], "memory.fit", "memory.fit=off"),
    ("train", ["optimizer.lr=fast"], "optimizer.lr", None),
    ("train", ["-m", "model.n_layer=4,0"], "model.n_layer", "model.n_layer=1"),
    ("train", ["--seed=1"], "--seed", "seed=1"),
    ("train", ["--config-dir"], None, None),
    ("train", ["seed", "=", "1"], "seed", None),
    ("train", ["resume=outputs/gone"], "resume", "resume=outputs/here"),
    ("train", ["jsn=true"], "jsn", "json=true"),
    ("plan", ["model.n_layer=0,1"], "model.n_layer", "model.n_layer=1"),
    (
        "plan",
        ["model=small", "trainer.batch_size=64", "memory.budget_gib=2", "memory.fit=check"],
        "memory.budget_gib",
        "tr",
    ),
    ("sample", [], "ckpt", "ckpt=outputs/here"),
    ("sample", ["ckpt=outputs/gone"], "ckpt", "ckpt=outputs/here"),
    ("sample", ["ckpt=outputs/here", "top_k=0"], "top_k", "top_k=1"),
    ("prepare", ["data=poems"], "data", "data="),
    ("prepare", ["data=text", "data.path=gone.txt"], "data.path", None),
]


@pytest.mark.parametrize(("command", "typed", "key", "suggestion"), MISTAKES)
def test_a_mistake_is_named_with_its_key_and_what_to_type_instead(
    command: str, typed: list[str], key: str | None, suggestion: str | None, tmp_path: Path
) -> None:
    (tmp_path / "outputs" / "here" / "checkpoints").mkdir(parents=True)
    done = here(command, "json=true", *typed, cwd=tmp_path)
    found = document(done, command, "refused", 2)
    assert found["key"] == key
    if suggestion is not None:
        assert found["suggestions"][0].startswith(suggestion)
    assert all("=" in word for word in found["suggestions"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("typed", [["--help"], ["--version"], ["--cfg", "job"]])
def test_a_command_that_only_prints_ends_with_a_document_too(
    command: str, typed: list[str], tmp_path: Path
) -> None:
    found = document(here(command, *typed, "json=true", cwd=tmp_path), command, "finished", 0)
    assert found["output"].strip()
    if typed == ["--help"]:
        assert "json=true" in found["output"]


def test_the_last_json_word_counts_and_another_value_is_refused_as_text(tmp_path: Path) -> None:
    words = "json=true", "json=false", "--version"
    assert "{" not in here("train", *words, cwd=tmp_path).stdout
    document(here("train", "json=false", "json=TRUE", "--version", cwd=tmp_path), "train",
             "finished", 0)  # fmt: skip
    done = here("train", "json=true", "json=maybe", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_train.py: json=maybe must be true or false\n"


def test_the_documents_in_the_docs_are_what_the_commands_print() -> None:
    page = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    found = [json.loads(text) for text in re.findall(r"```json\n(.*?)\n```", page)]
    assert {one["command"] for one in found} >= {
        f"run_{command}" for command in set(COMMANDS) - {"report"}
    }
    assert all(set(one) >= REQUIRED and one["schema"] == 1 for one in found)
    statuses = answers.STATUSES | {one.exit_status: one.status for one in (Diverged, OutOfMemory)}
    for code, status in (statuses | {DiskError.exit_status: DiskError.status}).items():
        assert re.search(rf"^\| {code} \| .*`{status}`", page, flags=re.MULTILINE), code


def test_text_that_only_mentions_the_word_is_left_alone(tmp_path: Path) -> None:
    done = here("sample", "prompt=json=true", "ckpt=gone", cwd=tmp_path)
    assert done.stdout == "" and done.returncode == 2


# Each command calls one of these functions once its settings are known.
PLACES = {
    "prepare": "llm.data.prepare.prepare",
    "train": "llm.recipe.show_start",
    "sample": "llm.experiment.samples.read_prompt",
    "plan": "llm.planning.points.plan_points",
    "report": "llm.report.writing.make_report_folder",
    "eval": "llm.tasks.subject.open_source",
    "export": "llm.interchange.writing.write_hf",
}


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "tokens.bin")


def stop_signal(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def not_finite(*_: object, **__: object) -> None:
    raise Diverged("the loss is nan at step 3", loss=math.nan)


ENDS = [
    ("out_of_memory", 4, no_memory),
    ("disk_error", 5, full_disk),
    ("interrupted", 75, stop_signal),
    ("diverged", 3, not_finite),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``outputs/a`` is a finished run."""
    cwd = tmp_path_factory.mktemp("finished")
    (cwd / "play.txt").write_text(PLAY, encoding="utf-8")
    assert here("train", *DATA, *TINY_RUN, "run.name=a", cwd=cwd).returncode == 0
    return cwd


def words_of(command: str) -> list[str]:
    """What to type so that ``command`` finishes in the folder :func:`finished`."""
    return {
        "prepare": DATA,
        "train": [*DATA, *TINY_RUN, "seed=2"],
        "sample": ["ckpt=outputs/a", "max_new_tokens=5", "device=cpu"],
        "plan": ["model=nano"],
        "report": ["outputs/a", "out=report"],
        "eval": ["outputs/a", "device=cpu"],
        "export": ["outputs/a", "out=exported", "overwrite=true"],
    }[command]


@pytest.mark.parametrize(
    ("command", "end"),
    [(command, end) for command in PLACES for end in ENDS if end[1] != 3 or command == "train"],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_command_that_ends_early_says_how_in_its_document(
    command: str, end: tuple[str, int, Callable[..., None]], finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    status, code, act = end
    importlib.import_module(PLACES[command].rpartition(".")[0])
    monkeypatch.setattr(PLACES[command], act)
    done = here(command, "json=true", *words_of(command), cwd=finished)
    found = document(done, command, status, code)
    if command == "train" and code != 5:  # a run that could not be written leaves no folder
        folder = finished / found["folder"]
        assert summary(folder)["status"] == status
        assert found["config_digest"] == summary(folder)["config_digest"]
        ledger = (finished / "outputs" / "ledger.jsonl").read_text(encoding="utf-8")
        assert "json" not in ledger.splitlines()[-1].replace(".jsonl", "")


def test_a_finished_run_answers_with_its_summary(finished: Path) -> None:
    again = here("train", *DATA, *TINY_RUN, "run.name=a", "json=true", cwd=finished)
    found = document(again, "train", "finished", 0)
    written = summary(finished / "outputs" / "a")
    assert found["folder"] == "outputs/a" and written["val_loss"] > 0
    assert {key: found[key] for key in written} == written


def test_prepare_answers_with_the_folder_and_its_tokens(finished: Path) -> None:
    found = document(here("prepare", "json=true", *DATA, cwd=finished), "prepare", "finished", 0)
    meta = json.loads((finished / found["folder"] / "meta.json").read_text(encoding="utf-8"))
    for key in ("vocab_size", "tokens", "bytes"):
        assert found[key] == meta[key]
    assert found["tokenizer"] == "char"
    assert found["digest"] == summary(finished / "outputs" / "a")["data_digest"]


def test_sample_answers_with_each_text_and_its_scores(finished: Path) -> None:
    typed = [*words_of("sample"), "prompt=What", "num_samples=2", "seed=7"]
    plain = here("sample", *typed, "echo=false", cwd=finished).stdout.rstrip("\n")
    done = here("sample", *typed, "logprobs=true", "json=true", cwd=finished)
    samples = document(done, "sample", "finished", 0)["samples"]
    assert f"\n{RULE}\n".join(one["text"] for one in samples) == plain
    for seed, one in zip((7, 8), samples, strict=True):
        assert (one["seed"], one["prompt"], one["tokens"]) == (seed, "What", 5)
        assert one["ended_by"] == "max_new_tokens" and 0 <= one["scores"]["distinct_1"] <= 1
        assert "".join(token["text"] for token in one["logprobs"]) == one["text"]
        assert all(token["logprob"] < 0 for token in one["logprobs"])


def test_a_stop_string_ends_the_text_of_an_answer(finished: Path) -> None:
    typed = [*words_of("sample"), "json=true", "prompt=What"]
    text = document(here("sample", *typed, cwd=finished), "sample", "finished", 0)["samples"][0][
        "text"
    ]
    done = here("sample", *typed, f"stop={text[2]}", cwd=finished)
    stopped = document(done, "sample", "finished", 0)["samples"][0]
    assert stopped["text"] == text[: text.index(text[2])] and stopped["ended_by"] == "stop"


def test_sample_answers_with_its_speed_and_with_the_check_of_its_cache(finished: Path) -> None:
    done = here("sample", *words_of("sample"), "json=true", "benchmark=true", "verify_cache=true",
                cwd=finished)  # fmt: skip
    found = document(done, "sample", "finished", 0)
    assert found["benchmark"]["decode"]["tokens_per_second"] > 0
    assert found["verify_cache"]["tokens"] == 5 and not found["verify_cache"]["differs"]
    assert "samples" not in found


def test_plan_answers_with_the_points_of_a_grid(tmp_path: Path) -> None:
    done = here("plan", "json=true", "model.n_layer=1,2", "picture=p.png", cwd=tmp_path)
    found = document(done, "plan", "finished", 0)
    assert [one["values"] for one in found["points"]] == [{"model.n_layer": n} for n in "12"]
    for one in found["points"]:
        assert one["fits"] and one["changes"] == [] and one["parameters"] > 0
        assert sum(one["parts"].values()) == one["peak_bytes"] < one["budget_bytes"]
    assert found["picture"] == ("p.png" if (tmp_path / "p.png").exists() else None)


def test_plan_answers_with_the_changes_that_make_a_run_fit_and_the_largest_size(
    tmp_path: Path,
) -> None:
    typed = ["model=small", "memory.largest=n_layer", *TOO_LARGE[:2]]
    (one,) = document(here("plan", "json=true", *typed, cwd=tmp_path), "plan", "finished", 0)[
        "points"
    ]
    assert not one["fits"] and one["changes"][0].startswith("trainer.micro_batch_size=")
    assert one["largest"]["key"] == "n_layer" and 1 <= one["largest"]["value"] < 10


def test_a_dry_run_answers_with_the_plan_and_what_the_folder_holds(finished: Path) -> None:
    dry = [*DATA, *TINY_RUN, "run.dry_run=true", "json=true"]
    found = document(here("train", *dry, "run.name=a", cwd=finished), "train", "finished", 0)
    assert (found["folder"], found["state"], found["max_steps"]) == ("outputs/a", "finished", 6)
    assert found["plan"]["fits"] and found["data"].startswith("data/")
    found = document(here("train", *dry, "run.name=b", cwd=finished), "train", "finished", 0)
    assert found["state"] == "new"


def test_verify_answers_with_the_state_of_each_file(finished: Path) -> None:
    typed = "resume=outputs/a", "verify=true", "json=true"
    files = document(here("train", *typed, cwd=finished), "train", "finished", 0)["files"]
    assert {file["state"] for file in files} == {"intact"}
    assert any("checkpoints/best-" in file["path"] for file in files)
    weights = next((finished / "outputs/a/checkpoints").glob("best-*")) / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    found = document(here("train", *typed, cwd=finished), "train", "refused", 2)
    weights.write_bytes(before)
    assert [file["state"] == "intact" for file in found["files"]].count(False) == 1


def test_the_dry_run_of_a_sweep_answers_with_its_jobs(finished: Path) -> None:
    typed = ["-m", *DATA, *TINY_RUN, "seed=1,2", "run.dry_run=true", "run.sweep=s", "json=true"]
    found = document(here("train", *typed, cwd=finished), "train", "finished", 0)
    assert [job["values"] for job in found["jobs"]] == [{"seed": "1"}, {"seed": "2"}]
    assert found["folder"] == "multirun/s" and all(job["fits"] for job in found["jobs"])


def test_a_gate_that_is_not_passed_has_a_document_too(finished: Path) -> None:
    done = here("train", *DATA, *TINY_RUN, "run.name=c", "optimizer.lr=0.01", cwd=finished)
    assert done.returncode == 0
    typed = ["outputs/a", "outputs/c", "out=gate", "json=true"]
    report = document(here("report", *typed, cwd=finished), "report", "finished", 0)
    assert [one["n"] for one in report["points"]] == [1, 1]
    assert report["verdict"]["verdict"] == "not shown"
    done = here("report", *typed, "gate=true", cwd=finished)
    assert document(done, "report", "not_shown", 10)["verdict"] == report["verdict"]


@pytest.mark.slow
def test_a_sweep_answers_with_all_jobs_and_the_best(finished: Path) -> None:
    typed = ["-m", *DATA, *TINY_RUN, "run.sweep=t", "json=true"]
    found = document(here("train", *typed, "seed=1,2", cwd=finished), "train", "finished", 0)
    losses = {job["folder"]: job["best_val_loss"] for job in found["jobs"]}
    assert found["best"] == min(losses, key=lambda folder: losses[folder])
    assert found["counts"] == {"finished": 2} and (finished / found["table"]).is_file()
    config = (finished / "multirun/t/seed-1/config.yaml").read_text(encoding="utf-8")
    assert "json" not in config, "the word is no setting of a job"
    typed = ["-m", *DATA, *TINY_RUN, "optimizer=adamw", "optimizer.lr=0.01,1e30"]
    typed += ["trainer.rollbacks=0", "trainer.max_steps=60", "json=true"]
    found = document(here("train", *typed, cwd=finished), "train", "failed", 1)
    assert found["counts"] == {"finished": 1, "diverged": 1}
    assert found["best"] == found["jobs"][0]["folder"] and found["jobs"][1]["reason"]


STREAMS = """
import os, sys
sys.argv = ["run_train.py", "json=true"]
import llm.start
from llm.answer import answer, end
print("a line of the screen")
os.system("echo a child process")
answer(val_loss=1.5)
sys.exit(end(0))
"""


def shell(code: str, redirect: str = "", cwd: Path | None = None) -> Done:
    """Run Python code with its streams redirected by a shell."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirect}', sys.executable, code],
        cwd=cwd, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_child_processes_print_to_standard_error_too() -> None:
    done = shell(STREAMS)
    assert document(done, "train", "finished", 0)["val_loss"] == 1.5
    assert done.stderr == "a line of the screen\na child process\n"


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        ("> /dev/full", 5, "run_train.py: standard output could not be written: No space left"),
        (">&-", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_a_document_that_cannot_be_written(redirect: str, code: int, said: str) -> None:
    if redirect == "> /dev/full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    done = shell(STREAMS, redirect)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and "Traceback" not in done.stderr


SIGNALS = """
import os, signal, sys
sys.argv = ["run_train.py", "json=true"]
import llm.start
from llm.signals import raised, remember
if TWICE:
    with raised():
        remember()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
else:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_while_modules_are_imported_leaves_a_document() -> None:
    done = shell(SIGNALS.replace("TWICE", "False"))
    found = document(done, "train", "interrupted", 75)
    assert found["reason"] == "stopped by SIGTERM before anything was started"


def test_a_second_ctrl_c_leaves_a_document() -> None:
    done = shell(SIGNALS.replace("TWICE", "True"))
    found = json.loads(done.stdout)
    assert (found["status"], found["exit"], done.returncode) == ("killed", 130, 130)


def test_a_bug_leaves_a_document_and_a_traceback(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("n_layer")

    monkeypatch.setattr(PLACES["plan"], bug)
    out = io.StringIO()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "run_plan.py"), "json=true"])
    environment = patch.dict(os.environ)  # a process of its own would end here
    with environment, contextlib.redirect_stdout(out), pytest.raises(KeyError):
        runpy.run_path(sys.argv[0], run_name="__main__")
    listener.stop_listening()
    found = json.loads(out.getvalue())
    assert (found["status"], found["exit"]) == ("failed", 1)
    assert found["reason"] == "KeyError: 'n_layer'"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def expected(value: Any) -> Any:
    """``value`` after a round trip through JSON, in which NaN and infinity are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [expected(item) for item in value]
    if isinstance(value, dict):
        return {key: expected(item) for key, item in value.items()}
    return value


@settings(max_examples=25)
@given(values=st.dictionaries(st.text(), values))
def test_any_answer_becomes_one_line_of_json(values: dict[str, Any]) -> None:
    text = answers.as_text(0, values)
    assert len(text.splitlines()) == 1 and text.isascii()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["exit"] == 0
    assert {key: found[key] for key in values if key != "exit"} == {
        key: expected(value) for key, value in values.items() if key != "exit"
    }


def test_paths_bytes_that_are_no_text_and_other_types_become_text() -> None:
    value = {"folder": Path("a/b"), "name": os.fsdecode(b"a\xff"), 1: (1, {2})}
    assert answers.plain(value) == {"folder": "a/b", "name": "a\\udcff", "1": [1, [2]]}


def test_a_second_command_of_a_process_starts_with_an_empty_document(tmp_path: Path) -> None:
    answers.answer(left_over=1)
    assert "left_over" not in document(
        here("train", "--version", "json=true", cwd=tmp_path), "train", "finished", 0
    )
