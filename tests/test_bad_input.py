"""Bad texts, checkpoints and folders: one line, exit status 2, and nothing left behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.command_line import Done, here, listing, summary
from tests.conftest import HANGS, ROOT, TINY_RUN
from tests.data.meta_file import edit_meta

CHAR = ["data=text", "data.tokenizer=char"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with only a text, where commands are typed."""
    path = tmp_path / "here"
    path.mkdir()
    (path / "play.txt").write_text("What say you, my lord?\n" * 100, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with a finished run, ``outputs/a``, and its dataset."""
    path = tmp_path_factory.mktemp("trained")
    done = here("train", *CHAR, f"data.path={text_file}", *TINY_RUN, "run.name=a", cwd=path)
    assert done.returncode == 0, done.stderr
    return path


def assert_refused(done: Done, *words: str) -> None:
    name = Path(done.args[0]).name
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], "trainer.max_steps=null needs a budget: set trainer.max_minutes"),
        (["trainer.max_minutes=0"], "trainer.max_minutes=0.0 must be more than 0 or null"),
        (["trainer.max_minutes=-1"], "trainer.max_minutes=-1.0 must be more than 0 or null"),
        (["trainer.max_minutes=nan"], "trainer.max_minutes=nan must be a finite number"),
        (["trainer.max_minutes=inf"], "trainer.max_minutes=inf must be a finite number"),
    ],
)
def test_a_run_without_an_end_is_refused(typed: list[str], words: str, folder: Path) -> None:
    for command in ("train", "plan"):
        text = [*CHAR, "data.path=play.txt", "trainer.max_steps=null"]
        assert_refused(here(command, *text, *typed, cwd=folder), words)
    assert listing(folder) == {"play.txt"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(folder: Path, trained: Path) -> None:
    text = [*CHAR, "data.path=play.txt"]
    done = here("train", *text, "trainer.device=cuda", cwd=folder)
    assert_refused(done, "trainer.device=cuda, but torch", "take trainer.device=cpu or auto")
    done = here("sample", f"ckpt={trained}/outputs/a", "device=cuda", cwd=folder)
    assert_refused(done, "device=cuda", "take device=cpu or auto")
    assert listing(folder) == {"play.txt"}


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_text_that_cannot_be_used_is_refused_and_leaves_no_dataset(
    command: str, folder: Path
) -> None:
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes(b"caf\xc3\xa9 caf\xe9")
    (folder / "none").mkdir()
    before = listing(folder)
    for path, words in (
        ("empty.txt", ["data.path=empty.txt is empty"]),
        ("latin.txt", ["latin.txt is not UTF-8: byte 0xe9 at offset 9"]),
        ("none", ["data.path=none is a folder without files"]),
    ):
        assert_refused(here(command, *CHAR, f"data.path={path}", cwd=folder), *words)
        assert listing(folder) == before


def test_a_split_shorter_than_a_block_is_refused_before_a_run_folder_is_made(folder: Path) -> None:
    text = [*CHAR, "data.path=play.txt", *TINY_RUN, "model.block_size=400"]
    done = here("train", *text, cwd=folder)
    assert_refused(done, "val.bin has 230 tokens", "model.block_size=400 needs 401")
    assert not (folder / "outputs").exists()


def test_a_dataset_made_from_something_else_or_beyond_its_vocabulary_is_refused(
    folder: Path,
) -> None:
    text = ["data=text", "data.tokenizer=byte", "data.path=play.txt"]
    assert here("prepare", *text, cwd=folder).returncode == 0
    (made,) = (folder / "data").iterdir()

    edit_meta(made, lambda meta: meta.update(max_id=257))
    done = here("train", *text, *TINY_RUN, cwd=folder)
    assert_refused(
        done, f"{made.relative_to(folder)}", "token id 257, beyond its vocabulary of 257"
    )

    other = folder / "data" / "tinyshakespeare_char"
    shutil.copytree(made, other)
    edit_meta(other, lambda meta: meta["made_from"].update(corpus="tinyshakespeare"))
    done = here("train", "data=tinyshakespeare_char", *TINY_RUN, cwd=folder)
    words = ["data/tinyshakespeare_char was prepared with", "tokenizer=byte", "tokenizer=char"]
    assert_refused(done, *words, "take another data.name, or replace it with data.overwrite=true")
    assert not (folder / "outputs").exists()


def test_an_id_beyond_the_vocabulary_in_data_too_large_to_verify_ends_a_run_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.recipe.LARGE", 0)
    text = ["data=text", "data.tokenizer=byte", "data.path=play.txt"]
    assert here("prepare", *text, cwd=folder).returncode == 0
    (made,) = (folder / "data").iterdir()
    (made / "train.bin").write_bytes(b"\xff" * (made / "train.bin").stat().st_size)
    done = here("train", *text, *TINY_RUN, "run.name=a", cwd=folder)
    assert done.returncode == 2
    words = f"{made}/train.bin holds token id 65535, beyond its vocabulary"
    assert done.stderr.splitlines()[-1].startswith(f"run_train.py: {words} of 257: ")
    assert "Traceback" not in done.stderr
    assert summary(folder / "outputs/a")["status"] == "refused"


def test_a_run_folder_that_cannot_be_written_is_refused(folder: Path) -> None:
    text = [*CHAR, "data.path=play.txt", *TINY_RUN]
    for where, words in (
        ("play.txt/run", ["run folder play.txt/run cannot be written: play.txt is not a folder"]),
        ("play.txt", ["run folder play.txt is a file"]),
        (".", ["run folder . has other files in it"]),
    ):
        assert_refused(here("train", *text, f"run.dir={where}", cwd=folder), *words)
    assert {name.partition("/")[0] for name in listing(folder)} == {"play.txt", "data"}


def test_a_place_below_a_file_is_refused_naming_the_file_and_each_path_once(
    folder: Path, trained: Path
) -> None:
    text = [*CHAR, "data.path=play.txt"]
    (folder / "data").mkdir()
    (folder / "data/shakespeare_char").touch()
    (folder / "broken").symlink_to("nowhere")
    shutil.copytree(trained / "outputs/a", folder / "a")
    not_folder = "cannot be written: play.txt is not a folder"
    for command, typed, words in (
        ("prepare", [*text, "data.dir=play.txt/x"], not_folder),
        ("prepare", [], "meta.json cannot be read: data/shakespeare_char is not a folder"),
        ("train", [*text, *TINY_RUN, "run.dir=broken/x"], "broken/x cannot be written: broken is "),
        ("sample", ["a", "prompt_file=play.txt/x"], "x cannot be read: play.txt is not a folder"),
        ("export", ["a", "out=play.txt/x"], f"out=play.txt/x {not_folder}"),
    ):
        done = here(command, *typed, cwd=folder)
        assert_refused(done, words)
        assert "Errno" not in done.stderr and "File exists" not in done.stderr
        paths = re.findall(r"[\w./=-]*/[\w./-]*\w", done.stderr)
        assert len(paths) == len(set(paths)), done.stderr


def test_weights_that_are_missing_or_do_not_fit_are_refused_and_leave_no_run(
    folder: Path, trained: Path
) -> None:
    text = [*CHAR, "data.path=play.txt", *TINY_RUN]
    for more in ([], ["trainer.eval_only=true"]):
        done = here("train", *text, f"init_from={trained}/outputs/a", *more, cwd=folder)
        words = ["outputs/a was trained on an alphabet of ", "and data.tokenizer=char has an alpha"]
        assert_refused(done, *words, "set data.tokenizer=null to take the tokenizer")
        assert "shape" not in done.stderr
    done = here("train", *text, "init_from=it's nowhere", cwd=folder)
    assert_refused(done, "init_from=it's nowhere does not exist")
    assert not (folder / "outputs").exists()


def test_a_refusal_of_a_run_on_another_text_shows_no_digests(trained: Path) -> None:
    other = trained / "other.txt"
    other.write_text("Nothing will come of nothing.\n" * 100, encoding="utf-8")
    done = here("train", *CHAR, f"data.path={other}", *TINY_RUN, "run.name=a", cwd=trained)
    assert_refused(done, "outputs/a holds another run (the text of its data, or the tokens made")
    assert not re.search(r"[0-9a-f]{20}", done.stderr)
    other.unlink()


def test_a_sweep_with_one_combination_that_cannot_work_starts_nothing(folder: Path) -> None:
    text = [*CHAR, "data.path=play.txt", *TINY_RUN]
    done = here("train", "-m", *text, "model.n_embed=32,40", "seed=1,2", cwd=folder)
    words = ["job model.n_embed=40 seed=1 cannot run, so none was started", "model.n_embed=40"]
    assert_refused(done, *words)
    assert listing(folder) == {"play.txt"}


def test_a_job_that_is_refused_after_its_start_says_why_in_its_folder(folder: Path) -> None:
    text = [*CHAR, "data.path=play.txt", *TINY_RUN, "model.block_size=400"]
    job = ["run.sweep=s", "run.dir=multirun/s/seed-1"]  # as the launcher of a sweep starts it
    assert_refused(here("train", *text, *job, cwd=folder), "val.bin has 230 tokens")
    found = summary(folder / "multirun/s/seed-1")
    assert found["status"] == "refused"
    assert "val.bin has 230 tokens" in found["reason"]


SAMPLES: list[tuple[list[str], list[str]]] = [
    (["ckpt=nowhere"], ["ckpt=nowhere does not exist"]),
    (["ckpt=."], ["ckpt=. holds no checkpoint"]),
    (["ckpt=play.txt"], ["ckpt=play.txt holds no checkpoint"]),
    (["RUN", "prompt=café"], ["not in this vocabulary", "'é' (U+00E9)"]),
    (["RUN", "prompt=\udcff"], ["the prompt is not UTF-8"]),
    (["RUN", "temperature=nan"], ["temperature=nan must be"]),
    (["RUN", "top_p=1.5"], ["top_p=1.5 must be more than 0 and at most 1 or null"]),
    (["RUN", "prompt_file=none.txt"], ["prompt_file=none.txt cannot be read: No such file"]),
    (["RUN", "promt=a"], ["promt is unknown", "did you mean 'prompt'?"]),
    (["RUN", "device=tpu"], ["device=tpu is unknown: take auto, cuda, mps or cpu"]),
]


@pytest.mark.parametrize(("typed", "words"), SAMPLES, ids=[ascii(t) for t, _ in SAMPLES])
def test_a_mistake_in_sampling_is_named_in_one_line(
    typed: list[str], words: list[str], folder: Path, trained: Path
) -> None:
    typed = [word.replace("RUN", f"ckpt={trained}/outputs/a") for word in typed]
    assert_refused(here("sample", *typed, cwd=folder), *words)
    assert listing(folder) == {"play.txt"}


def test_a_sweep_cannot_continue_a_run(trained: Path) -> None:
    before = listing(trained)
    done = here("train", "-m", "seed=1,2", "resume=outputs/a", cwd=trained)
    assert_refused(done, "resume= continues one run", "none was started")
    assert listing(trained) == before


def test_a_missing_checkpoint_is_answered_with_the_newest_runs(trained: Path) -> None:
    assert_refused(here("sample", "ckpt=outputs/b", cwd=trained), "the newest runs are outputs/a")


def test_a_real_process_ends_like_the_tests_above_and_shows_the_traceback_on_request(
    folder: Path,
) -> None:
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        asked = ("HYDRA_FULL_ERROR", "LLM_FULL_ERROR")  # by whoever runs the tests
        inherited = {key: value for key, value in os.environ.items() if key not in asked}
        return subprocess.run(
            [sys.executable, str(ROOT / "run_train.py"), "model.n_embed=130", "HOME=is unknown"],
            cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=HANGS,
        )  # fmt: skip

    plain, full = run(), run(HYDRA_FULL_ERROR="1")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert re.fullmatch(r"run_train\.py: HOME is unknown: [^\n]+\n", plain.stderr)
    assert full.returncode == 2
    assert "Traceback (most recent call last)" in full.stderr
    assert full.stderr.endswith(plain.stderr)
    assert listing(folder) == {"play.txt"}
