"""Runs become points, points are compared, and the document is plain."""

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.report.numbers import Report, analyse, as_plain
from llm.report.record import RunRecord
from tests.report.records import BASE, EVALUATION, run, seeds

A, B, C = {"model.n_layer": 2}, {"model.n_layer": 4}, {"model.n_layer": 8}
SWEEP = seeds([1.70, 1.71, 1.69], **A) + seeds([1.60, 1.61, 1.62], **B)
SWEEP += seeds([1.61, 1.62, 1.60], **C)


def verdicts(report: Report) -> dict[str, str]:
    return {report.points[one.point].label: one.verdict for one in report.comparisons}


def reasons(report: Report) -> dict[str, list[str]]:
    return {
        one.reason: [report.records[number].name for number in one.runs] for one in report.left_out
    }


def test_runs_that_differ_only_in_the_seed_are_one_point() -> None:
    report = analyse(SWEEP)
    assert [point.label for point in report.points] == ["n_layer=2", "n_layer=4", "n_layer=8"]
    first = report.points[0]
    assert (first.runs, first.seeds, first.n) == ([0, 1, 2], [1, 2, 3], 3)
    assert first.mean == pytest.approx(1.7) and first.sd == pytest.approx(0.01)
    assert report.keys == ["model.n_layer"]
    assert report.shared == {key: value for key, value in BASE.items() if key not in A}


def test_each_point_is_compared_with_the_best() -> None:
    report = analyse(SWEEP)
    assert report.best == 1 or report.best == 2
    assert verdicts(report)["n_layer=2"] == "worse"
    assert list(verdicts(report).values()).count("not shown") == 1
    assert report.noise is not None
    assert report.noise.sd == pytest.approx(0.01)
    assert (report.noise.df, report.noise.runs, report.noise.points) == (6, 9, 3)


def test_of_two_points_the_second_is_judged_against_the_first() -> None:
    slow, fast = [1.70, 1.71, 1.69], [1.60, 1.61, 1.62]
    test = scipy.stats.ttest_ind(fast, slow)
    for order, expected in ((1, "better"), (-1, "worse")):
        groups = [seeds(slow, **A), seeds(fast, **B)][::order]
        verdict = analyse([*groups[0], *groups[1]]).verdict
        assert verdict is not None
        assert (verdict.point, verdict.with_, verdict.verdict) == (1, 0, expected)
        assert verdict.p == verdict.p_adjusted == pytest.approx(test.pvalue, rel=1e-9)
        assert verdict.test == "pooled variance, 4 degrees of freedom"
    assert analyse(SWEEP).verdict is None


def test_one_seed_each_shows_nothing_and_quotes_earlier_noise() -> None:
    records = [run(1.7, **A), run(1.6, **B)]
    alone = analyse(records)
    assert alone.noise is None
    assert [one.verdict for one in alone.comparisons] == ["not shown"]
    assert alone.verdict is not None and alone.verdict.p is None and alone.verdict.low is None
    earlier = [("x", 1.5), ("x", 1.52), ("y", 1.4), ("z", 1.3), ("z", 1.32), ("z", float("nan"))]
    report = analyse(records, earlier=lambda: earlier)
    assert report.noise is not None
    assert report.noise.sd == pytest.approx(np.std([1.5, 1.52], ddof=1))
    assert (report.noise.runs, report.noise.points) == (4, 2)
    assert report.comparisons == alone.comparisons


def test_runs_that_did_not_finish_are_counted_and_never_averaged() -> None:
    bad = [
        run(loss, 9, status=status, **A)
        for loss, status in ((9.0, "diverged"), (1.0, "interrupted"), (None, "running"))
    ]
    report = analyse([*SWEEP, *bad])
    assert report.points == analyse(SWEEP).points
    assert report.counts == {"finished": 9, "diverged": 1, "interrupted": 1, "running": 1}
    assert not report.left_out
    assert as_plain(report)["is_running"]


def test_finished_runs_that_cannot_be_compared_are_left_out_with_a_reason() -> None:
    only = run(1.5, 7, **{"trainer.eval_only": True})
    report = analyse([*SWEEP, run(None, 8, **A), run(float("nan"), 9, **A), only])
    assert len(report.points) == 3
    assert reasons(report) == {
        "without a validation loss": ["model.n_layer-2_seed-8", "model.n_layer-2_seed-9"],
        "evaluated only, not trained (trainer.eval_only=true)": [only.name],
    }


def test_of_two_runs_with_the_same_seed_the_last_one_counts() -> None:
    report = analyse([run(1.9, 1, **A), *SWEEP])
    assert report.points == [
        replace(point, runs=[number + 1 for number in point.runs])
        for point in analyse(SWEEP).points
    ]
    (left_out,) = report.left_out
    assert left_out.runs == [0] and "same settings and seed" in left_out.reason


def test_the_last_evaluation_can_be_the_measure() -> None:
    records = [replace(record, val_loss=2.0 + record.seed / 10) for record in SWEEP if record.seed]
    report = analyse(records, metric="last")
    assert report.measure.key == "val_loss"
    assert report.points[0].mean == pytest.approx(2.2)


def test_a_job_that_waits_does_not_make_every_setting_a_change() -> None:
    waiting = RunRecord("outputs/later", "later", status="waiting")
    records = [*seeds([1.7], **{"model.n_layer": 2}), *seeds([1.6]), waiting]
    runs = as_plain(analyse(records))["runs"]
    changes = [{"model.n_layer": 2}, {"model.n_layer": 4}, {}]
    assert [one["changes"] for one in runs] == changes


def evaluated(record: RunRecord, **changes: Any) -> RunRecord:
    return replace(record, evaluation=EVALUATION | changes)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data_digest": "other"}, "different vocabularies"),
        ({"evaluation": EVALUATION | {"block_size": 32}}, "different block sizes"),
        ({"evaluation": EVALUATION | {"windows": 20}}, "different numbers of windows"),
    ],
)
def test_losses_that_do_not_compare_become_bits_per_byte(
    change: dict[str, Any], words: str
) -> None:
    other = [replace(record, **change) for record in seeds([1.6, 1.61], **B)]
    report = analyse([*seeds([1.7, 1.71], **A), *other])
    assert report.measure.key == "bits_per_byte"
    assert words in (report.measure.why or "")
    assert report.points[0].mean == pytest.approx(1.705 / np.log(2))


def test_a_run_without_bits_per_byte_is_left_out_if_they_are_needed() -> None:
    other = replace(run(1.6, 1, **B), data_digest="other", bits_per_byte=None)
    report = analyse([*seeds([1.7, 1.71], **A), other])
    assert len(report.points) == 1
    assert "without bits per byte" in report.left_out[0].reason


def test_a_run_on_another_text_is_left_out() -> None:
    other = evaluated(replace(run(1.0, 1, **C), data_digest="other"), text="another")
    report = analyse([other, *seeds([1.7, 1.71], **A)])
    assert reasons(report) == {"evaluated on another text than the others": [other.name]}
    assert report.measure.key == "best_val_loss"


def test_runs_of_an_earlier_version_are_compared_by_their_settings() -> None:
    old = [replace(record, evaluation={}) for record in SWEEP]
    assert analyse(old).points == analyse(SWEEP).points
    mixed = old[:3] + SWEEP[3:]
    assert analyse(mixed).measure.key == "best_val_loss"
    fewer = [replace(run(1.7, 1, **{"trainer.eval_batches": 2}), evaluation={}), *old]
    assert "different numbers of batches" in (analyse(fewer).measure.why or "")
    moved = [replace(run(1.7, 1, **{"data.name": "novel"}), evaluation={}), *old]
    moved[0] = replace(moved[0], data_digest="novel")
    assert list(reasons(analyse(moved))) == ["evaluated on another text than the others"]


def test_a_job_that_was_trained_longer_is_left_out_of_its_sweep() -> None:
    jobs = [replace(record, sweep="multirun/a", values={"model.n_layer": "2"}) for record in SWEEP]
    longer = replace(jobs[0], settings=jobs[0].settings | {"trainer.max_steps": 200}, point="x")
    report = analyse([longer, *jobs[1:]])
    assert list(reasons(report)) == ["trained longer than the other jobs of its sweep (resume=)"]
    swept = [
        replace(run(1.6, 1, **{"trainer.max_steps": steps}), sweep="multirun/b",
                values={"trainer.max_steps": str(steps)})
        for steps in (100, 200, 200)
    ]  # fmt: skip
    assert not {"trained longer"} & {reason[:14] for reason in reasons(analyse(swept))}


def test_settings_that_follow_from_others_are_no_keys() -> None:
    wide = {"model.n_embed": 256, "model.n_head": 8}
    narrow = {"model.n_embed": 128, "model.n_head": 4}
    report = analyse([run(1.7, **narrow), run(1.6, **wide)])
    assert report.keys == ["model.n_embed"]
    heads = analyse([run(1.7, **{"model.n_head": 4}), run(1.6, **{"model.n_head": 8})])
    assert heads.keys == ["model.n_head"]


def test_the_keys_of_a_sweep_are_enough() -> None:
    records = [
        replace(run(1.6, **{"optimizer.name": name, "optimizer.weight_decay": decay}),
                values={"optimizer": name, "seed": "1"})
        for name, decay in (("adamw", 0.1), ("muon", 0.0))
    ]  # fmt: skip
    report = analyse(records)
    assert report.keys == ["optimizer"]
    assert [point.label for point in report.points] == ["optimizer=adamw", "optimizer=muon"]


def test_the_point_of_the_default_is_found() -> None:
    assert analyse(SWEEP, default={"model.n_layer": "4.0", "seed": "1337"}).default == 1
    assert analyse(SWEEP, default={"model.n_layer": "3"}).default is None
    assert analyse(SWEEP, default={}).default is None


def test_a_point_is_on_a_front_if_none_is_cheaper_and_better() -> None:
    points = [(1.7, 100), (1.6, 200), (1.65, 300), (1.6, 400), (1.5, 500)]
    records = [
        replace(run(loss, **{"model.n_embed": size}), parameters=size) for loss, size in points
    ]
    fronts = ["parameters" in point.front for point in analyse(records).points]
    assert fronts == [True, True, False, False, True]


def test_a_report_without_any_run_is_empty() -> None:
    for records in ([], [run(None, status="failed")]):
        document = as_plain(analyse(records))
        assert document["points"] == document["comparisons"] == []
        assert document["answer"]["best"] is None


losses = st.floats(1, 3).map(lambda loss: round(loss, 4))
groups = st.lists(st.lists(losses, min_size=1, max_size=4), min_size=1, max_size=5)


def records_of(groups: list[list[float]], shift: float = 0.0) -> list[RunRecord]:
    return [
        record
        for number, group in enumerate(groups)
        for record in seeds([loss + shift for loss in group], **{"model.n_layer": number})
    ]


@given(groups, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_runs_changes_no_verdict(
    groups: list[list[float]], randomness: int
) -> None:
    records = records_of(groups)
    means = sorted(np.mean(group) for group in groups)
    if len(means) > 1 and means[1] - means[0] < 1e-9:
        return  # the first of two equal points is the best
    before = analyse(records)
    random.Random(randomness).shuffle(records)
    assert verdicts(analyse(records)) == verdicts(before)


@given(groups)
@settings(max_examples=60, deadline=None)
def test_a_constant_added_to_all_losses_changes_no_verdict(groups: list[list[float]]) -> None:
    before = analyse(records_of(groups))
    after = analyse(records_of(groups, shift=2.0))
    if any(abs((one.p_adjusted or 0) - 0.05) < 1e-6 for one in before.comparisons):
        return
    same = before.best == after.best
    assert not same or verdicts(after) == verdicts(before)


@given(groups)
@settings(max_examples=60, deadline=None)
def test_the_document_is_plain_json_and_its_labels_are_unique(groups: list[list[float]]) -> None:
    document = as_plain(analyse(records_of(groups)))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    labels = [point["label"] for point in document["points"]]
    assert len(set(labels)) == len(labels)
    for number, one in enumerate(document["runs"]):
        assert number in document["points"][one["point"]]["runs"]


def test_labels_are_unique_where_only_the_data_differs() -> None:
    one, two = run(1.6), replace(run(1.7), point="other", data_digest="other")
    labels = [point.label for point in analyse([one, two]).points]
    assert len(set(labels)) == 2


@pytest.mark.parametrize("points, n", [(2500, 4), (10_000, 1)])
def test_ten_thousand_runs_are_analysed(points: int, n: int) -> None:
    groups = np.random.default_rng(0).normal(1.6, 0.01, (points, n)).tolist()
    report = analyse(records_of(groups))
    assert len(report.points) == points == len(report.comparisons) + 1


def test_a_setting_that_the_sweep_does_not_vary_is_named_where_a_run_beside_it_differs() -> None:
    jobs = [
        replace(
            run(2.7 - depth / 10, 1, **{"model.n_layer": depth}),
            sweep="multirun/a", values={"model.n_layer": str(depth)},
        )
        for depth in (1, 2)
    ]  # fmt: skip
    assert analyse(jobs).keys == ["model.n_layer"]
    longer = run(1.6, 1, **{"model.n_layer": 8, "trainer.max_steps": 1000})
    report = analyse([*jobs, longer])
    assert report.keys == ["model.n_layer", "trainer.max_steps"]
    assert report.points[2].label == "n_layer=8 max_steps=1000"
