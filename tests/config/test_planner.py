"""A grid becomes the settings that Hydra would have composed one by one, with few compositions."""

from collections.abc import Iterator
from typing import cast
from unittest.mock import patch

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from llm.config.compose import read_settings
from llm.config.planner import Planner, as_points
from llm.errors import Refused
from llm.planning.points import Point, plan_points
from llm.settings.schema import PlanSettings
from tests.command_line import composed
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def own_hydra_config() -> Iterator[None]:
    """Restore Hydra's global configuration, which a single plan sets."""
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


def points(*typed: str) -> list[Point[PlanSettings]]:
    """The points that ``python run_plan.py *typed`` passes to its main function."""
    return counted(*typed)[0]


def counted(*typed: str) -> tuple[list[Point[PlanSettings]], int]:
    """The same, and the number of compositions by Hydra."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        config = loader.load_configuration("plan", list(typed), RunMode.MULTIRUN)
        made: list[Point[PlanSettings]] = []
        found = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(loader, Callbacks()),
            task_function=lambda cfg: made.extend(as_points(cfg)),
            config=config,
        )
        assert isinstance(found, Planner)
        with patch.object(loader, "load_sweep_config", wraps=loader.load_sweep_config) as compose:
            arguments = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
            found.sweep(cast(list[str], arguments))
        return made, compose.call_count


def alone(*typed: str) -> PlanSettings:
    """The settings of one point as Hydra alone composes them."""
    return read_settings(composed("plan", *typed), PlanSettings)


GRIDS = [
    (["model=small", "model.n_layer=4,8", "model.n_embed=384,768"], 4, 1),
    (["model=small,medium", "trainer.batch_size=4,8,16", "precision=fp16"], 6, 2),
    (["model=glob([n*,s*])", "model.n_layer=1,2"], 4, 2),
    (["optimizer=adamw,muon", "optimizer.betas=[0.9,0.95],[0.8,0.9]", "seed=1,2"], 8, 2),
    (["trainer.micro_batch_size=null,2", "memory.budget_gib=1,2.5", "seed=1,2"], 8, 1),
    (["model.n_layer=range(4,17,4)", "optimizer.lr=choice(1e-3,2e-3)"], 8, 1),
    (["model.n_head=2,4", "model.intermediate_size=${model.n_embed}"], 2, 2),
    (["model.n_layer=2,3", "model.intermediate_size=64,${model.n_embed}"], 4, 3),
    (["model={n_layer:2},{n_head:2}", "seed=3"], 2, 2),
    (["optimizer.lr=range(0.1,0.4,0.1)"], 3, 1),
    (["model.n_layer=sort(3,1,2)", "seed=shuffle(range(1,4))"], 9, 1),
    (["sweep=depth"], 8, 1),
    (["sweep=depth", "model.n_layer=3,5", "seed=range(0,3)"], 6, 1),
    (["sweep=learning_rate", "optimizer.lr=1e-2", "seed=4"], 3, 1),
    (["sweep=optimizer"], 12, 2),
    (["sweep=width_depth", "model.n_layer=2", "model.n_embed=64"], 2, 1),
    (["sweep=width_depth", "model.n_layer=2,4", "model.n_embed=64,32", "seed=1"], 2, 1),
    (["sweep=width_depth", "hydra.sweeper.zip=null", "model.n_layer=2,3", "seed=1"], 10, 1),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "count", "compositions"), GRIDS, ids=[g[0][0] for g in GRIDS])
def test_each_point_is_what_hydra_would_have_composed(
    typed: list[str], count: int, compositions: int
) -> None:
    found, composed_times = counted(*typed)
    assert (len(found), composed_times) == (count, compositions)
    assert len({point.label for point in found}) == count
    given = [word for word in typed if word.partition("=")[0] not in found[0].values]
    for point in (found[1], found[-1]):
        assert point.settings == alone(*given, *point.label.split(" "))


def test_one_plan_is_a_list_of_one_and_nothing_more_is_composed() -> None:
    found, composed_times = counted("model=small")
    assert found == [Point(alone("model=small"), {})]
    assert composed_times == 0


def test_a_point_shares_nothing_with_another_that_could_change_it() -> None:
    first, second = points("optimizer.betas=[0.9,0.95],[0.8,0.9]")
    assert first.settings.optimizer is not second.settings.optimizer
    assert first.settings.optimizer.betas == [0.9, 0.95]


MISTAKES = [
    (["model.n_layer=4,abc"], "job model.n_layer=abc cannot run: model.n_layer=abc: Value 'abc'"),
    (["model.n_layers=4,8"], "job model.n_layers=4 cannot run: model.n_layers is unknown"),
    (["+model.x=4,8"], "job +model.x=4 cannot run: model.x is unknown"),
    (["model=small,smal"], "job model=smal cannot run: model=smal is unknown: take one of"),
    (["model.n_embed=128,100", "seed=1"], "job model.n_embed=100 cannot run: model.n_embed=100 is"),
    (["trainer.batch_size=8,9", "trainer.micro_batch_size=4"], "batch_size=9 cannot run: trainer"),
    (["model.n_layer=range(4,4)"], "n_layer=range(4,4) has no values, so there is nothing"),
    (["model=glob(zz*)"], "model=glob(zz*) has no values, so there is nothing to run"),
    (["sweep=depth,width"], "sweep= says what to sweep over, so it cannot vary"),
    (["seed=range(1,10,0)"], "seed=range(1,10,0) must be range(FIRST,END,STEP), STEP not 0"),
    (["optimizer.lr=range(0.1,inf,0.1)"], "range(0.1,inf,0.1) must be range(FIRST,END,STEP)"),
    (["seed=range(1,3),5"], "a range or choice cannot be one of several values: list them all"),
    (["model.n_layer=interval(1,4)"], "is a continuous range: take range(...) or choice(...)"),
    (["seed=range(0,200)", "model.n_layer=range(1,200)"], "these are 39,800 combinations"),
    (["seed=range(0,100000000000)"], "range(0,100000000000) has more than 20,000 values: take"),
    (["memory.budget_gib=0.1,4"], "job memory.budget_gib=0.1 cannot run: memory.budget_gib=0.1 le"),
    (["memory.largest=n_layer,seed"], "memory.largest=seed must be one of n_layer, n_em"),
    (["resume=outputs/a", "seed=1,2"], "resume= continues one run"),
    (["finetune=lora", "finetune.targets=[q,x]"], "finetune.targets=x must be some of"),
    (["picture=plan.jpg"], "picture=plan.jpg must be the name of a PNG"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_named_with_its_job(typed: list[str], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan_points(points(*typed))
    assert words in str(refusal.value)
