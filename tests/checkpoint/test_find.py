"""What a user types after ckpt= is understood, or refused with what there is instead."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.checkpoint.find import find_checkpoint
from llm.checkpoint.folder import CheckpointFolder
from llm.data.dataset import Dataset
from llm.errors import Refused
from llm.model.gpt import GPT


@pytest.fixture
def make_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: GPT, dataset: Dataset
) -> Callable[..., Path]:
    """A run folder below a fresh working directory, with checkpoints of the given kinds."""
    monkeypatch.chdir(tmp_path)

    def inner(name: str, *kinds: str) -> Path:
        run = Path(name)
        run.mkdir(parents=True)
        folder = CheckpointFolder(run, 2, tiny_model.config, dataset.tokenizer, {})
        if "last" in kinds:
            folder.save(4, tiny_model.state_dict(), {}, {})
        if "best" in kinds:
            folder.save_best(2, tiny_model.state_dict(), {})
        return run

    return inner


@pytest.mark.parametrize("below", ["", "checkpoints"])
def test_a_run_means_its_best_checkpoint(make_run: Callable[..., Path], below: str) -> None:
    run = make_run("outputs/a", "last", "best")
    assert find_checkpoint("ckpt", str(run / below)) == run / "checkpoints" / "best"


@pytest.mark.parametrize("below", ["", "checkpoints"])
def test_a_run_without_a_best_checkpoint_means_its_last(
    make_run: Callable[..., Path], below: str
) -> None:
    run = make_run("outputs/a", "last")
    assert find_checkpoint("ckpt", str(run / below)) == run / "checkpoints" / "last"


def test_a_best_that_leads_nowhere_is_passed_over(make_run: Callable[..., Path]) -> None:
    run = make_run("outputs/a", "last")
    (run / "checkpoints" / "best").symlink_to("best-00000009")
    assert find_checkpoint("ckpt", str(run)).name == "last"


@pytest.mark.parametrize("name", ["last", "best", "step-00000004", "best-00000002"])
def test_a_checkpoint_means_itself(make_run: Callable[..., Path], name: str) -> None:
    path = make_run("outputs/a", "last", "best") / "checkpoints" / name
    assert find_checkpoint("ckpt", str(path)) == path
    assert find_checkpoint("ckpt", str(path.absolute())) == path.absolute()


@pytest.mark.parametrize(
    "typed", ["outputs/typo", "x" * 5000, "a\0b"], ids=["typo", "too long", "null byte"]
)
def test_a_path_that_does_not_exist_is_refused_by_its_key(
    make_run: Callable[..., Path], typed: str
) -> None:
    with pytest.raises(Refused) as refusal:
        find_checkpoint("init_from", typed)
    assert str(refusal.value).startswith(f"init_from={typed} does not exist: train one with ")


@pytest.mark.parametrize("typed", ["outputs", "outputs/a/config.yaml"])
def test_a_path_without_a_checkpoint_is_refused(make_run: Callable[..., Path], typed: str) -> None:
    run = make_run("outputs/a", "last")
    (run / "config.yaml").touch()
    with pytest.raises(Refused, match=f"ckpt={typed} holds no checkpoint: the newest runs are"):
        find_checkpoint("ckpt", typed)


def test_a_refusal_names_the_three_newest_runs_first(make_run: Callable[..., Path]) -> None:
    for age, name in enumerate(["a", "2026-01-02/03-04-05", "b", "oldest"]):
        run = make_run(f"outputs/{name}", "last")
        os.utime(run / "checkpoints", (10**9 - age, 10**9 - age))
    listed = "outputs/a, outputs/2026-01-02/03-04-05, outputs/b"
    with pytest.raises(Refused, match=f"the newest runs are {listed}$"):
        find_checkpoint("ckpt", "typo")
