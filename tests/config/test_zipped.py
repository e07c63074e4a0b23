"""Values that belong together: what pairs with what, and every mistake in one line."""

import itertools
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from llm.config.arguments import for_hydra
from llm.config.grid import choices
from llm.config.questions import list_sweeps, question_of
from llm.config.zipped import axes
from llm.errors import Refused
from tests.command_line import here
from tests.config.test_planner import points

KEYS = ["model.n_layer", "seed", "trainer.batch_size", "trainer.max_steps", "trainer.eval_batches"]


def pairs(*typed: str) -> list[dict[str, str]]:
    """The values of each point that ``run_plan.py -m *typed`` plans."""
    return [point.values for point in points(*for_hydra(["-m", *typed])[1:])]


@given(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 3), min_size=1), st.integers(1, 3))
def test_groups_and_other_keys_form_every_combination(group_of: dict[str, int], count: int) -> None:
    """Keys with the same number advance together; a group of one key is a key of its own."""
    parser = OverridesParser.create()
    values = {key: choices(parser.parse_override(f"{key}=range({count})")) for key in group_of}
    groups = [[key for key in group_of if group_of[key] == number] for number in (1, 2, 3)]
    groups = [group for group in groups if group]
    found = [
        {key: override.value() for step in steps for key, override in step}
        for steps in itertools.product(*axes(values, [g for g in groups if len(g) > 1], []))
    ]
    expected = [
        {key: value for group, value in zip(groups, numbers, strict=True) for key in group}
        for numbers in itertools.product(range(count), repeat=len(groups))
    ]
    assert len(found) == len(expected)
    assert all(one in found for one in expected)


PAIRS = [
    (["model.n_layer=range(1,6,2)", "model.n_embed=choice(32,64,96)"], ["1 32", "3 64", "5 96"]),
    (["model=nano,tiny", "optimizer.lr=0.1,0.2"], ["nano 0.1", "tiny 0.2"]),
    (["model=glob([n*,t*])", "seed=1,2"], ["nano 1", "tiny 2"]),
    (["optimizer=adamw,muon,muon", "optimizer.lr=1,2,3"], ["adamw 1", "muon 2", "muon 3"]),
    (["optimizer.betas=[0.9,0.95],[0.8,0.9]", "seed=1,2"], ["[0.9,0.95] 1", "[0.8,0.9] 2"]),
    (["seed=3,3", "model.n_layer=1,1"], ["3 1", "3 1"]),  # the sweeper runs repeated points once
]


@pytest.mark.parametrize(("typed", "expected"), PAIRS, ids=[" ".join(typed) for typed, _ in PAIRS])
def test_lists_ranges_choices_globs_and_groups_can_be_paired(
    typed: list[str], expected: list[str]
) -> None:
    names = [word.partition("=")[0] for word in typed]
    short = pairs(*typed, f"zip={','.join(names)}")
    assert [" ".join(values[name] for name in names) for values in short] == expected
    assert pairs(*typed, f"hydra.sweeper.zip=[[{','.join(names)}]]") == short


def test_a_typed_group_adds_to_the_groups_of_the_sweep_file() -> None:
    found = pairs("sweep=width_depth", "seed=1,2", "optimizer.lr=0.1,0.2", "zip=seed,optimizer.lr")
    assert len(found) == 5 * 2
    assert {(one["seed"], one["optimizer.lr"]) for one in found} == {("1", "0.1"), ("2", "0.2")}


def test_paired_points_count_once_towards_the_limit() -> None:
    keys = ["seed=range(0,300)", "trainer.max_steps=range(1,301)"]
    with pytest.raises(Refused, match="these are 90,000 combinations"):
        pairs(*keys)
    assert len(pairs(*keys, "zip=seed,trainer.max_steps")) == 300


TWO = "model.n_layer=2,4"
MISTAKES = [
    ([TWO, "seed=1,2,3", "zip=model.n_layer,seed"],
     "model.n_layer has 2 values and seed has 3 values, but zip pairs them: give each key"),
    ([TWO, "seed=1", "zip=model.n_layer,seed"],
     "seed has 1 value, but zip pairs them: give each key the same number of values"),
    ([TWO, "zip=model.n_layer,seed"],
     "zip names seed, which does not vary: give it values, as in seed=A,B"),
    ([TWO, "zip=model.n_layer,model.n_embd"],
     "zip names model.n_embd, which is unknown: there is no such key; did you mean 'model."),
    ([TWO, "seed=1,2", "trainer.max_steps=1,2", "zip=model.n_layer,seed",
      "zip=seed,trainer.max_steps"], "zip names seed twice: a key can be in one group only"),
    ([TWO, "zip=model.n_layer,model.n_layer"], "zip names model.n_layer twice"),
    ([TWO, "zip=model.n_layer"], "zip=model.n_layer must name two keys or more, as in zip=model.n"),
    ([TWO, "zip="], "zip= must name two keys or more"),
    ([TWO, "zip=model.n_layer,"], "zip=model.n_layer, must name two keys or more"),
    ([TWO, "hydra.sweeper.zip=[]"], "hydra.sweeper.zip=[] must be a list of groups of keys"),
    ([TWO, "hydra.sweeper.zip=[model.n_layer,seed]"], "must be a list of groups of keys, as in [["),
    ([TWO, "hydra.sweeper.zip=model.n_layer"], "must be a list of groups of keys, as in [[model."),
    ([TWO, "seed=shuffle(1,2)", "zip=model.n_layer,seed"],
     "seed=shuffle(1,2) would pair other values each time: leave out shuffle"),
    (["sweep=width_depth", TWO],
     "model.n_layer has 2 values and model.n_embed has 5 values, but zip pairs them: a typed list "
     "replaces the sweep file's: type model.n_embed=... too, or hydra.sweeper.zip=null"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_group_that_cannot_advance_together_is_refused(typed: list[str], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        pairs(*typed)
    assert words in str(refusal.value)


def test_zip_belongs_to_a_sweep(tmp_path: Path) -> None:
    done = here("train", TWO, "seed=1,2", "zip=model.n_layer,seed", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    words = "run_train.py: zip=model.n_layer,seed pairs the values of a sweep: add -m\n"
    assert done.stderr == words
    assert not list(tmp_path.iterdir())


# Sweep files.


TEXTS = """# @package _global_
hydra:
  sweeper:
    zip: [[logger.notes, seed]]
    params: {logger.notes: "深,a b", seed: "1,2", model.qk_norm: true, logger.tags: "[甲]"}
"""


def test_a_sweep_file_may_vary_texts_in_any_script_and_state_a_single_value(tmp_path: Path) -> None:
    options = tmp_path / "mine/sweep"
    options.mkdir(parents=True)
    (options / "texts.yaml").write_text(TEXTS, encoding="utf-8")
    found = points(f"hydra.searchpath=[{tmp_path}/mine]", "sweep=texts")
    assert [one.settings.logger.notes for one in found] == ["深", "a b"]
    assert [one.settings.seed for one in found] == [1, 2]
    assert all(one.settings.model.qk_norm for one in found)
    assert all(one.settings.logger.tags == ["甲"] for one in found)


def test_the_question_of_a_sweep_is_a_comment_at_the_top_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, found in (
        ("# @package _global_\n# Depth: does it pay: now?\nx: 1\n", ("Depth", "does it pay: now?")),
        ("# 深度\uff1a越深越好吗\uff1f\n", ("深度", "越深越好吗\uff1f")),
        ("# @package _global_\nx: 1\n# Depth: does it pay?\n", None),
        ("# Depth: it pays.\n", None),
        ("", None),
    ):
        path.write_text(text, encoding="utf-8")
        assert question_of(path) == found


def test_help_lists_sweeps_of_the_users_folder_too(tmp_path: Path) -> None:
    options = tmp_path / "mine/sweep"
    options.mkdir(parents=True)
    (options / "price.yaml").write_text("# Price: is $HOME or ${seed} worth it?\n", "utf-8")
    (options / "unnamed.yaml").write_bytes(b"\xff")
    (options / "folder.yaml").mkdir()
    done = here("train", "--config-dir", "mine", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "price Price: is $HOME or ${seed} worth it?" in lines
    assert "unnamed" in lines
    assert "depth Depth: does depth pay at this width?" in lines
    assert "depth" in list_sweeps()
