"""Settings become everything that memory depends on, and back; the points of a grid get plans."""

import dataclasses
import sys
from pathlib import Path

import pytest

from llm.config.compose import read_settings
from llm.errors import Refused
from llm.memory.fit import Fitted
from llm.memory.predict import predict
from llm.memory.weights import ALL
from llm.options import validate
from llm.planning.plan import Plan, find_largest
from llm.planning.points import Point, plan_points, refusal
from llm.planning.setup import apply_changes, setup_of, vocabulary
from llm.settings.saved import to_yaml
from llm.settings.schema import TrainSettings
from tests.command_line import composed
from tests.config.test_planner import alone, points
from tests.planning.made import GIB, grid, plan


def test_the_setup_is_resolved_as_a_run_resolves_it() -> None:
    settings = alone("model=small", "data=shakespeare", "trainer.batch_size=12", "optimizer=adamw")
    found = setup_of(settings, "cuda")
    assert (found.model.vocab_size, found.model.n_head) == (50_304, 6), "padded to a multiple of 64"
    assert (found.optimizer, found.state_bits, found.precision) == ("adamw", 32, "bf16")
    assert (found.batch_size, found.micro_batch, found.device) == (12, 12, "cuda")
    assert (found.samples, found.compile) == (False, False)
    found = setup_of(
        alone("precision=fp16", "trainer.sample_interval=5", "trainer.micro_batch_size=2"), "cpu"
    )
    assert (found.precision, found.micro_batch, found.samples) == ("fp16", 2, True)
    assert found.model.vocab_size == 77
    for device in ("mps", "cpu"):
        found = setup_of(alone(), device)
        assert (found.device, found.precision) == ("cpu", "fp32")


def test_changes_that_make_a_run_fit_are_put_into_its_settings() -> None:
    settings: TrainSettings = alone("model=small")
    setup = setup_of(settings, "cpu")
    changed = dataclasses.replace(
        setup, micro_batch=2, activation_checkpointing="full", state_bits=8,
        model=dataclasses.replace(setup.model, loss="chunked"),
    )  # fmt: skip
    applied = apply_changes(settings, Fitted(changed, predict(changed, {})))
    assert setup_of(applied, "cpu") == changed
    validate(applied)
    assert settings == alone("model=small"), "the settings themselves stay as they were"


def test_an_unknown_vocabulary_has_to_be_given() -> None:
    text = ["data=text", "data.path=no_such_file", "data.tokenizer=char"]
    assert vocabulary(alone(*text)) is None
    with pytest.raises(Refused, match=r"unknown before the text is read: give data\.vocab_size=N"):
        plan_points(points(*text))
    (found,) = plan_points(points(*text, "data.vocab_size=65"))
    assert found.setup.model.vocab_size == 65


def test_lora_is_planned_where_it_is_chosen() -> None:
    same = ["model=small", "optimizer=adamw"]
    (plain,) = plan_points(points(*same))
    (low,) = plan_points(points(*same, "finetune=lora", "finetune.targets=[q,v]"))
    assert (plain.setup.finetune, low.setup.finetune.target_names) == (ALL, ("q", "v"))
    assert low.prediction.total < plain.prediction.total
    gate = ["model.mlp=swiglu,gelu", "finetune=lora", "finetune.targets=[gate]"]
    with pytest.raises(Refused, match=r"job model.mlp=gelu cannot run: finetune.targets=gate le"):
        plan_points(points(*gate))


def test_only_a_key_that_changes_memory_makes_another_plan() -> None:
    plans = plan_points(points("model.n_layer=1,2", "seed=1,2,3", "optimizer.lr=1e-3,2e-3"))
    assert [one.label for one in plans] == ["model.n_layer=1", "model.n_layer=2"]
    (same,) = plan_points(points("seed=1,2"))
    assert same.values == {}
    budgets = plan_points(points("memory.budget_gib=1,2", "seed=1,2"))
    assert [one.budget for one in budgets] == [GIB, 2 * GIB]


def test_only_a_run_needs_the_library_of_8_bit_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    typed = ["optimizer.state_bits=8", "optimizer=adamw"]
    (planned,) = plan_points(points(*typed))
    assert planned.setup.state_bits == 8
    with pytest.raises(Refused, match=r"state_bits=8 needs bitsandbytes: pip install -c constr"):
        read_settings(composed("train", *typed), TrainSettings)


def test_a_resumed_run_keeps_the_bits_of_its_state(tmp_path: Path) -> None:
    (point,) = points("model=medium", "data=shakespeare", "optimizer=adamw")
    vocab_size = vocabulary(point.settings)
    assert vocab_size
    saved = to_yaml(point.settings.resolve(vocab_size, "fp32"))
    (tmp_path / "config.yaml").write_text(saved, encoding="utf-8")
    resumed = dataclasses.replace(point.settings, resume=str(tmp_path))
    (new,), (old,) = plan_points([point]), plan_points([Point(resumed, {})])
    assert any(way.setup.state_bits == 8 for way in new.ways)
    assert not any(way.setup.state_bits == 8 for way in old.ways)
    assert old.fitted is None or old.fitted.setup.state_bits == 32


def message(plans: list[Plan], points: int) -> str | None:
    why = refusal(plans, points)
    return None if why is None else str(why)


def test_a_single_run_is_refused_as_run_train_would() -> None:
    assert message([plan()], 1) is None
    assert message([plan(0.65)], 1) is None, "fit=off only asks"
    assert message([plan(0.75, "auto")], 1) is None
    why = message([plan(0.75, "check")], 1)
    assert why is not None
    assert why.startswith("the run would take 806 MiB (training step), more than memory.budget_gi")
    assert why.endswith(
        "; it fits with, fastest first: model.loss=chunked | trainer.micro_batch_size=2"
    )
    why = message([plan(0.65, "auto")], 1)
    assert why is not None and why.endswith("makes it fit: take a smaller model")


def test_a_grid_is_refused_if_no_point_fits() -> None:
    assert message(grid([1, 64], [1024]), 2) is None
    too_small = grid([2, 3], [512], budget_gib=0.75)
    why = message(too_small, 2)
    assert why is not None
    smallest = "none of 2 points fits memory.budget_gib=0.75: the smallest, model.n_layer=2 model.n"
    assert why.startswith(smallest)
    assert message(grid([2, 3], [512], budget_gib=0.75, fit="auto"), 2) is None
    same = message([plan(0.75)], 3)
    assert same is not None and "none of 3 points fits memory.budget_gib=0.75: each tak" in same


def test_a_size_is_refused_if_not_even_the_smallest_fits() -> None:
    none, some = (
        dataclasses.replace(one, largest=find_largest(one, "n_layer"))
        for one in (plan(0.6), plan(1))
    )
    assert message([none], 1) == "no n_layer fits memory.budget_gib=0.6, not even the smallest"
    assert message([none, none], 2) == "no n_layer fits at any of 2 points, not even the smallest"
    assert message([none, some], 2) is None
