"""A run with ``init_from`` has the shape of those weights."""

import shutil
from pathlib import Path

import pytest
import yaml

from llm.config.inside import compose_training
from tests.command_line import here
from tests.conftest import TINY_RUN
from tests.test_bad_input import CHAR, assert_refused

# Each differs from the default preset.
SHAPE = [
    "model.n_layer=2", "model.n_embed=48", "model.n_head=3", "model.block_size=24",
    "model.mlp=relu2", "model.qk_norm=true", "model.tie_embeddings=false", "model.smear=2",
]  # fmt: skip
RUN = [word for word in TINY_RUN if not word.startswith("model.")]
FROM = "init_from=outputs/wide"


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with a run of another shape than the default preset's, and its text."""
    path = tmp_path_factory.mktemp("origin")
    shutil.copy(text_file, path / "play.txt")
    done = here("train", *text(), *RUN, *SHAPE, "run.name=wide", cwd=path)
    assert done.returncode == 0, done.stderr
    return path


def text() -> list[str]:
    return [*CHAR, "data.path=play.txt"]


def model_of(run: Path) -> dict[str, object]:
    model = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
    assert isinstance(model, dict)
    return model


def test_a_run_has_the_shape_of_its_weights_without_typing_it(cwd: Path) -> None:
    typed = [*text(), *RUN, FROM, "run.name=tuned", "model.dropout=0.1", "model.n_head=3"]
    done = here("train", *typed, cwd=cwd)
    assert done.returncode == 0, done.stderr
    wide, tuned = model_of(cwd / "outputs/wide"), model_of(cwd / "outputs/tuned")
    assert wide | {"dropout": 0.1} == tuned, "dropout is not part of the shape"
    done = here("train", *typed, cwd=cwd)
    assert done.returncode == 0, "the same command again finds its run"
    assert "finished already" in done.stdout


def test_block_size_may_differ_if_no_weight_depends_on_it(cwd: Path) -> None:
    done = here("train", *text(), *RUN, FROM, "run.name=long", "model.block_size=32", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert model_of(cwd / "outputs/long")["block_size"] == 32


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["model.n_layer=4"], ["model.n_layer=2", "model.n_layer=4 is asked for"]),
        (["model.mlp=gelu"], ["model.mlp=relu2", "model.mlp=gelu is asked for"]),
        (["model.n_head=6"], ["model.n_head=3", "model.n_head=6 is asked for"]),
        (["model.vocab_size=64"], ["model.vocab_size=64 is asked for"]),
        (["model.head_size=32"], ["model.head_size=16", "model.head_size=32 is asked for"]),
        (["model=small"], ["model.n_layer=2", "model.n_layer=10 is asked for"]),
        (["model=nano"], ["model.n_layer=2", "model.n_layer=4 is asked for"]),
        (["-m", "model.n_layer=2,3"], ["job model.n_layer=3 cannot run, so none was started"]),
    ],
    ids=str,
)
def test_another_typed_shape_is_refused_and_both_are_named(
    typed: list[str], named: list[str], cwd: Path
) -> None:
    assert_refused(here("train", *text(), *RUN, FROM, *typed, cwd=cwd), *named)
    assert not (cwd / "multirun").exists()


def test_plans_and_benchmarks_have_the_shape_too(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = here("plan", "data.vocab_size=50", *CHAR, "data.path=play.txt", FROM, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "48, 3 heads of 16" in done.stdout
    monkeypatch.chdir(cwd)
    model = compose_training(*text(), FROM).model
    assert (model.n_layer, model.n_embed, model.mlp, model.smear) == (2, 48, "relu2", 2)


def test_a_run_that_has_started_no_longer_needs_the_weights(cwd: Path) -> None:
    place = cwd / "outputs"
    shutil.copytree(place / "wide", place / "gone", symlinks=True)
    typed = [*text(), *RUN, "init_from=outputs/gone", "run.name=started"]
    assert here("train", *typed, cwd=cwd).returncode == 0
    (place / "started" / "summary.json").unlink()  # as a run that was killed
    shutil.rmtree(place / "gone")
    done = here("train", *typed, cwd=cwd)
    assert done.returncode == 0, done.stderr


def test_resume_of_a_missing_run_names_the_newest_runs(cwd: Path) -> None:
    for typed, what in (("outputs/typo", "does not exist"), (".", "is not a run folder")):
        done = here("train", f"resume={typed}", cwd=cwd)
        assert_refused(done, f"resume={typed} {what}", "the newest runs are outputs/")
