"""``run_train.py`` with ``memory.fit`` and ``memory.enforce``."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.config.inside import compose_training
from llm.errors import OutOfMemory
from llm.planning.fitting import fit_memory, retry_with_smaller_micro_batch
from llm.planning.plan import Plan
from llm.settings.schema import TrainSettings
from llm.training.trainer import Trainer
from tests.command_line import Done, here, rows, summary
from tests.conftest import HANGS, ROOT, needs_linux

DATA = ["data=shakespeare_char", "data.dir=data"]
SHORT = [
    "logger=none", "trainer.max_steps=2", "trainer.eval_interval=2", "trainer.eval_batches=1",
    "trainer.log_interval=1", "trainer.checkpoint_interval=2",
]  # fmt: skip
# The measured reserve differs from one test run to the next, so it is set.
BUDGET = ["trainer.batch_size=16", "memory.reserve_mib=100"]


def alone(*typed: str, cwd: Path) -> Done:
    """``python run_train.py`` in a new process, which a memory limit may end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run_train.py"), *typed],
        cwd=cwd, text=True, capture_output=True, timeout=HANGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("prepared")
    assert here("prepare", *DATA, cwd=cwd).returncode == 0
    return cwd


def test_check_refuses_before_data_is_prepared_and_names_changes_that_fit(tmp_path: Path) -> None:
    done = here("train", *DATA, *SHORT, *BUDGET, "memory.budget_gib=0.17", "memory.fit=check",
                cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
    said = done.stderr.strip()
    assert "\n" not in said
    assert "more than memory.budget_gib=0.17; the largest part is " in said
    ways = said.partition("fastest first: ")[2].split(" | ")
    assert 1 <= len(ways) <= 3
    fits = here("plan", *DATA, *SHORT, *BUDGET, "memory.budget_gib=0.17", "memory.fit=check",
                *ways[0].split(), cwd=tmp_path)  # fmt: skip
    assert fits.returncode == 0, fits.stdout


@pytest.mark.slow
def test_auto_runs_within_the_budget_at_the_same_tokens_per_step_and_to_the_same_losses(
    prepared: Path,
) -> None:
    plain = here("train", *DATA, *SHORT, *BUDGET, "run.name=plain", cwd=prepared)
    fitted = here("train", *DATA, *SHORT, *BUDGET, "run.name=fitted", "memory.budget_gib=0.17",
                  "memory.fit=auto", cwd=prepared)  # fmt: skip
    assert plain.returncode == fitted.returncode == 0, fitted.stderr
    found = summary(prepared / "outputs/fitted")
    assert found["memory_changes"]
    assert found["memory_changes"][0] in fitted.stdout
    assert found["predicted_memory_bytes"] <= 0.17 * 2**30
    assert summary(prepared / "outputs/plain")["memory_changes"] == []
    one, other = (rows(prepared / "outputs" / name) for name in ("plain", "fitted"))
    assert [row["tokens"] for row in one] == [row["tokens"] for row in other]
    for mine, theirs in zip(one, other, strict=True):
        for key in ("train/loss", "val/loss"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=1e-4)
    again = here("train", *DATA, *SHORT, *BUDGET, "run.name=fitted", "memory.budget_gib=0.17",
                 "memory.fit=auto", cwd=prepared)  # fmt: skip
    assert "is finished already" in again.stdout
    # A resumed run keeps its micro-batch, although a larger one would fit now.
    more = here("train", "resume=outputs/fitted", "trainer.max_steps=3", "memory.budget_gib=4",
                cwd=prepared)  # fmt: skip
    assert more.returncode == 0, more.stderr
    size = found["memory_changes"][0].partition("=")[2]
    assert f"micro_batch_size: {size}\n" in (prepared / "outputs/fitted/config.yaml").read_text()


@pytest.fixture
def eight(prepared: Path) -> list[str]:
    """The overrides of the finished run ``outputs/eight``, which has AdamW's state in 8 bits."""
    typed = [*DATA, *SHORT, "optimizer=adamw", "run.name=eight"]
    if not (prepared / "outputs/eight").exists():
        done = here("train", *typed, "optimizer.state_bits=8", cwd=prepared)
        assert done.returncode == 0, done.stderr
    return typed


def test_a_run_keeps_the_bits_of_its_state_unless_others_are_typed(
    prepared: Path, eight: list[str]
) -> None:
    for more in ([], ["memory.fit=auto"], ["memory.fit=auto", "trainer.micro_batch_size=2"]):
        again = here("train", *eight, *more, cwd=prepared)
        assert "is finished already" in again.stdout, again.stderr
    typed = here("train", *eight, "optimizer.state_bits=32", cwd=prepared)
    assert typed.returncode == 2
    assert "optimizer.state_bits was 8, now 32" in typed.stderr


def test_a_finished_run_is_skipped_even_if_it_would_not_fit(
    prepared: Path, eight: list[str]
) -> None:
    small = ["memory.fit=check", "memory.budget_gib=0.11", "memory.reserve_mib=100"]
    assert "is finished already" in here("train", *eight, *small, cwd=prepared).stdout
    more = here("train", "resume=outputs/eight", "trainer.max_steps=9", *small, cwd=prepared)
    assert more.returncode == 2
    assert "the run would take" in more.stderr


def test_an_impossible_lever_in_config_yaml_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outputs/strange"
    folder.mkdir(parents=True)
    text = "trainer:\n  micro_batch_size: abc\n"
    (folder / "config.yaml").write_text(text)
    done = here("train", *SHORT, "run.name=strange", "memory.fit=auto", cwd=tmp_path)
    assert done.returncode == 2
    assert "strange/config.yaml: trainer.micro_batch_size=abc must be a whole number" in done.stderr


def test_an_evaluation_needs_no_memory_for_training(prepared: Path, eight: list[str]) -> None:
    small = ["memory.fit=check", "memory.budget_gib=0.26", "memory.reserve_mib=100"]
    refused = here("train", "resume=outputs/eight", "trainer.max_steps=9", *small, cwd=prepared)
    assert "the run would take" in refused.stderr
    done = here("train", "resume=outputs/eight", "trainer.eval_only=true", *small, cwd=prepared)
    assert done.returncode == 0, done.stderr


def test_weights_that_are_too_large_fit_with_no_change(tmp_path: Path) -> None:
    done = here("train", "model=medium", "data=shakespeare", "memory.fit=auto",
                "memory.budget_gib=1", "memory.reserve_mib=600", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "no setting of how it is run makes it fit: take a smaller model" in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_linux
def test_a_limit_ends_a_run_with_status_4_and_the_last_checkpoint_stays(prepared: Path) -> None:
    run = ["run.dir=limited", "memory.reserve_mib=1", "trainer.max_steps=1"]
    first = here("train", *DATA, *SHORT, *run, "trainer.batch_size=64", cwd=prepared)
    assert first.returncode == 0, first.stderr
    # Enough for libraries and weights, not for a step; more steps than before.
    limited = ["memory.enforce=true", "memory.budget_gib=0.2", "trainer.max_steps=8"]
    done = alone("resume=limited", *limited, cwd=prepared)
    assert done.returncode == 4, done.stderr
    assert "out of memory" in done.stderr.splitlines()[-1]
    found = summary(prepared / "limited")
    assert found["status"] == "out_of_memory"
    assert found["step"] == 1
    assert found["predicted_memory_bytes"] > 0.2 * 2**30
    assert found["peak_memory_bytes"] > 0
    more = here("train", "resume=limited", "trainer.max_steps=2", "memory.enforce=false",
                cwd=prepared)  # fmt: skip
    assert more.returncode == 0, more.stderr
    assert summary(prepared / "limited")["step"] == 2


@pytest.mark.slow
@needs_linux
def test_a_run_limited_to_its_prediction_finishes(prepared: Path) -> None:
    wide = [*DATA, *SHORT, "model.n_layer=4", "model.n_embed=512", "run.dir=enforced"]
    limited = [*wide, "memory.fit=check", "memory.enforce=true"]
    refused = alone(*limited, "memory.budget_gib=0.5", "trainer.batch_size=4", cwd=prepared)
    found = re.search(r"the run would take ([\d.]+) MiB", refused.stderr)
    assert refused.returncode == 2 and found, refused.stderr
    # The measured size of a process varies.
    budget = f"memory.budget_gib={(float(found[1]) + 20) / 1024:.3f}"
    done = alone(*limited, budget, "trainer.batch_size=4", cwd=prepared)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are not tuned")
def test_a_narrow_network_that_steps_in_backward_takes_no_more_than_is_predicted(
    prepared: Path,
) -> None:
    narrow = ["model.n_embed=192", "model.block_size=256", "trainer.batch_size=8"]
    in_backward = ["trainer.step_in_backward=true", "optimizer=adamw", "precision=fp32"]
    done = alone(*DATA, *SHORT, *narrow, *in_backward, "run.dir=in_backward", cwd=prepared)
    assert done.returncode == 0, done.stderr
    found = summary(prepared / "in_backward")
    assert found["peak_memory_bytes"] <= found["predicted_memory_bytes"]


def test_a_run_with_another_batch_is_refused_for_that(prepared: Path) -> None:
    first = here("train", *DATA, *SHORT, "run.name=batch", "trainer.batch_size=12", cwd=prepared)
    assert first.returncode == 0, first.stderr
    other = here("train", *DATA, *SHORT, "run.name=batch", "trainer.batch_size=8", cwd=prepared)
    assert other.returncode == 2
    assert "trainer.batch_size was 12, now 8" in other.stderr


@pytest.mark.slow
def test_a_run_out_of_memory_continues_from_its_last_checkpoint_with_half_the_micro_batch(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Trainer.optimizer_step, []

    def optimizer_step(self: Trainer, *arguments: Any) -> Any:
        calls.append(self.options.micro_batch)
        if len(calls) == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(self, *arguments)

    monkeypatch.setattr(Trainer, "optimizer_step", optimizer_step)
    done = here("train", *DATA, *SHORT, "run.name=half", "trainer.batch_size=64",
                "trainer.max_steps=4", "memory.fit=auto", cwd=prepared)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "out of memory: trying once more with trainer.micro_batch_size=32" in done.stdout
    assert calls == [64, 64, 64, 64, 32, 32]  # the checkpoint is of step 2
    found = summary(prepared / "outputs/half")
    assert (found["status"], found["step"]) == ("finished", 4)
    assert found["memory_changes"] == ["trainer.micro_batch_size=32"]


def test_a_smaller_micro_batch_that_takes_more_is_not_tried() -> None:
    settings = compose_training("model.n_layer=2", "model.n_embed=512", "memory.fit=auto",
                                "trainer.batch_size=2", "optimizer=adamw")  # fmt: skip
    settings, plan = fit_memory(settings.resolve(77, "fp32"), torch.device("cpu"))
    assert plan.with_smaller_micro_batch() is None

    def attempt(settings: TrainSettings, plan: Plan) -> float:
        error = OutOfMemory("out of memory (no room): try less")
        error.folder = Path("any")
        raise error

    with pytest.raises(OutOfMemory):
        retry_with_smaller_micro_batch(settings, plan, attempt)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["memory.budget_gib=0"], "memory.budget_gib=0"),
        (
            ["memory.reserve_mib=5000", "memory.fit=check"],
            "memory.budget_gib=4 leaves nothing beside the reserve of 5000 MiB",
        ),
        (["memory.reserve_mib=-1"], "memory.reserve_mib=-1 must be at least 0"),
        (["memory.fit=maybe"], "memory.fit=maybe must be one of off, check, auto"),
        (["trainer.step_in_backward=true", "trainer.micro_batch_size=2"], "step_in_backward=true"),
        (["trainer.step_in_backward=true", "trainer.compile=true"], "trainer.compile=true"),
        (["optimizer.state_bits=4"], "optimizer.state_bits=4 must be one of 8, 32"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_impossible_values_are_refused_in_one_line(
    command: str, typed: list[str], named: str, tmp_path: Path
) -> None:
    done = here(command, *typed, cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
