"""Only classes and functions of our own are built, from plain values."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from llm.errors import Refused
from llm.model.gpt import GPT
from llm.settings.build import build
from llm.settings.schema import Model, Optimizer, ScheduleSection
from llm.training import optimizer as optimizers
from llm.training.schedule import Cosine

SHAPE = {"n_layer": 1, "n_embed": 16, "head_size": 8, "block_size": 8, "vocab_size": 11}
FOREIGN = [
    "os.system",
    "builtins.open",
    "pathlib.Path",
    "torch.nn.Linear",
    "hydra.utils.instantiate",
    "llmx.model.gpt.GPT",
    "tests.conftest.ROOT",
]
# What modules of ours have only imported, reached through them.
ALIASES = [
    "llm.data.corpus.Path",
    "llm.training.trainer.torch",
    "llm.training.trainer.torch.load",
    "llm.data.assets.subprocess.run",
    "llm.data.prepare.sha256",
    "llm.experiment.rundir.shutil.rmtree",
    "llm.settings.schema.GPTConfig",
]
NO_CODE = [
    "llm.data.config.CORPORA",
    "llm.training.options.LARGEST_BATCH",
    "llm.model.gpt",
    "llm.x.y",
]


@dataclass
class Section:
    """A section of a configuration with whatever a test puts in."""

    _target_: str = "llm.training.schedule.Cosine"
    name: str = "cosine"
    min_lr_ratio: Any = field(default=0.1)


def test_a_network_an_optimizer_and_a_schedule_are_built_from_their_sections() -> None:
    model = build(Model(**SHAPE))
    optimizer = build(Optimizer(lr=0.5, betas=[0.8, 0.7]), model=model)
    schedule = build(ScheduleSection(min_lr_ratio=0.25))
    assert type(model) is GPT
    assert model.config.n_layer == 1
    assert type(optimizer) is optimizers.Optimizer
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.8, 0.7)
    assert optimizer.param_groups[0]["params"][0] is model.embed.weight
    assert type(schedule) is Cosine
    assert schedule.min_lr_ratio == 0.25 and schedule(11, 100) == 1.0


def test_a_section_may_be_a_plain_dict_and_is_left_as_it_was() -> None:
    section = {"_target_": "llm.model.gpt.GPT", **SHAPE}
    assert isinstance(build(section), GPT)
    assert section == {"_target_": "llm.model.gpt.GPT", **SHAPE}


@pytest.mark.parametrize("name", FOREIGN + ALIASES)
def test_a_target_that_is_not_defined_in_llm_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="_target_") as refusal:
        build({"_target_": name, "name": "x"})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NO_CODE)
def test_a_target_that_is_no_class_or_function_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="_target_") as refusal:
        build({"_target_": name})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "value", [{}, {"_target_": "llm.model.gpt.GPT"}, [{"a": 1}], [[1]], object(), torch.zeros(1)]
)
def test_a_value_that_is_not_plain_is_refused_before_anything_is_built(value: Any) -> None:
    with pytest.raises(ValueError, match="min_lr_ratio"):
        build(Section(min_lr_ratio=value))


def test_objects_of_this_run_are_passed_and_not_configured() -> None:
    model = build(Model(**SHAPE))
    with pytest.raises(ValueError, match="model"):
        build({**vars(Optimizer()), "model": model})
