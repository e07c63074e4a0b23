"""The configuration that Hydra composes once here, and twice in its own program, is the same."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

import llm.config.store  # noqa: F401  (replaces the method of Hydra)
from tests.conftest import ROOT


@pytest.fixture
def hydra() -> Iterator[Hydra]:
    GlobalHydra.instance().clear()
    yield Hydra.create_main_hydra2("train", create_config_search_path(str(ROOT / "conf")))
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("mode", [RunMode.RUN, RunMode.MULTIRUN])
def test_the_second_composition_is_the_one_of_hydra(hydra: Hydra, mode: RunMode) -> None:
    typed = ["model=tiny", "seed=1,2" if mode == RunMode.MULTIRUN else "seed=1"]
    assert hydra.get_mode("train", typed) is None, "none is typed"
    overrides = [*typed, f"hydra.mode={mode.name}"]
    found, own = (
        deepcopy(hydra.config_loader.load_configuration("train", overrides, mode)) for _ in range(2)
    )
    assert found == own
    assert found.hydra.mode == mode and found.hydra.overrides.hydra == overrides[-1:]


def test_a_typed_mode_is_found_and_another_configuration_is_composed_anew(hydra: Hydra) -> None:
    assert hydra.get_mode("train", ["hydra.mode=MULTIRUN", "seed=1,2"]) == RunMode.MULTIRUN
    other = hydra.config_loader.load_configuration("train", ["seed=3"], RunMode.RUN)
    assert other.seed == 3
