"""A mistake on the command line or in an option file: one line that names it, and nothing written.

Mistakes in texts, checkpoints and run folders: ``tests/test_bad_input.py``.
"""

from pathlib import Path

import pytest

from llm.config.compose import read_settings
from llm.disk import LONGEST_NAME
from llm.settings.keys import ALL_KEYS, ELSEWHERE, KEYS, is_key, suggestion
from llm.settings.schema import TrainSettings
from tests.command_line import composed, here, listing
from tests.test_bad_input import assert_refused

LONG = "x" * 300


def meant(command: str, typed: str, key: str) -> tuple[str, list[str], list[str]]:
    """A row of :data:`TYPED`: no such key exists, and the message names the one that was meant."""
    name = typed.partition("=")[0].lstrip("+")
    said = f"{name} is unknown: there is no key {name}; did you mean '{key}'?"
    return command, [typed], [said]


TYPED: list[tuple[str, list[str], list[str]]] = [
    # options of a group
    ("train", ["model=smal"], ["model=smal is unknown: take one of", "nano", "mean 'small'?"]),
    ("train", ["model=1"], ["must be a string", "as in model=small"]),
    ("train", ["hydra/launcher=slurmy"], ["hydra/launcher=slurmy is unknown", "process"]),
    # keys
    ("train", ["model.n_layr=4"], ["model.n_layr is unknown", "did you mean 'n_layer'?"]),
    meant("train", "modell=nano", "model"),
    ("train", ["模型=small"], ["模型 is unknown: there is no key 模型"]),
    meant("train", "n_layer=10", "model.n_layer"),
    meant("train", "device=cpu", "trainer.device"),
    ("train", ["-m", "seed=1,2", "n_jobs=2"], ["did you mean 'hydra.launcher.n_jobs'?"]),
    ("train", ["+unknown=1"], ["unknown is unknown"]),
    ("train", ["+trainer.max_step=1"], ["trainer.max_step is unknown", "mean 'max_steps'?"]),
    meant("train", "max_steps=1e3", "trainer.max_steps"),
    ("train", ["--n_layer=4"], ["--n_layer is unknown", "without dashes", "'model.n_layer'?"]),
    meant("plan", "n_layer=4,8", "model.n_layer"),
    meant("sample", "promt=What's this, (my lord)?", "prompt"),
    # the same setting of another command
    meant("sample", "chat_template=plain", "template"),
    meant("sample", "data.template=plain", "template"),
    ("sample", ["data=chat"], ["data is unknown: there is no key data\n"]),
    meant("train", "template=plain", "data.template"),
    meant("eval", "+data=chat", "data_path"),
    meant("eval", "data.path=a.txt", "data_path"),
    # values
    ("train", ["model.n_layer=four"], ["model.n_layer=four", "not be converted to Integer"]),
    ("train", ["model.n_layer=四"], ["model.n_layer=", "could not be converted to Integer"]),
    ("train", ["trainer.max_steps=1e3"], ["trainer.max_steps=1e3", "Integer: take 1000"]),
    ("train", ["trainer.max_steps=" + "9" * 5000], ["trainer.max_steps holds a number of more"]),
    ("train", ["trainer.batch_size=1000000000000"], ["at most 1048576"]),
    ("train", ["trainer.compile=7"], ["trainer.compile=7", "must be true or false"]),
    ("train", ["-m", "model.bias=-1,3"], ["model.bias=-1 must be true or false"]),
    ("train", ["logger.tags=[" + ",".join("a" * 101) + "]"], ["has 101 tags"]),
    ("train", ["seed=null"], ["seed=null", "not Optional"]),
    ("train", ["seed=${nothing}"], ["seed", "nothing"]),
    ("train", ["model.n_layer=4,6"], ["model.n_layer=4,6", "add -m to sweep over it"]),
    ("train", ["model.n_embed=130"], ["model.n_embed=130 is not divisible", "take 128 or 160"]),
    ("train", ["model.n_head=3", "model.head_size=null"], ["n_embed=128 is not divisible"]),
    ("sample", ["ckpt=x", "num_samples=1000000000000"], ["at most 65536"]),
    ("sample", ["ckpt=x", "frequency_penalty=1e300"], ["frequency_penalty=1e+300"]),
    # names and places
    ("train", ["run.name=a b"], ["run.name=a b must be letters, digits, . _ or -", "no spaces"]),
    ("train", ["run.name=it's"], ["run.name=it's cannot be read", "a quote is not closed"]),
    ("train", ["run.sweep=甲/乙"], ["run.sweep=甲/乙 must be letters, digits"]),
    ("train", ["run.name=" + "字" * 67], ["has 201 bytes", f"a name may have {LONGEST_NAME}"]),
    ("train", [f"run.dir=a/{LONG}"], ["run.dir: xxx", "has 300 bytes"]),
    ("train", [f"data.dir={LONG}"], ["data.dir: xxx", "has 300 bytes"]),
    *(("train", [f"{key}={LONG}"], [f"{key}=xxx", "has 300 bytes"])
      for key in ("run.name", "run.sweep", "data.name")),
    ("plan", [f"picture={LONG}.png"], ["picture: xxx", "has 304 bytes"]),
    ("train", [f"resume={LONG}"], ["resume=xxx", "does not exist"]),
    ("train", ["resume=no run"], ["resume=no run does not exist"]),
    ("train", ["resume=."], ["resume=. is not a run folder: it has no config.yaml"]),
    ("train", ["resume="], ["resume is empty"]),
    ("train", ["data=text"], ["data.path is missing"]),
    ("train", ["data=text", "data.path=it's not there"], ["it's not there does not exist"]),
    ("train", ["data=nothing"], ["data=nothing is unknown: take one of"]),
    ("train", ["hydra.run.dir=x"], ["hydra.run.dir= has no effect: take run.dir=FOLDER"]),
    *(("train", [f"hydra.sweep.{key}=x"], [f"hydra.sweep.{key}= has no effect"])
      for key in ("dir", "subdir")),
    ("plan", ["finetune.rank=0"], ["finetune.rank=0 must be at least 1"]),
    # not key=value; sweeps
    ("train", ["n_layer"], ["n_layer cannot be read as key=value"]),
    ("train", ["model\uff1dsmall"], ["there is no = in it", "\uff1d is another character"]),
    ("train", ["model.n_layer=[1"], ["model.n_layer=[1 cannot be read as key=value"]),
    ("train", ["-m", "seed=1,2", "run.name=x"], ["run.name=x names one run", "none was started"]),
    ("train", ["-m", "seed=1,2", "hydra.launcher.timeout_min=0"], [
        "run_train.py: hydra.launcher.timeout_min=0 must be more than 0, or null",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "typed", "words"), TYPED, ids=[ascii(" ".join(t)[:30]) for _, t, _ in TYPED]
)
def test_a_mistake_on_the_command_line_is_named_in_one_line(
    command: str, typed: list[str], words: list[str], tmp_path: Path
) -> None:
    assert_refused(here(command, *typed, cwd=tmp_path), *words)
    assert not listing(tmp_path)


@pytest.mark.parametrize("value", ["0", "1", "true", "no"])
def test_a_boolean_may_be_0_or_1(value: str) -> None:
    assert read_settings(composed("train", f"trainer.profile={value}"), TrainSettings)


def test_names_of_other_programs_lead_to_keys_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(key in ALL_KEYS or is_key(key) for key in ELSEWHERE.values())
    assert not ELSEWHERE.keys() & KEYS["train"].keys()
    for name, key in {
        "block_size": "model.block_size", "learning_rate": "optimizer.lr",
        "n_embd": "model.n_embed", "model.n_embd": "model.n_embed",
        "model.hidden_size": "model.n_embed", "n_inner": "model.intermediate_size",
        "dataset": "data", "dtype": "precision", "out_dir": "run.name", "start": "prompt",
        "trainer.max_iters": "trainer.max_steps",
    }.items():  # fmt: skip
        command = "run_sample.py" if key == "prompt" else "run_train.py"
        monkeypatch.setattr("sys.argv", [command])
        assert f"did you mean '{key}'?" in suggestion(name)


FILES: list[tuple[str, str, list[str]]] = [
    ("experiment", "# @package _global_\nmodel:\n\tn_layer: 3\n", ["line 3", "not with tabs"]),
    ("experiment", "# @package _global_\nmodel:\n  n_layer 3\n", [
        "n_layer 3: this section must be lines 'key: value'", "is a colon missing",
    ]),
    ("experiment", "# @package _global_\nmodel:\n  n_layer 3\n  bias: true\n", [
        "line 4", "is a colon missing in the line before",
    ]),
    ("experiment", "# @package _global_\ntrainer: {max_steps: 3\n", ["line 3"]),
    ("experiment", "# @package _global_\nmodel:\n  n_layr: 3\n", [
        "line 3: model.n_layr is unknown", "did you mean 'n_layer'?",
    ]),
    ("experiment", "model:\n  n_layer: 3\n", ["lacks the line '# @package _global_'"]),
    ("experiment", "# @package _global_\ndefaults: [{optimizer: adamw}]\n", [
        "override /optimizer: adamw",
    ]),
    ("experiment", "# @package _global_\nmodel: {n_layer: 3, n_layer: 4}\n", ["duplicate key"]),
    ("experiment", "# @package _global_\nmodel: {norm: caf\udce9}\n", ["is not UTF-8: byte 0xe9"]),
    ("model", "defaults: [nano, _self_]\nn_layer: four\n", ["line 2: model.n_layer: ", "Integer"]),
    ("model", "defaults: [nano, _self_]\nbias: 7\n", ["model.bias: ", "must be true or false"]),
    ("model", "- n_layer: 4\n", ["list is not a subclass", "must be lines"]),
    ("model", "defaults: [nosuch]\n", ["Could not load 'model/nosuch'"]),
    ("optimizer", "defaults: [adamw, _self_]\nlearning_rate: 1\n", ["line 2", "'optimizer.lr'?"]),
    ("model", "defaults: [nano, _self_]\nn_layer: " + "9" * 5000, ["cannot be read", "digits"]),
]  # fmt: skip


def refused_with(file: str, text: str, folder: Path, *typed: str) -> str:
    """The message of ``run_train.py`` with an option file that holds ``text``."""
    path = folder / "conf" / f"{file}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = listing(folder)
    group, _, option = file.rpartition("/")
    done = here("train", *typed, "--config-dir", "conf", f"{group}={option}", cwd=folder)
    assert_refused(done)
    assert listing(folder) == before
    return done.stderr


@pytest.mark.parametrize(("group", "text", "words"), FILES, ids=[ascii(f[1])[:90] for f in FILES])
def test_a_mistake_in_an_option_file_is_named_with_file_and_line(
    group: str, text: str, words: list[str], tmp_path: Path
) -> None:
    message = refused_with(f"{group}/mine", text, tmp_path)
    for word in (f"conf/{group}/mine.yaml", *words):
        assert word in message


def test_a_sweep_names_the_option_file_with_a_mistake_as_well(tmp_path: Path) -> None:
    text = "defaults: [nano, _self_]\nn_hed: 3\n"
    message = refused_with("model/mine", text, tmp_path, "-m", "seed=1,2")
    assert "conf/model/mine.yaml, line 2: model.n_hed is unknown" in message


def test_an_option_file_with_a_list_in_place_of_keys_is_refused(tmp_path: Path) -> None:
    message = refused_with("optimizer/mine", "- a\n- b\n", tmp_path)
    assert "optimizer is ['a', 'b'], not a section" in message
