"""A path after ckpt= means a checkpoint or the best one of a run; any other is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.checkpoint.find import find_checkpoint, named, warning_of, without_link
from llm.errors import Refused

KINDS = {"best": "best-00000002", "last": "step-00000004"}


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a run folder with checkpoints of the given kinds, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def inner(name: str, *kinds: str) -> Path:
        checkpoints = Path(name) / "checkpoints"
        for kind in kinds:
            (checkpoints / KINDS[kind]).mkdir(parents=True)
            (checkpoints / KINDS[kind] / "checkpoint.json").touch()
            (checkpoints / kind).symlink_to(KINDS[kind])
        return Path(name)

    return inner


@pytest.mark.parametrize("below", ["", "checkpoints"])
def test_a_run_means_its_best_checkpoint_else_its_last(
    make_run: Callable[..., Path], below: str
) -> None:
    run = make_run("outputs/a", "last", "best")
    assert find_checkpoint("ckpt", str(run / below)) == run / "checkpoints" / "best"
    (run / "checkpoints" / "best" / "checkpoint.json").unlink()
    assert find_checkpoint("ckpt", str(run / below)) == run / "checkpoints" / "last"


@pytest.mark.parametrize("name", [*KINDS, *KINDS.values()])
def test_a_checkpoint_means_itself(make_run: Callable[..., Path], name: str) -> None:
    path = make_run("outputs/a", "last", "best") / "checkpoints" / name
    assert find_checkpoint("ckpt", str(path)) == path
    assert find_checkpoint("ckpt", str(path.absolute())) == path.absolute()


@pytest.mark.parametrize("typed", ["mine", "kept/absolute", "kept/relative"])
def test_a_link_of_the_user_is_followed_to_the_checkpoint_that_exists(
    make_run: Callable[..., Path], typed: str
) -> None:
    run = make_run("outputs/a", "last", "best")
    Path("kept").mkdir()
    Path("mine").symlink_to(run / "checkpoints" / "best")
    Path("kept/absolute").symlink_to((run / "checkpoints" / KINDS["best"]).absolute())
    Path("kept/relative").symlink_to("../mine")
    real = without_link(find_checkpoint("ckpt", typed))
    assert real.samefile(run / "checkpoints" / "best") and real.name == KINDS["best"]
    assert named(Path(typed)) == f"{KINDS['best']} of {real.parent.parent}"
    assert Path(named(Path(typed)).partition(" of ")[2]).samefile(run)
    untrained = run / "checkpoints" / "best-00000000"
    (run / "checkpoints" / KINDS["best"]).rename(untrained)
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to(untrained.name)
    if typed != "kept/absolute":
        assert "these weights are from before training" in (warning_of(Path(typed)) or "")


@pytest.mark.parametrize(
    "typed", ["outputs/typo", "x" * 5000, "a\0b"], ids=["typo", "too long", "null byte"]
)
def test_a_path_that_does_not_exist_is_refused_by_its_key(
    make_run: Callable[..., Path], typed: str
) -> None:
    with pytest.raises(Refused) as refusal:
        find_checkpoint("init_from", typed)
    assert str(refusal.value).startswith(f"init_from={typed} does not exist: train one with ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("outputs/mnie", "outputs/mine"), ("mine", "outputs/mine"), ("smolm2", "smollm2"),
        ("2026-01-02/03-04-50", "outputs/2026-01-02/03-04-05"),
    ],
)  # fmt: skip
def test_a_misspelled_place_is_answered_with_the_one_that_is_meant(
    make_run: Callable[..., Path], typed: str, meant: str
) -> None:
    for name in ("mine", "a", "b", "c", "2026-01-02/03-04-05"):
        run = make_run(f"outputs/{name}", "last")
        os.utime(run / "checkpoints", (10**9 + len(name), 10**9 + len(name)))
    os.utime("outputs/mine/checkpoints", (10**8, 10**8))  # not one of the newest
    with pytest.raises(Refused) as refusal:
        find_checkpoint("ckpt", typed, others=["config.json"])
    assert str(refusal.value) == f"ckpt={typed} does not exist; did you mean '{meant}'?"
    assert refusal.value.suggestions[0] == f"ckpt={meant}"
    with pytest.raises(Refused, match="the newest runs are"):
        find_checkpoint("run.name", "smolm2")  # only a run has a name of this kind


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
