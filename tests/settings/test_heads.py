"""The width of a head: n_embed / n_head if n_head is given, else the preset's head size."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llm.config.compose import read_settings
from llm.config.inside import compose_training
from llm.settings.saved import to_plain
from llm.settings.schema import PlanSettings, TrainSettings
from tests.command_line import composed, here
from tests.config.test_planner import points
from tests.test_bad_input import assert_refused

# Overrides, and the n_head and head_size that follow from them
TYPED = [
    ([], (4, 32)),
    (["model.n_embed=768"], (24, 32)),
    (["model.n_head=6", "model.n_embed=768"], (6, 128)),
    (["model.n_head=8"], (8, 16)),
    (["model.n_head=6", "model.n_embed=768", "model.head_size=32"], (6, 32)),
    (["model.n_head=4", "model.head_size=64"], (4, 64)),
    (["model.head_size=64"], (2, 64)),
    (["model.n_head=4", "model.head_size=null"], (4, 32)),
    (["model=small"], (6, 128)),
    (["model=small", "model.n_head=12"], (12, 64)),
    (["model=small", "model.n_embed=384"], (3, 128)),
    (["model=gpt2"], (12, 64)),
    (["model=gpt2", "model.n_embed=512"], (8, 64)),
    (["model=gpt2", "model.head_size=32"], (24, 32)),
    (["model=tiny", "model.n_head=3"], (3, 128)),
    (["model=medium", "model.n_head=16"], (16, 64)),
    (["experiment=nanogpt_char"], (6, 64)),
    (["experiment=nanogpt_char", "model.n_head=12"], (12, 32)),
    (["experiment=fast", "model.n_head=2"], (2, 64)),
]


@pytest.mark.parametrize(("typed", "heads"), TYPED, ids=[" ".join(t) for t, _ in TYPED])
def test_heads_share_the_width_unless_their_size_is_given(
    typed: list[str], heads: tuple[int, int]
) -> None:
    settings = compose_training(*typed)
    model = settings.model.resolve(65)
    assert (model.n_head, model.head_size) == heads
    saved = to_plain(settings.resolve(65, "fp32"))["model"]
    assert (saved["n_head"], saved["head_size"]) == heads
    assert "default_head_size" not in saved


def test_a_recipe_that_gives_heads_over_any_preset_gets_heads_that_share_the_width() -> None:
    recipe = OmegaConf.create({"model": {"n_head": 6, "n_embed": 768}})
    cfg = OmegaConf.merge(composed("train"), recipe)  # as Hydra merges an experiment's file
    model = read_settings(cfg, TrainSettings).model.resolve(65)
    assert (model.n_head, model.head_size) == (6, 128)


GRIDS = [
    ["model.n_head=2,4,8"],
    ["model.n_head=null,8,null,2", "model.n_embed=128,256"],
    ["model.n_head=4,8", "model.head_size=null,16"],
    ["model.n_embed=128,256,384"],
    ["model=small,gpt2", "model.n_head=null,6"],
]


@pytest.mark.parametrize("typed", GRIDS, ids=[" ".join(grid) for grid in GRIDS])
def test_each_point_of_a_grid_has_the_heads_of_a_single_run(typed: list[str]) -> None:
    made = points(*typed)
    assert len(made) > 1
    for point in made:
        alone = read_settings(
            composed("plan", *(f"{key}={value}" for key, value in point.values.items())),
            PlanSettings,
        )
        assert point.settings == alone


def test_heads_that_do_not_share_the_width_are_refused_in_every_job(tmp_path: Path) -> None:
    done = here("train", "model.n_embed=130", "model.n_head=4", cwd=tmp_path)
    named = "model.n_embed=130 is not divisible by model.n_head=4: take 128 or 136"
    assert_refused(done, named)  # not 132: heads of 33 channels cannot be turned in pairs
    done = here("train", "-m", "model.n_head=4,3", "seed=1", cwd=tmp_path)
    assert_refused(done, "model.n_head=3", "model.n_embed=128 is not divisible", "none was started")
