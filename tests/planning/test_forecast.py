"""Forecasts of jobs: the numbers of the run itself, known before it starts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llm.config.inside import compose_training
from llm.planning import forecast as module
from llm.planning.forecast import forecast, forecasts
from tests.command_line import here, summary
from tests.conftest import PLAY, ROOT, TINY_RUN

NO_TORCH = """
import sys
from llm.config.inside import compose_training
from llm.planning.forecast import forecast
assert forecast(compose_training("model=small", "memory.fit=auto", "memory.budget_gib=2"))
assert "torch" not in sys.modules
"""


def test_a_forecast_has_the_numbers_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    data = ["data=text", f"data.path={tmp_path / 'play.txt'}", f"data.dir={tmp_path / 'data'}"]
    typed = [*data, *TINY_RUN, "memory.reserve_mib=390"]
    settings = compose_training(*typed, "data.tokenizer=char")
    assert forecast(settings) is None  # the alphabet is in the text, which nobody has read
    assert not (tmp_path / "data").exists()
    done = here("train", *typed, "data.tokenizer=char", "run.name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    end, known = summary(tmp_path / "outputs/a"), forecast(settings)
    assert known is not None
    assert known.parameters == end["parameters"]
    assert (known.max_steps, known.tokens, known.minutes) == (end["step"], end["tokens"], None)
    assert known.peak == end["predicted_memory_bytes"]
    assert known.budget == 4 * 2**30 and known.fits


def test_a_forecast_says_whether_the_run_fits_with_the_changes_of_fit_auto() -> None:
    large = ["model=small", "trainer.batch_size=64", "memory.budget_gib=4"]
    off, auto = (forecast(compose_training(*large, f"memory.fit={fit}")) for fit in ("off", "auto"))
    assert off and auto
    assert not off.fits and off.peak > off.budget
    assert auto.fits and auto.peak <= auto.budget < off.peak
    tiny = forecast(compose_training("memory.budget_gib=0.1"))  # less than the reserve
    assert tiny and not tiny.fits


def test_an_evaluation_trains_on_no_token_and_minutes_are_handed_on() -> None:
    evaluation = forecast(compose_training("trainer.eval_only=true"))
    assert evaluation and evaluation.tokens == evaluation.max_steps == 0
    limited = forecast(compose_training("trainer.max_minutes=2.5"))
    assert limited and limited.minutes == 2.5
    timed = forecast(compose_training("trainer.max_steps=null", "trainer.max_minutes=5"))
    assert timed and timed.minutes == 5 and timed.max_steps is None and timed.tokens is None


def test_runs_that_differ_only_in_seed_or_rate_share_a_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = []
    plan_of = module.plan_of
    monkeypatch.setattr(module, "plan_of", lambda run: planned.append(run) or plan_of(run))
    base = compose_training()
    deeper = replace(base, model=replace(base.model, n_layer=8))
    runs = [
        replace(one, seed=seed, optimizer=replace(one.optimizer, lr=lr))
        for one in (base, deeper)
        for seed in range(20)
        for lr in (1e-3, 1e-4)
    ]
    found = forecasts(runs)
    assert len(planned) == 2
    assert len(found) == 80 and len(set(found)) == 2
    assert found[0] == forecast(base) and found[-1] == forecast(deeper)


def test_a_forecast_needs_no_torch() -> None:
    subprocess.run([sys.executable, "-c", NO_TORCH], cwd=ROOT, check=True)
