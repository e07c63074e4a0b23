"""``import llm``: the same runs as the commands, from Python."""

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.nn import functional as F

import llm
from llm.api.run import NO_OPTIONS
from llm.settings.sample import SampleSettings
from tests.command_line import here, meanwhile, rows, wait_until
from tests.conftest import HANGS, PLAY, ROOT, TINY_RUN

OF_TIME = {"tokens_per_second", "mfu", "peak_memory_bytes", "train_seconds"}
WORDS = ["data=text", "data.path=play.txt", "data.tokenizer=char", *TINY_RUN]
ENDLESS = [word for word in WORDS if "max_steps" not in word] + ["trainer.max_steps=1000000"]


def without_time(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in OF_TIME} for row in found]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text in it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "play.txt").write_text(PLAY, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in :func:`place`."""
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def trained(place: Path) -> Iterator[llm.Run]:
    """A run of six steps, trained by ``llm.train``; nothing else of the process has changed."""
    before = os.getcwd(), sys.argv[:]
    os.chdir(place)
    yield llm.train([*WORDS, "run.name=here"], quiet=True)
    os.chdir(before[0])
    assert sys.argv == before[1]


def test_a_run_from_python_has_the_bits_of_the_command(trained: llm.Run, place: Path) -> None:
    assert here("train", *WORDS, "run.name=command", cwd=place).returncode == 0
    command = llm.load("outputs/command")
    assert without_time(trained.metrics) == without_time(command.metrics)
    weights, others = trained.model.state_dict(), command.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in others)
    changing = ("identity", "config_digest", "data_digest", "val_loss", "status", "parameters")
    assert all(trained.summary.get(key) == command.summary.get(key) for key in changing)


def test_a_run_says_what_its_files_say(trained: llm.Run) -> None:
    assert trained.folder == Path("outputs/here")
    assert trained.status == "finished" and trained.metrics == rows(trained.folder)
    assert trained.val_loss == trained.metrics[-1]["val/loss"]
    losses = [row["val/loss"] for row in trained.metrics if "val/loss" in row]
    assert trained.best_val_loss == min(losses)
    assert trained.config["model"]["n_embed"] == 32 and trained.config["run"]["name"] == "here"
    assert not trained.model.training and trained.tokenizer.kind == "char"
    assert repr(trained).startswith("<llm.Run 'outputs/here', finished, step 6, best val loss ")


def test_the_same_words_skip_a_finished_run_and_resume_trains_it_on(
    trained: llm.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    again = llm.train([*WORDS, "run.name=here"])
    assert again.summary == trained.summary
    assert "finished already" in capsys.readouterr().out
    short = llm.train([*WORDS, "run.name=longer", "trainer.max_steps=2"], quiet=True)
    assert capsys.readouterr().out == ""
    longer = llm.train([f"resume={short.folder}", "trainer.max_steps=4"], quiet=True)
    assert longer.folder == short.folder and longer.summary["step"] == 4


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.n_layr=2", "model.n_layr is unknown: model has no key n_layr; did you mean"),
        ("model=huge", "model=huge is unknown: take one of"),
        ("model.n_layer=x", "model.n_layer=x: Value 'x'"),
        ("model.n_layer=1,2", "add -m to sweep over it"),
        ("-m", "use llm.sweep"),
        ("--help", "--help works only on the command line"),
        ("--version", "--version works only on the command line"),
        ("--config-name=plan", "--config-name works only on the command line"),
        ("sweep=depth", "sweep"),
        ("resume=nowhere", "resume=nowhere does not exist"),
        ("run.dry_run=true", "use llm.plan"),
        ("--wrong", "--wrong is unknown"),
        ("--config-dir=nowhere", "--config-dir nowhere is not a folder"),
        ("trainer.device=tpu", "trainer.device=tpu is unknown"),
        ("data.path=nowhere.txt", "nowhere.txt"),
    ],
)
def test_a_mistake_is_refused_with_the_line_of_the_command(word: str, message: str) -> None:
    before = sys.argv[:]
    with pytest.raises(llm.Refused) as caught:
        llm.train([*WORDS, word], quiet=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sys.argv == before and not GlobalHydra.instance().is_initialized()


def test_one_text_instead_of_a_list_of_words_is_refused() -> None:
    with pytest.raises(llm.Refused, match="give a list"):
        llm.train("model=nano")


def test_free_text_needs_no_quotes(place: Path) -> None:
    (place / "it's, (new).txt").write_text(PLAY, encoding="utf-8")
    run = llm.train([*WORDS, "data.path=it's, (new).txt", "trainer.max_steps=1"], quiet=True)
    assert run.config["data"]["path"] == "it's, (new).txt"


def test_a_diverged_run_raises_diverged(place: Path) -> None:
    words = ["optimizer=adamw", "optimizer.lr=1e30", "trainer.rollbacks=0", "trainer.max_steps=60"]
    with pytest.raises(llm.Diverged):
        llm.train([*WORDS, *words, "run.name=diverged"], quiet=True)
    assert llm.load("outputs/diverged").status == "diverged"


def test_the_random_state_of_the_process_stays() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    llm.train([*WORDS, "trainer.max_steps=1"], quiet=True)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_ctrl_c_saves_a_checkpoint_and_the_program_lives_on() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    folder = Path("outputs/stopped")

    def interrupt() -> None:
        wait_until(lambda: len(rows(folder)) > 3)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(interrupt), pytest.raises(llm.Interrupted) as caught:
        llm.train([*ENDLESS, "run.name=stopped", "trainer.eval_interval=1000000"], quiet=True)
    assert "the checkpoint is saved; to continue: python " in str(caught.value)
    assert "run.name=stopped" in str(caught.value)
    assert llm.load(folder).status == "interrupted"
    assert llm.load(folder).checkpoint.step == llm.load(folder).summary["step"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_ctrl_c_ends_the_run_and_not_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm.training.trainer import Trainer

    def twice(trainer: Trainer, step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "optimizer_step", twice)
    with pytest.raises(llm.Interrupted, match="stopped at once by Ctrl-C"):
        llm.train([*WORDS, "run.name=twice"], quiet=True)
    assert llm.load("outputs/twice").status == "interrupted"


def test_it_trains_in_a_thread_and_a_second_run_at_once_is_refused(trained: llm.Run) -> None:
    from llm.api import call

    found: list[llm.Run] = []

    def train() -> None:
        found.append(llm.train([*WORDS, "run.name=thread"], quiet=True))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert without_time(found[0].metrics) == without_time(trained.metrics)
    with call._training, pytest.raises(llm.Refused, match="in_process=False"):
        llm.train(WORDS)


def test_it_trains_inside_another_hydra_program(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("key: 1\n", encoding="utf-8")
    with initialize_config_dir(version_base="1.2", config_dir=str(tmp_path)):
        before = GlobalHydra.instance().hydra
        llm.train([*WORDS, "trainer.max_steps=1"], quiet=True)
        assert len(llm.plan([*WORDS, "model.n_layer=1,2"])) == 2
        assert GlobalHydra.instance().hydra is before
        assert compose("own").key == 1


def test_a_sample_is_the_text_of_the_command(trained: llm.Run, place: Path) -> None:
    asked = ["ckpt=outputs/here", "prompt=SPEAKER 1", "max_new_tokens=40"]
    for options in ({}, {"seed": 5, "temperature": 0}, {"stop": "e", "echo": False, "top_k": 4}):
        typed = [f"{key}={value}" for key, value in options.items()]
        done = here("sample", *asked, *typed, cwd=place)
        text = trained.sample("SPEAKER 1", max_new_tokens=40, **options)
        assert done.stdout == text + "\n", done.stderr
    assert trained.sample(max_new_tokens=3) == trained.sample(max_new_tokens=3)


def test_the_options_of_a_sample_are_the_keys_of_the_command(trained: llm.Run) -> None:
    assert set(NO_OPTIONS) < {field.name for field in fields(SampleSettings)}
    for wrong, message in (
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"num_samples": 2}, "num_samples is no option"),
        ({"temperature": -1}, "temperature=-1"),
        ({"stop": ["é"]}, "can never appear"),
    ):
        with pytest.raises(llm.Refused, match=message):
            trained.sample("SPEAKER", **wrong)


@pytest.mark.parametrize("length", [2, 10, 17, 18, 49, 5000])
def test_the_loss_of_a_text_is_that_of_plain_torch(trained: llm.Run, length: int) -> None:
    text = PLAY[:length]
    ids = torch.tensor(trained.tokenizer.encode(text).astype(np.int64))
    total, block = 0.0, 16
    with torch.no_grad():
        for first in range(0, len(ids) - 1, block):
            last = min(first + block, len(ids) - 1)
            start = min(first, max(0, len(ids) - 1 - block))  # the last window is moved back
            logits = trained.model(ids[start:last][None])[0]
            total += float(
                F.cross_entropy(logits, ids[start + 1 : last + 1], reduction="none")[
                    first - start :
                ].sum()
            )
    assert trained.loss(text) == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    in_bits = total / np.log(2) / (len(text.encode()) - 1)
    assert trained.bits_per_byte(text) == pytest.approx(in_bits, rel=1e-5)


def test_a_text_that_cannot_be_scored_is_refused(trained: llm.Run) -> None:
    with pytest.raises(llm.Refused, match="fewer than two tokens"):
        trained.loss("S")
    with pytest.raises(llm.Refused, match="the text has characters"):
        trained.loss("Sé")


def test_a_run_without_weights_says_so_and_blames_no_text(trained: llm.Run, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run", symlinks=True)
    run = llm.load(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(llm.Refused) as caught:
        run.loss("SPEAKER")
    assert str(caught.value).startswith("folder=")


def test_a_checkpoint_is_loaded_as_well_as_a_run(trained: llm.Run, tmp_path: Path) -> None:
    last = llm.load("outputs/here/checkpoints/last")
    assert last.checkpoint.step == 6 and last.val_loss == trained.val_loss
    alone = tmp_path / "alone"
    (trained.folder / "checkpoints/best").resolve().rename(alone)
    try:
        run = llm.load(alone)
        assert run.summary == {} and run.loss("SPEAKER") == trained.loss("SPEAKER")
    finally:
        alone.rename((trained.folder / "checkpoints/best").resolve())
    for wrong in (tmp_path, "nowhere"):
        with pytest.raises(llm.Refused, match="folder="):
            llm.load(wrong)


def test_a_plan_says_what_fits(trained: llm.Run) -> None:
    (one,) = llm.plan(WORDS)
    assert one["parameters"] == trained.summary["parameters"]
    assert one["fits"] and one["values"] == {} and one["peak_bytes"] == sum(one["parts"].values())
    grid = llm.plan([*WORDS, "model.n_layer=1,2,3", "memory.budget_gib=0.5863"])
    assert [point["values"] for point in grid] == [{"model.n_layer": str(n)} for n in (1, 2, 3)]
    assert not any(point["fits"] for point in grid)
    with pytest.raises(llm.Refused, match="n_layr"):
        llm.plan([*WORDS, "model.n_layr=2"])


def test_import_llm_is_light_and_lists_its_functions() -> None:
    code = (
        "import sys; before = set(sys.modules); import llm; "
        "assert not {'torch', 'hydra', 'numpy', 'llm.api'} & set(sys.modules); "
        "assert {'train', 'load', 'Refused'} <= set(dir(llm)); llm.load; llm.Refused; "
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules), 'llm.load is light, too'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = llm.trian


def test_runs_are_plain_records_for_pandas(place: Path) -> None:
    for layers in (1, 2):
        words = [f"model.n_layer={layers}", f"run.dir=two/{layers}", "trainer.max_steps=1"]
        llm.train([*WORDS, *words], quiet=True)
    one, two = llm.runs("two")
    assert [one["model.n_layer"], two["model.n_layer"]] == [1, 2]
    assert "model.n_embed" not in one and one["folder"] == "two/1"
    assert one["best_val_loss"] == llm.load("two/1").best_val_loss and one["status"] == "finished"
    rows_of = llm.runs("two/1", place / "two" / "2")  # all with the same columns
    assert rows_of == [one, two] and list(one) == list(two)
    with pytest.raises(llm.Refused, match="nowhere does not exist"):
        llm.runs("nowhere")


def test_docs_python_md_names_what_exists(trained: llm.Run) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for name, owner in re.findall(r"\b(llm|run)\.([a-zA-Z]\w*+)(?!=)", "".join(blocks)):
        assert hasattr({"llm": llm, "run": trained}[name], owner), owner
    for block in blocks:
        ast.parse(block)


@pytest.mark.slow
def test_a_run_in_its_own_process_is_the_same_run(
    trained: llm.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = llm.train([*WORDS, "run.name=child"], in_process=False)
    assert without_time(run.metrics) == without_time(trained.metrics)
    assert "step 6/6" in capsys.readouterr().out
    with pytest.raises(llm.Refused, match="did you mean") as caught:
        llm.train([*WORDS, "model.n_layr=2"], in_process=False, quiet=True)
    assert caught.value.key == "model.n_layr"
    assert caught.value.suggestions == ["model.n_layer=2"]
    words = ["optimizer=adamw", "optimizer.lr=1e30", "trainer.rollbacks=0", "trainer.max_steps=60"]
    with pytest.raises(llm.Diverged):
        llm.train([*WORDS, *words, "run.name=no"], in_process=False, quiet=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(llm.Refused, match="train no run"):
        llm.train([*WORDS, "run.dry_run=true"], in_process=False, quiet=True)


@pytest.mark.slow
def test_ctrl_c_is_passed_on_to_a_run_in_its_own_process() -> None:
    def interrupt() -> None:
        wait_until(lambda: len(rows(Path("outputs/passed"))) > 3)
        os.kill(os.getpid(), signal.SIGINT)

    words = [*ENDLESS, "run.name=passed", "trainer.eval_interval=1000000"]
    # A shell lets its background processes, and the tests are one under nohup, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with meanwhile(interrupt), pytest.raises(llm.Interrupted, match="the checkpoint is saved"):
            llm.train(words, in_process=False, quiet=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_sweep_returns_its_runs_in_order() -> None:
    runs = llm.sweep([*WORDS, "model.n_layer=2,1", "seed=1,2", "run.sweep=api"], quiet=True)
    found = [(run.config["model"]["n_layer"], run.config["seed"]) for run in runs]
    assert found == [(2, 1), (2, 2), (1, 1), (1, 2)]
    assert all(run.status == "finished" for run in runs)
    assert len(llm.runs("multirun/api")) == 4
    words = ["optimizer=adamw", "optimizer.lr=1e-3,1e30", "trainer.rollbacks=0"]
    two = llm.sweep([*WORDS, *words, "trainer.max_steps=60", "run.sweep=bad"], quiet=True)
    assert [run.status for run in two] == ["finished", "diverged"]
    with pytest.raises(llm.Refused, match="n_layr"):
        llm.sweep([*WORDS, "model.n_layr=2,1"], quiet=True)


@pytest.mark.slow
def test_it_works_beside_a_clone_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import llm; "
        f"run = llm.train({WORDS!r}, quiet=True); assert run.folder.parts[0] == 'outputs'; "
        "print(run.sample('SPEAKER', max_new_tokens=5))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SPEAKER")
    assert {path.name for path in tmp_path.iterdir()} == {"play.txt", "data", "outputs"}
