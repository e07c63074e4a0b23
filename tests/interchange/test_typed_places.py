"""Other people's weights in the commands: init_from= and ckpt=."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm.data.tokenizer import CharTokenizer
from llm.interchange import hf
from llm.interchange.source import open_source
from tests.command_line import here, listing
from tests.conftest import ROOT, TINY_RUN
from tests.interchange.theirs import VARIANTS, VOCABULARY, save_nanogpt
from tests.test_bad_input import CHAR, assert_refused

ALPHABET = "".join(chr(ord("0") + number) for number in range(VOCABULARY))
TEXT = (ALPHABET + ALPHABET[::-3] + ALPHABET[::2]) * 40
RUN = [*CHAR, "data.path=text.txt", *(word for word in TINY_RUN if not word.startswith("model."))]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a checkpoint of nanoGPT and one of Qwen3."""
    path = tmp_path_factory.mktemp("typed")
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    (path / "nano").mkdir()
    save_nanogpt(path / "nano")
    (path / "nano/characters.txt").write_text(TEXT, encoding="utf-8")
    VARIANTS["Qwen3, tied, biases"].save(path / "qwen")
    return path


@pytest.fixture
def cwd(theirs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(theirs, tmp_path / "here"))


def test_a_run_starts_from_a_checkpoint_of_nanogpt_and_is_the_same_from_its_file(
    cwd: Path,
) -> None:
    command = [*RUN, "run.name=tuned", "optimizer=adamw"]
    done = here("train", *command, "init_from=nano", cwd=cwd)
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load((cwd / "outputs/tuned/config.yaml").read_text())["model"]
    found = {key: model[key] for key in ("n_layer", "n_embed", "n_head", "block_size", "norm")}
    assert found == {"n_layer": 2, "n_embed": 48, "n_head": 4, "block_size": 128,
                     "norm": "layernorm"}  # fmt: skip
    again = here("train", *command, "init_from=nano/ckpt.pt", cwd=cwd)
    assert "finished already" in again.stdout, "the same weights have the same digest"
    sampled = here("sample", "ckpt=outputs/tuned", "prompt=012", "max_new_tokens=3", cwd=cwd)
    assert sampled.returncode == 0, sampled.stderr


def test_a_run_starts_from_a_folder_of_hugging_face(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "tokenizer_of_folder", lambda _: CharTokenizer(ALPHABET))
    done = here("train", *RUN, "init_from=qwen", "model.block_size=32", "run.name=a", cwd=cwd)
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load((cwd / "outputs/a/config.yaml").read_text())["model"]
    assert (model["block_size"], model["qk_norm"], model["head_size"]) == (32, True, 8)
    again = here("train", "resume=outputs/a", "trainer.max_steps=3", cwd=cwd)
    assert again.returncode == 0, again.stderr
    last = open_source("ckpt", str(cwd / "outputs/a/checkpoints/last"))
    assert last.context == 128, "as qwen/config.json says"
    sampled = here("sample", "ckpt=qwen", "prompt=012", "max_new_tokens=3", cwd=cwd)
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("012")
    monkeypatch.setattr(hf, "tokenizer_of_folder", lambda _: CharTokenizer(ALPHABET[1:] + "z"))
    assert_refused(here("train", *RUN, "init_from=qwen", cwd=cwd), "was trained on an alphabet")


def test_a_run_on_shorter_windows_is_sampled_with_the_context_of_its_base(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "tokenizer_of_folder", lambda _: CharTokenizer(ALPHABET))
    VARIANTS["Llama, tied, 3 files"].save(cwd / "llama")
    start = [*RUN, "init_from=llama", "model.block_size=16"]
    for run, options in (("all", []), ("part", ["finetune=lora", "trainer.max_steps=3"])):
        done = here("train", *start, *options, f"run.name={run}", cwd=cwd)
        assert done.returncode == 0, done.stderr
        done = here("export", f"outputs/{run}", f"out={run}", cwd=cwd)
        assert done.returncode == 0, done.stderr
    (cwd / "long.txt").write_text(TEXT[3:103], encoding="utf-8")
    ask = ["prompt_file=long.txt", "max_new_tokens=20", "temperature=0"]

    def answer(*typed: str) -> str:
        done = here("sample", *typed, *ask, cwd=cwd)
        assert done.returncode == 0 and "cut" not in done.stderr, done.stderr
        return done.stdout

    assert answer("outputs/all") == answer("all")
    assert answer("outputs/part") == answer("part")
    assert answer("llama", "adapters=[outputs/part]").endswith(answer("part"))


def test_a_network_that_this_program_lacks_is_refused_before_anything_is_written(
    cwd: Path,
) -> None:
    path = cwd / "qwen/config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"model_type": "gemma2", "architectures": ["Gemma2"]}))
    before = listing(cwd)
    words = ["qwen/config.json is of the architecture Gemma2", "Qwen3ForCausalLM"]
    assert_refused(here("train", *RUN, "init_from=qwen", cwd=cwd), *words)
    assert_refused(here("train", *RUN, "-m", "init_from=qwen", "seed=1,2", cwd=cwd), *words)
    assert_refused(here("plan", *RUN, "init_from=qwen", cwd=cwd), *words)
    assert_refused(here("sample", "ckpt=qwen", cwd=cwd), *words)
    assert listing(cwd) == before


def test_a_folder_of_something_else_is_refused_with_what_is_read(cwd: Path) -> None:
    (cwd / "empty").mkdir()
    done = here("train", *RUN, "init_from=empty", cwd=cwd)
    assert_refused(done, "init_from=empty holds no checkpoint, no adapter_config.json, no config")


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "tokenizer_of_folder", lambda _: CharTokenizer(ALPHABET + "\u4e2d"))
    words = ["a tokenizer of 62 ids and an embedding of 61", "belongs to other weights"]
    assert_refused(here("sample", "ckpt=qwen", cwd=cwd), *words)


def test_characters_of_another_number_are_refused(cwd: Path) -> None:
    (cwd / "nano/characters.txt").write_text("abc")
    assert_refused(here("sample", "ckpt=nano", cwd=cwd), "has 3 characters, and the model 61 ids")
    (cwd / "nano/characters.txt").unlink()
    assert_refused(here("sample", "ckpt=nano", cwd=cwd), "put the training text")


def test_the_shape_and_the_digest_of_a_folder_need_no_torch(cwd: Path) -> None:
    code = (
        "import sys; from llm.interchange.source import open_source; "
        f"source = open_source('init_from', {str(cwd / 'qwen')!r}); source.digest(); "
        "print(source.model.n_embed); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "48\n"), done.stderr
