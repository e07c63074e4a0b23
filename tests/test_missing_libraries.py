"""A library of an extra that is not installed is named in one line; lm-eval works offline."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.data.tokenizer import ByteTokenizer
from tests.command_line import here, listing
from tests.data.test_bpe import OURS
from tests.interchange.test_hf_writing import saved

# What is used of lm-eval: the same names. The metrics tell what its import has seen.
STAND_IN = {
    "__init__": "",
    "api/__init__": "",
    "api/model": "class TemplateLM: ...",
    "utils": "get_rolling_token_windows = make_disjoint_window = None",
    "tasks": """
class TaskManager:
    def __init__(self, include_path, include_defaults):
        assert not include_defaults
        self.all_subtasks = ["mine"]
""",
    "evaluator": """
import os
SEEN = {key: int(os.environ.get(key, 0)) for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}

def simple_evaluate(model, tasks, **options):
    return {"results": {"mine": {"acc,none": 0.5} | SEEN}, "n-samples": {"mine": {"effective": 3}}}
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two networks."""
    saved(tmp_path / "bytes", ByteTokenizer())
    saved(tmp_path / "bpe", OURS["smollm"])
    (tmp_path / "tasks").mkdir()
    return tmp_path


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small lm-eval in the place of a real one."""
    for name, text in STAND_IN.items():
        path = tmp_path / "libraries/lm_eval" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    yield
    for name in imported():
        del sys.modules[name]


def imported() -> list[str]:
    """The modules of lm-eval, and the one of ours that imports them."""
    ours = "llm.evaluation.lm_eval_adapter"
    return [name for name in sys.modules if name.partition(".")[0] == "lm_eval" or name == ours]


def refusal(folder: Path, command: str, *typed: str) -> str:
    before = listing(folder)
    done = here(command, *typed, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert listing(folder) == before
    return done.stderr


@pytest.mark.parametrize(
    ("library", "typed", "said"),
    [
        ("tokenizers", "sample bpe", "other people's tokenizers need the library tokenizers: pip"),
        ("gguf", "export bytes format=gguf out=x.gguf", "format=gguf needs the library gguf: pip"),
        ("lm_eval", "eval bytes tasks=lm_eval:x include_path=tasks", "needs the library lm-eval"),
    ],
)
def test_a_library_that_is_missing_is_named_with_what_to_install(
    library: str, typed: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(f"{library}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # makes an import fail
    line = refusal(folder, *typed.split())
    extra = "lm_eval" if library == "lm_eval" else "interchange"
    assert said in line and f"pip install 'one-gpu-llm[{extra}]'" in line


@pytest.mark.usefixtures("stand_in")
def test_lm_eval_needs_a_folder_of_tasks(folder: Path) -> None:
    for include in ([], ["include_path=gone"], ["include_path=bytes/checkpoints/x.yaml"]):
        line = refusal(folder, "eval", "bytes", "tasks=lm_eval:mine", *include)
        assert "lm_eval:mine needs include_path=FOLDER, the folder of its task file" in line


@pytest.mark.usefixtures("stand_in")
def test_lm_eval_is_imported_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    typed = ["bytes", "tasks=lm_eval:mine", "include_path=tasks", "device=cpu", "json=true"]
    done = here("eval", *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["tasks"]["lm_eval:mine"] == {
        "kind": "lm_eval", "n": 3, "acc": 0.5, "HF_HUB_OFFLINE": 1, "HF_DATASETS_OFFLINE": 1,
        "window": 96,
    }  # fmt: skip
