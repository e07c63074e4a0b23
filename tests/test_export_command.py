"""``run_export.py`` as typed: its output, its files and its exit status."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llm.data.tokenizer import CharTokenizer
from llm.lock import locked_beside
from tests.command_line import here, listing
from tests.conftest import ROOT
from tests.interchange.test_hf_writing import saved

FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which ``run`` has a checkpoint and ``full`` a file of the user, and links."""
    saved(tmp_path / "run", CharTokenizer("abc"))
    saved(tmp_path / "smeared", CharTokenizer("abc"), smear=1, mlp="relu2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    return tmp_path


def test_it_prints_files_sizes_and_how_transformers_loads_them(folder: Path) -> None:
    done = here("export", "run", "out=new/hf", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert listing(folder / "new") == {"hf", *(f"hf/{name}" for name in FILES)}
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("transformers: AutoModelForCausalLM.from_pretrained('/")
    program, _, command = lines[-1].partition(": ")
    assert program == "llama.cpp and ollama"
    done = here("export", *shlex.split(command)[2:], cwd=folder)
    assert done.returncode == 0, "the command works as it is"
    assert all(any(name in line for line in lines) for name in FILES)


def test_an_export_can_be_replaced_and_answers_in_json(folder: Path) -> None:
    assert here("export", "ckpt=run", "out=hf", "dtype=fp16", cwd=folder).returncode == 0
    done = here("export", "run", "out=hf", "overwrite=true", "json=true", cwd=folder)
    found = json.loads(done.stdout)
    assert found["status"] == "finished" and found["format"] == "hf"
    sizes = {path: Path(folder / path).stat().st_size for path in found["files"]}
    assert sizes == found["files"] and len(sizes) == len(FILES)


@pytest.mark.parametrize(("out", "form"), [("hf", "hf"), ("net.gguf", "gguf")])
def test_the_exported_weights_are_not_replaced(out: str, form: str, folder: Path) -> None:
    words = [f"format={form}", "overwrite=true", "dtype=fp16"]
    assert here("export", "run", f"out={out}", *words, cwd=folder).returncode == 0
    done = here("export", out, f"out=./{out}", *words, cwd=folder)
    assert done.returncode == 2
    assert f"out={out} holds the weights that are exported: take another" in done.stderr


def test_a_gguf_file_can_be_replaced_and_names_three_programs(folder: Path) -> None:
    typed = ["export", "run", "format=gguf", "dtype=fp16", "out=new/my.gguf"]
    done = here(*typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert listing(folder / "new") == {"my.gguf"}
    file, *uses = done.stdout.splitlines()
    assert file.startswith("new/my.gguf  ")
    assert [line.partition(":")[0] for line in uses] == ["llama.cpp", "python", "ollama"]
    assert all("/new/my.gguf" in line for line in uses)

    assert here(*typed, cwd=folder).returncode == 2
    done = here(*typed, "dtype=q8_0", "overwrite=true", "json=true", cwd=folder)
    size = (folder / "new" / "my.gguf").stat().st_size
    assert json.loads(done.stdout)["files"] == {"new/my.gguf": size}
    assert listing(folder / "new") == {"my.gguf"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["out=hf"], "ckpt is missing: give a run or other weights"),
        (["run"], "out is missing: give the folder to write, as in out=exported"),
        (["run", "out=full", "overwrite=true"], "out=full has other files than an export"),
        (["run", "out=.", "overwrite=true"], "out=. has no name: give the path of a new folder"),
        (["run", "out=full"], "out=full exists: take another, or add overwrite=true"),
        (["run", "out=file"], "out=file is a file, not a folder: take another"),
        (["run", "out=link", "overwrite=true"], "out=link is a link, not a folder: take another"),
        (["run", "out=gone", "overwrite=true"], "out=gone is a link, not a folder: take another"),
        (["run", "out=link", "format=gguf"], "out=link is a link, not a file: take another"),
        (["run", "out=file/x"], "out=file/x cannot be written: file is not a folder"),
        (["run", "out=hf", "dtype=int8"], "dtype=int8 must be one of fp32, fp16, bf16"),
        (["run", "out=hf", "dtype=q8_0"], "dtype=q8_0 must be one of fp32, fp16, bf16 for format"),
        (["run", "format=gguf"], "out is missing: give the file to write, as in out=exported.gguf"),
        (["run", "out=full", "format=gguf"], "out=full exists: take another, or add overwrite"),
        (["run", "out=full", "format=gguf", "overwrite=true"], "out=full is not a GGUF file"),
        (["run", "out=file", "format=gguf", "overwrite=true"], "out=file is not a GGUF file"),
        (["run", "out=a.gguf"], "and format=hf writes a folder: add format=gguf"),
        (["run", "out=a.GGUF", "format=peft"], "and format=peft writes a folder"),
        (["run", "out=hf", "format=onnx"], "format=onnx must be"),
        (["deleted", "out=hf"], "deleted"),
        (
            ["smeared", "out=hf"],
            "transformers and llama.cpp have no architecture with model.mlp=relu2",
        ),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_write_nothing(typed: list[str], said: str, folder: Path) -> None:
    before = listing(folder)
    done = here("export", *typed, cwd=folder)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("run_export.py: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(folder) == before


def test_a_full_disk_is_noticed_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.interchange.writing.free_bytes", lambda _: 1000)
    done = here("export", "run", "out=hf", cwd=folder)
    assert done.returncode == 5 and "make room, or take a smaller dtype" in done.stderr
    assert not (folder / "hf").exists()


@pytest.mark.parametrize("words", [["out=hf"], ["out=my.gguf", "format=gguf"]], ids=["hf", "gguf"])
def test_two_exports_to_one_place_at_once_are_refused(words: list[str], folder: Path) -> None:
    with locked_beside(folder / words[0].removeprefix("out="), "export"):
        done = here("export", "run", *words, cwd=folder)
        assert done.returncode == 2 and "is in use by another export (process" in done.stderr
        assert here("export", "run", "out=other", cwd=folder).returncode == 0
    assert here("export", "run", *words, cwd=folder).returncode == 0
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("words", [["out=hf"], ["out=my.gguf", "format=gguf"]], ids=["hf", "gguf"])
def test_every_file_is_synced_before_it_gets_its_name(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, out, really = set(), folder / words[0].removeprefix("out="), os.fsync

    def fsync(handle: int) -> None:
        assert not out.exists() or os.path.samestat(os.fstat(handle), folder.stat())
        synced.add(os.fstat(handle).st_ino)
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert here("export", "run", *words, cwd=folder).returncode == 0
    assert {path.stat().st_ino for path in (folder, out, *out.glob("*"))} <= synced


KILLED = """
import os, sys
from pathlib import Path
from llm.interchange import hf_writing, writing
from llm.interchange.source import open_source

hf_writing.write_json = lambda *_: os.kill(os.getpid(), 9)
written = writing.write_gguf
writing.write_gguf = lambda *_: (written(*_), os.kill(os.getpid(), 9))
export = writing.export_gguf if sys.argv[1].endswith("gguf") else writing.export_hf
export(open_source("ckpt", "run"), Path(sys.argv[1]), "fp32", True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["out=hf"], ["out=my.gguf", "format=gguf"]], ids=["hf", "gguf"])
def test_a_kill_leaves_the_earlier_export_and_the_next_one_cleans_up(
    words: list[str], folder: Path
) -> None:
    typed = ["export", "run", *words, "overwrite=true"]
    assert here(*typed, cwd=folder).returncode == 0
    out = words[0].removeprefix("out=")
    before = {path: path.stat().st_ino for path in (folder / out, *(folder / out).glob("*"))}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, out], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -9
    assert any(path.name.endswith(".tmp") for path in folder.iterdir())
    assert {path: path.stat().st_ino for path in before} == before
    assert here(*typed, cwd=folder).returncode == 0
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
