"""A path may be typed without its key; it reaches the command exactly as it was typed."""

import os
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config.arguments import for_hydra, is_path, with_path_keys
from llm.config.compose import read_settings
from llm.errors import Refused
from llm.settings.report import ReportSettings
from tests.command_line import composed
from tests.config.test_verbatim import NASTY, TEXT
from tests.conftest import ROOT

PATHS = TEXT.filter(bool) | NASTY.filter(bool)


@pytest.fixture
def typed_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_report.py"])
    return monkeypatch


def test_any_paths_reach_the_report_as_they_were_typed() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):

        @given(st.lists(PATHS, min_size=1, max_size=4))
        @settings(max_examples=12, deadline=None, database=None)
        def check(paths: list[str]) -> None:
            words = for_hydra([f"runs={path}" for path in paths])
            assert read_settings(compose("report", overrides=words), ReportSettings).runs == paths

        check()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("outputs/base", True),
        ("base", True),
        ("multirun/depth/n_layer=4,seed=1", True),
        ("/data/a=b/c", True),
        ("./seed=1", True),
        ("n_layer=4", True),  # it exists
        ("n_layer=5", False),  # it does not, so Hydra says that there is no such key
        ("metric=last", False),
        ("gate=true", False),  # a key, although there is a folder of this name
        ("hydra/job_logging=none", False),
        ("+hydra/job_logging=none", False),
        ("hydra.verbose=true", False),
        ("gate\uff1dtrue", False),  # Hydra says that this is another character than =
    ],
)
def test_which_words_are_paths(
    word: str, expected: bool, typed_for: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("n_layer=4", "gate=true"):
        (tmp_path / name).mkdir()
    assert is_path(word) is expected


def test_paths_without_a_key_are_runs_of_a_report(typed_for: pytest.MonkeyPatch) -> None:
    words = ["a", "metric=last", "b/c=1,2", "runs=d"]
    assert with_path_keys(words) == ["runs=a", "metric=last", "runs=b/c=1,2", "runs=d"]
    settings = read_settings(composed("report", *for_hydra(words)), ReportSettings)
    assert (settings.runs, settings.metric) == (["a", "b/c=1,2", "d"], "last")


def test_one_path_without_a_key_is_the_checkpoint_of_a_sample(
    typed_for: pytest.MonkeyPatch,
) -> None:
    typed_for.setattr(sys, "argv", ["run_sample.py"])
    assert with_path_keys(["prompt=a/b", "x/y=1"]) == ["prompt=a/b", "ckpt=x/y=1"]
    with pytest.raises(Refused, match=r"3 words without a key \(outputs/a, top_k, 5\): ckpt is"):
        with_path_keys(["outputs/a", "top_k", "5"])
    typed = ["ckpt=x", "seed", "3"]  # Hydra says that there is no = in it
    assert with_path_keys(typed) == typed


@pytest.mark.parametrize("name", ["train", "prepare", "plan"])
def test_other_commands_take_no_path_without_a_key(
    name: str, typed_for: pytest.MonkeyPatch
) -> None:
    typed_for.setattr(sys, "argv", [f"run_{name}.py"])
    assert with_path_keys(["outputs/a"]) == ["outputs/a"]


def test_a_report_without_a_path_is_refused_naming_the_newest_sweep(
    typed_for: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"run_report.py multirun/width_depth$"):
        ReportSettings().cross_check()
    for number, name in enumerate(["new", "old", "older"]):
        path = tmp_path / "multirun" / name / "sweep.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}", encoding="utf-8")
        # The folder of an older sweep changes when a job is added to it.
        os.utime(path, (100 - number, 100 - number))
    with pytest.raises(Refused, match=r"no runs: .* multirun/new$"):
        ReportSettings().cross_check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runs": ["a", ""]}, "empty path"),
        ({"runs": ["a"], "out": ""}, "out is empty"),
        ({"runs": ["a"], "out": "b" * 300}, "out: .* has 300 bytes"),
    ],
)
def test_empty_and_impossible_paths_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        ReportSettings(**wrong).cross_check()  # type: ignore[arg-type]  # of several types
