"""Each section of the settings becomes the object that its ``_target_`` names."""

import pytest
import torch

from llm.errors import Refused
from llm.model.gpt import GPT
from llm.settings.build import build, locate
from llm.settings.schema import Model, Optimizer, ScheduleSection
from llm.training import optimizer as optimizers
from llm.training.schedule import Cosine

SHAPE = {"n_layer": 1, "n_embed": 16, "head_size": 8, "block_size": 8, "vocab_size": 11}


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SGD", "is not a dotted name"),
        ("torch.", "is not a dotted name"),
        ("no_such_module.SGD", "cannot be imported: ModuleNotFoundError"),
        ("torch.optim.NoSuchClass", "cannot be imported: ModuleNotFoundError"),
        ("math.pi", "is a float, which cannot be called"),
    ],
)
def test_a_name_without_a_class_or_function_is_refused(name: str, reason: str) -> None:
    with pytest.raises(Refused, match=rf"^optimizer=x: _target_={name} {reason}"):
        locate(name, "optimizer=x: _target_")
    assert locate("torch.optim.SGD", "") is torch.optim.SGD
