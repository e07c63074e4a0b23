"""Custom options: a user's files in a folder outside the checkout."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llm.checkpoint.folder import newest_valid
from llm.settings.build import locate_custom
from llm.settings.custom import Custom
from tests.command_line import here, listing, rows, started, summary, wait_until
from tests.conftest import ROOT, TINY_RUN

OPTIONS = {
    "optimizer/sgd": "_target_: torch.optim.SGD\nlr: 0.1\nmomentum: 0.9\n",
    "optimizer/nadam": "_target_: torch.optim.NAdam\nlr: 2e-3\n",
    "optimizer/lion": "_target_: own_parts.Lion\nlr: 1e-3\nweight_decay: 0.1\n",
    "optimizer/away": "_target_: no_such_module.Lion\nlr: 1e-3\n",
    "optimizer/broken": "_target_: own_broken.Lion\nlr: 1e-3\n",
    "optimizer/value": "_target_: math.pi\n",
    "optimizer/undotted": "_target_: .SGD\nlr: 0.1\n",
    "optimizer/named": "_target_: torch.optim.SGD\nlr: 0.1\ntarget: 1\n",
    "optimizer/keys": "_target_: torch.optim.SGD\nlr: 0.1\nmomentun: 0.9\n",
    "optimizer/nothing": "lr: 0.1\n",
    "optimizer/adamw": "_target_: torch.optim.AdamW\nlr: 0.1\n",
    "optimizer/hoards": "_target_: own_parts.Hoards\nlr: 0.1\n",
    "optimizer/nested": "_target_: torch.optim.SGD\nlr: {_target_: os.getpid}\n",
    "optimizer/lbfgs": "_target_: torch.optim.LBFGS\nlr: 1.0\n",
    "schedule/halving": "_target_: own_parts.halving\nevery: 3\n",
    "schedule/linear": "_target_: own_parts.Linear\nend: 0.5\n",
    "logger/lines": "_target_: own_parts.Lines\nfile: lines.txt\n",
    "logger/fails": "_target_: own_parts.Fails\n",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with the options, their module beside them, and a prepared text."""
    base = tmp_path_factory.mktemp("own")
    for name, text in OPTIONS.items():
        path = base / f"mine/conf/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "tests/custom_classes.py", base / "mine/own_parts.py")
    (base / "mine/own_broken.py").write_text("import torch\n1 / 0\n", encoding="utf-8")
    return base


@pytest.fixture(scope="module")
def typed(base: Path, text_file: Path) -> list[str]:
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", "data.dir=data"]
    return [*data, *(word for word in TINY_RUN if word != "logger=none"), "--config-dir=mine/conf"]


def weights(folder: Path) -> dict[str, bytes]:
    found, _ = newest_valid(folder)
    assert found is not None
    return {name: tensor.numpy().tobytes() for name, tensor in found.weights().items()}


ALL_CUSTOM = ["optimizer=lion", "schedule=halving", "logger=lines"]
LONG = ["trainer.max_steps=40", "trainer.checkpoint_interval=5", "trainer.eval_interval=10"]


@pytest.mark.slow  # tests/training/test_custom.py interrupts such runs without a process
def test_a_killed_run_with_custom_classes_ends_with_the_same_bits(
    base: Path, typed: list[str]
) -> None:
    done = here("train", *typed, *ALL_CUSTOM, *LONG, "run.name=whole", cwd=base)
    assert done.returncode == 0, done.stderr
    killed = base / "outputs/killed"
    with started("train", *typed, *ALL_CUSTOM, *LONG, "run.name=killed", cwd=base) as process:
        wait_until(lambda: len(rows(killed)) > 12 or process.poll() is not None)
        process.kill()
    config = (killed / "config.yaml").read_text(encoding="utf-8")
    assert "_target_" not in config
    assert "own_parts" not in config
    assert all(f"option: {name}\n" in config for name in ("lion", "halving", "lines"))
    lost = here("train", "resume=outputs/killed", cwd=base)
    assert lost.returncode == 2
    assert re.search(r"=(lion|lines|halving) is unknown: .*needs its --config-dir\n", lost.stderr)
    done = here("train", "--config-dir", "mine/conf", "resume=outputs/killed", cwd=base)
    assert done.returncode == 0, done.stderr
    assert weights(killed) == weights(base / "outputs/whole")
    told = (killed / "lines.txt").read_text(encoding="utf-8").splitlines()
    assert told[-2].startswith("lion 40 ")
    assert told[-1] == "end 0"
    again = here(
        "train", "optimizer=sgd", "--config-dir=mine/conf", "resume=outputs/killed", cwd=base
    )
    assert again.returncode == 2
    assert "was trained with optimizer=lion, whose state optimizer=sgd cannot use" in again.stderr


def test_typed_keys_reach_the_class_and_the_digest(base: Path, typed: list[str]) -> None:
    more = ["optimizer=sgd", "logger=none", "trainer.max_steps=2"]
    keys = ["optimizer.lr=0.05", "+optimizer.nesterov=true"]
    one = here("train", *typed, *more, *keys, "run.name=one", cwd=base)
    assert one.returncode == 0, one.stderr
    config = (base / "outputs/one/config.yaml").read_text(encoding="utf-8")
    wanted = "optimizer:\n  option: sgd\n  lr: 0.05\n  momentum: 0.9\n  nesterov: true\n"
    assert wanted in config
    other = here("train", *typed, *more, "run.name=one", cwd=base)
    assert other.returncode == 2
    assert "optimizer.lr was 0.05, now 0.1, optimizer.nesterov was True, now None" in other.stderr
    longer = ["resume=outputs/one", "trainer.max_steps=3", "--config-dir=mine/conf"]
    done = here("train", *longer, cwd=base)
    assert done.returncode == 0, done.stderr
    assert wanted in (base / "outputs/one/config.yaml").read_text(encoding="utf-8")


def test_a_target_may_be_a_method_of_a_class() -> None:
    section = Custom("optimizer", "mine", "collections.abc.Mapping.get", {})
    assert locate_custom(section) is Mapping.get


REFUSED = {
    "optimizer=adamw": "optimizer=adamw is a built-in option, which hides ",
    "optimizer=hoards": "keeps 80 bytes for each weight, and a checkpoint may hold 64",
    "optimizer=away": "_target_=no_such_module.Lion cannot be imported: ModuleNotFound",
    "optimizer=broken": "_target_=own_broken.Lion cannot be imported: ZeroDivisionError: division",
    "optimizer=value": "_target_=math.pi is a float, which cannot be called",
    "-m optimizer=named optimizer.target=math.pi,x": "got an unexpected keyword argument 'target'",
    "optimizer=undotted": "_target_=.SGD is not a dotted name, as in torch.optim.SGD",
    "optimizer=keys": "torch.optim.SGD: TypeError: SGD.__init__() got an unexpected keyword",
    "optimizer=nothing": "its file names no _target_",
    "optimizer=nested": "optimizer.lr has the key '_target_': only the section itself",
    "optimizer=lbfgs": "optimizer=lbfgs",
    "optimizer=sgd optimizer.momentum=-1": "ValueError: Invalid momentum value: -1",
    "optimizer=sgd optimizer.momentm=1": "optimizer has no key momentm; did you mean 'momentum'?",
    "optimizer=sgd trainer.step_in_backward=true": "which the custom optimizer=sgd cannot: take",
    "optimizer=sgd precision=bf16_weights": "needs an optimizer that rounds stochastically",
    "optimizer._target_=torch.optim.SGD": "optimizer._target_ cannot be typed: name the class",
    "+schedule._target_=os.system": "schedule._target_ cannot be typed",
    "schedule=halving schedule.every=0": "schedule=halving: own_parts.halving: ZeroDivisionError",
    "schedule=linear schedule.end=-1": "it must be a share of the full rate, 0 or more",
    "logger=lines +logger.path=x": "TypeError: got an unexpected keyword argument 'path'",
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_wrong_option_is_refused_in_one_line_and_leaves_no_folder(
    wrong: str, base: Path, typed: list[str]
) -> None:
    before = listing(base) - listing(base / "mine")
    done = here("train", *typed, *wrong.split(), cwd=base)
    assert done.returncode == 2
    assert REFUSED[wrong] in done.stderr
    assert done.stderr.count("\n") == 1
    new = {name for name in listing(base) - before if not name.startswith(("mine", "data"))}
    assert not new


@pytest.mark.slow
def test_a_sweep_over_custom_options_is_checked_before_it_starts(
    base: Path, typed: list[str]
) -> None:
    wrong = here(
        "train", "-m", *typed, "optimizer=sgd", "optimizer.momentum=0.5,-1", "run.sweep=x", cwd=base
    )
    assert wrong.returncode == 2
    assert "Invalid momentum value: -1" in wrong.stderr
    assert not (base / "multirun/x").exists()
    done = here(
        "train", "-m", *typed, "optimizer=lion,nadam", "logger=lines", "run.sweep=y",
        "optimizer.lr=0.001", cwd=base,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = sorted((base / "multirun/y").glob("*/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in jobs] == ["finished"] * 2
    assert all((path.parent / "lines.txt").exists() for path in jobs)


def test_a_plan_counts_the_measured_state_of_a_custom_optimizer(
    base: Path, typed: list[str]
) -> None:
    typed = [word for word in typed if not word.startswith("model.")]
    planned = {}
    for optimizer in ("sgd", "nadam"):
        own = [f"optimizer={optimizer}", "model.n_layer=4", "model.n_embed=768"]
        done = here("plan", *typed, *own, cwd=base)
        assert done.returncode == 0, done.stderr
        (line,) = (
            line for line in done.stdout.splitlines() if "optimizer state" in line and "%" in line
        )
        planned[optimizer] = float(line.replace("│", " ").split()[2].replace(",", ""))
        weights = re.search(r"│ weights +│ +([\d.,]+) │", done.stdout)
        assert weights is not None
        planned["weights"] = float(weights[1].replace(",", ""))
    assert planned["sgd"] == pytest.approx(planned["weights"], rel=0.01)
    assert planned["nadam"] == pytest.approx(2 * planned["weights"], rel=0.01)


@pytest.mark.slow
def test_a_plan_imports_torch_for_a_custom_optimizer(base: Path, typed: list[str]) -> None:
    with started("plan", *typed, "optimizer=lion,sgd", "logger=lines", cwd=base) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait() == 0, said
    assert "optimizer=lion" in said


def test_a_logger_that_fails_causes_a_warning_and_the_run_continues(
    base: Path, typed: list[str]
) -> None:
    done = here("train", *typed, "logger=fails", "run.name=f", cwd=base)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "the logger Fails failed, so this run is logged to metrics.jsonl only: Conn" in said
    assert len(rows(base / "outputs/f")) == 7
    assert summary(base / "outputs/f")["status"] == "finished"


@pytest.mark.slow
def test_the_printed_command_to_continue_names_the_folder_of_options(
    base: Path, typed: list[str]
) -> None:
    with started("train", *typed, "optimizer=lion", "logger=none", "run.dir=there",
                 "trainer.max_steps=100000", cwd=base) as process:  # fmt: skip
        wait_until(lambda: len(rows(base / "there")) > 3 or process.poll() is not None)
        process.terminate()
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait() == 75, said
    assert "run_train.py --config-dir mine/conf resume=there" in said
