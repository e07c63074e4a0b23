"""What people type: any script, names from elsewhere, option files with a mistake in them."""

from pathlib import Path

import pytest
import yaml

from llm.disk import LONGEST_NAME
from llm.settings.keys import ALL_KEYS, ELSEWHERE, is_key
from tests.command_line import here, listing
from tests.conftest import TINY_RUN
from tests.test_bad_input import assert_refused

LONG = "x" * 300
TEXT = "data.path=小说.txt"
CHAR = ["data=text", "data.tokenizer=char", TEXT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands are typed; nothing but a text is there."""
    path = tmp_path / "这里"
    path.mkdir()
    (path / "小说.txt").write_text("天地玄黄。宇宙洪荒。\n" * 300, encoding="utf-8")
    return path


def test_text_in_any_script_reaches_a_run_wherever_text_is_held(folder: Path) -> None:
    typed = [
        *CHAR, *TINY_RUN, "run.name=我的模型", "data.name=小说", "logger.project=我的项目",
        "logger.tags=[ü, a b, 你好 世界]", "logger.notes=第一次 (真的)", "logger.entity=é",
    ]  # fmt: skip
    done = here("train", *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((folder / "outputs/我的模型/config.yaml").read_text(encoding="utf-8"))
    assert config["logger"]["project"] == "我的项目"
    assert config["logger"]["entity"] == "é"
    assert config["logger"]["tags"] == ["ü", "a b", "你好 世界"]
    assert config["logger"]["notes"] == "第一次 (真的)"
    assert [path.name[:3] for path in (folder / "data").iterdir()] == ["小说-"]
    again = here("train", *typed, cwd=folder)
    assert again.returncode == 0, "the same name is the same run"
    assert [path.name for path in (folder / "outputs").iterdir()] == ["我的模型"]
    decomposed = here("train", *[w.replace("é", "e\u0301") for w in typed], cwd=folder)
    assert decomposed.returncode == 0, decomposed.stderr


def test_a_sweep_and_its_values_may_be_called_in_any_script(folder: Path) -> None:
    conf = folder / "conf" / "experiment"
    conf.mkdir(parents=True)
    for name, steps in (("实验一", 1), ("实验二", 2)):
        text = f"# @package _global_\ntrainer: {{max_steps: {steps}}}\n"
        (conf / f"{name}.yaml").write_text(text, encoding="utf-8")
    grid = ["--config-dir", "conf", "-m", "run.sweep=扫描", "experiment=实验一,实验二"]
    done = here("plan", *grid[:2], grid[4], *CHAR[:2], TEXT, "data.vocab_size=100", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = here("train", *grid, "data.corpus=none", cwd=folder)
    assert_refused(done, "job experiment=实验一 cannot run, so none was started: data.corpus=none")


TYPED: list[tuple[str, list[str], list[str]]] = [
    ("train", ["run.name=a b"], ["run.name=a b must be letters, digits, . _ or -", "no spaces"]),
    ("train", ["run.name=it's"], ["run.name=it's must be letters, digits"]),
    ("train", ["run.sweep=甲/乙"], ["run.sweep=甲/乙 must be letters, digits"]),
    ("train", ["run.name=" + "字" * 67], ["has 201 bytes", f"a name may have {LONGEST_NAME}"]),
    ("train", [f"run.name={LONG}"], ["run.name=xxx", "has 300 bytes", "shorten it"]),
    ("train", [f"run.sweep={LONG}"], ["run.sweep=xxx", "has 300 bytes"]),
    ("train", [f"run.dir=a/{LONG}"], ["run.dir: xxx", "has 300 bytes"]),
    ("train", [f"data.dir={LONG}"], ["data.dir: xxx", "has 300 bytes"]),
    ("train", [f"data.name={LONG}"], ["data.name=xxx", "has 300 bytes"]),
    ("train", [f"resume={LONG}"], ["resume=xxx", "does not exist"]),
    ("plan", [f"picture={LONG}.png"], ["picture: xxx", "has 304 bytes"]),
    ("sample", ["promt=小明"], ["promt is unknown", "did you mean 'prompt'?"]),
    ("sample", ["promt=What's this, (my lord)?"], ["promt is unknown", "did you mean 'prompt'?"]),
    ("sample", ["start=it's"], ["start is unknown", "did you mean 'prompt'?"]),
    ("train", ["模型=small"], ["模型 is unknown: there is no key 模型"]),
    ("train", ["model\uff1dsmall"], ["there is no = in it", "\uff1d is another character"]),
    ("train", ["model.n_layer=四"], ["model.n_layer=", "could not be converted to Integer"]),
    ("train", ["model=小"], ["model=小 is unknown: take one of"]),
    ("train", ["n_layer=10"], ["n_layer is unknown", "did you mean 'model.n_layer'?"]),
    ("train", ["block_size=8"], ["did you mean 'model.block_size'?"]),
    ("train", ["learning_rate=1e-3"], ["did you mean 'optimizer.lr'?"]),
    ("train", ["n_embd=64"], ["did you mean 'model.n_embed'?"]),
    ("train", ["model.n_embd=64"], ["did you mean 'model.n_embed'?"]),
    ("train", ["model.hidden_size=64"], ["did you mean 'model.n_embed'?"]),
    ("train", ["n_inner=64"], ["did you mean 'model.intermediate_size'?"]),
    ("train", ["dataset=shakespeare"], ["dataset is unknown", "did you mean 'data'?"]),
    ("train", ["dtype=float16"], ["did you mean 'precision'?"]),
    ("train", ["device=cpu"], ["did you mean 'trainer.device'?"]),
    ("train", ["out_dir=out"], ["did you mean 'run.name'?"]),
    ("train", ["+max_iters=4"], ["max_iters is unknown", "did you mean 'trainer.max_steps'?"]),
    ("train", ["trainer.max_iters=4"], ["trainer.max_iters is unknown", "'trainer.max_steps'?"]),
    ("train", ["max_steps=1e3"], ["max_steps is unknown", "'trainer.max_steps=1000'?"]),
    ("train", ["trainer.max_steps=1e3"], ["trainer.max_steps=1e3", "Integer: take 1000"]),
    ("train", ["--n_layer=4"], ["--n_layer is unknown", "without dashes", "'model.n_layer'?"]),
    ("train", ["--seed=4"], ["--seed is unknown: settings are typed without dashes"]),
    ("plan", ["n_layer=4,8"], ["did you mean 'model.n_layer'?"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "typed", "words"), TYPED, ids=[ascii(" ".join(t)[:30]) for _, t, _ in TYPED]
)
def test_what_is_typed_wrongly_is_answered_by_one_line_that_says_what_to_type(
    command: str, typed: list[str], words: list[str], folder: Path
) -> None:
    assert_refused(here(command, *typed, cwd=folder), *words)
    assert listing(folder) == {"小说.txt"}


def test_names_from_elsewhere_lead_to_keys_that_exist() -> None:
    assert all(key in ALL_KEYS or is_key(key) for key in ELSEWHERE.values())
    assert not ELSEWHERE.keys() & ALL_KEYS.keys()


FILES: list[tuple[str, str, list[str]]] = [
    ("experiment", "# @package _global_\nmodel:\n\tn_layer: 3\n", ["line 3", "not with tabs"]),
    ("experiment", "# @package _global_\nmodel:\n  n_layer 3\n", [
        "line 3: model must be followed by lines 'key: value'", "is a colon missing",
    ]),
    ("experiment", "# @package _global_\nmodel:\n  n_layer 3\n  bias: true\n", [
        "line 4", "is a colon missing in the line before",
    ]),
    ("experiment", "# @package _global_\ntrainer: {max_steps: 3\n", ["line 3"]),
    ("experiment", "# @package _global_\nmodel:\n  n_layr: 3\n", [
        "line 3: model.n_layr is unknown", "did you mean 'n_layer'?",
    ]),
    ("experiment", "# @package _global_\ntrainer:\n  max_iters: 3\n", [
        "line 3: trainer.max_iters is unknown", "did you mean 'trainer.max_steps'?",
    ]),
    ("experiment", "model:\n  n_layer: 3\n", ["lacks the line '# @package _global_'"]),
    ("experiment", "# @package _global_\ndefaults: [{optimizer: adamw}]\n", [
        "override /optimizer: adamw",
    ]),
    ("experiment", "# @package _global_\nmodel: {n_layer: 3, n_layer: 4}\n", ["duplicate key"]),
    ("experiment", "# @package _global_\nmodel: {norm: caf\udce9}\n", ["is not UTF-8: byte 0xe9"]),
    ("model", "defaults: [nano, _self_]\nn_hed: 3\n", ["line 2: model.n_hed", "'n_head'?"]),
    ("model", "defaults: [nano, _self_]\nn_layer: four\n", ["line 2: model.n_layer: ", "Integer"]),
    ("model", "- n_layer: 4\n", ["line 1: model must be followed by lines", "a list"]),
    ("model", "defaults: [nosuch]\n", ["Could not load 'model/nosuch'"]),
    ("optimizer", "defaults: [adamw, _self_]\nlearning_rate: 1\n", ["line 2", "'optimizer.lr'?"]),
    ("model", "defaults: [nano, _self_]\nn_layer: " + "9" * 5000, ["cannot be read", "digits"]),
]  # fmt: skip


@pytest.mark.parametrize(("group", "text", "words"), FILES, ids=[ascii(f[1])[:90] for f in FILES])
def test_a_mistake_in_an_option_file_is_named_with_file_and_line(
    group: str, text: str, words: list[str], folder: Path
) -> None:
    path = folder / "conf" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = listing(folder)
    typed = ["--config-dir", "conf", f"{group}=mine"]
    assert_refused(here("train", *typed, cwd=folder), f"conf/{group}/mine.yaml", *words)
    assert_refused(here("train", "-m", *typed, "seed=1,2", cwd=folder), f"{group}/mine.yaml")
    assert listing(folder) == before


@pytest.mark.parametrize("group", ["optimizer", "schedule", "logger"])
def test_an_option_file_that_holds_a_list_and_no_keys_is_refused(group: str, folder: Path) -> None:
    path = folder / "conf" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("- a\n- b\n", encoding="utf-8")
    done = here("train", "--config-dir", "conf", f"{group}=mine", cwd=folder)
    assert_refused(done, f"{group} is ['a', 'b'], not a section")
