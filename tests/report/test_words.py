"""The sentences of a report say what was shown, what was not, and what to do next."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llm.report.numbers import analyse
from llm.report.words import longer, sentences
from tests.report.records import run, seeds

A, B, C = {"model.n_layer": 2}, {"model.n_layer": 4}, {"model.n_layer": 8}
TWO = seeds([1.70, 1.71, 1.69], **A) + seeds([1.60, 1.61, 1.62], **B)
SWEEP = TWO + seeds([1.608, 1.62, 1.60], **C)
NOISE = "Runs that differ only in the seed have a standard deviation of 0.0100"


def said(records: Any, **options: Any) -> list[str]:
    return sentences(analyse(records, **options))


def test_a_sweep_of_three_points() -> None:
    records = [
        replace(record, parameters=1000 * record.settings["model.n_layer"]) for record in SWEEP
    ]
    assert said(records, default={"model.n_layer": "2"}) == [
        "The best settings are n_layer=8: best validation loss 1.6093 nats per token (mean of 3 "
        "seeds, 95 % interval 1.5952 to 1.6235).",
        "The default, n_layer=2, is 0.0907 worse (95 % interval 0.0638 to 0.1176, p < 0.0001): "
        "the gain is shown.",
        "1 of the 2 other points is shown to be worse. Not shown: n_layer=4.",
        "n_layer=4 is not shown to be worse and needs 50 % of the parameters.",
        "More than 100 more seeds per point would be needed to show this difference.",
        f"{NOISE} (3 points, 9 runs).",
    ]


def test_two_points() -> None:
    assert said(TWO)[1] == (
        "n_layer=2 is shown to be worse, by 0.0900 (95 % interval 0.0673 to 0.1127, p = 0.00039)."
    )
    unclear = said(SWEEP[3:], default=C | {"model.n_layer": "8"})
    assert unclear[1] == "These are the default settings."
    assert unclear[2] == (
        "n_layer=4 is not shown to be worse: it is 0.0007 above, which may be noise "
        "(95 % interval -0.0221 to 0.0234, p = 0.94)."
    )


def test_the_default_as_the_only_other_point_is_named_once() -> None:
    for records, default in ((TWO, "2"), (SWEEP[3:], "4")):
        answer = said(records, default={"model.n_layer": default})
        assert sum("worse" in sentence for sentence in answer) == 1


def test_one_seed_each_says_what_to_type_and_quotes_earlier_noise() -> None:
    earlier = [("a", 1.0), ("a", 1.02), ("b", 1.3), ("b", 1.31)]
    assert said([TWO[0], TWO[3]], earlier=lambda: earlier)[1:] == [
        "Every point has one seed, so no difference can be shown. Type seed=1,2,3 to train each "
        "point with three seeds.",
        "Runs that differ only in the seed have a standard deviation of 0.0112 (2 groups, 4 "
        "earlier runs), so a difference below 0.0680 may be noise.",
    ]


def test_a_gain_over_the_default_may_be_noise() -> None:
    records = seeds([1.61, 1.62, 1.60], **A) + seeds([1.60, 1.61, 1.59], **B)
    assert said(records, default={"model.n_layer": "2"})[1].endswith(
        ": the gain is not shown, it may be noise."
    )


def test_one_point_of_a_sweep_is_named_by_what_the_sweep_sets() -> None:
    records = [replace(one, values={"model.n_layer": "2", "seed": "1"}) for one in TWO[:2]]
    assert [point.label for point in analyse(records).points] == ["n_layer=2"]
    alone = replace(TWO[0], values={"seed": "1"}, name="seed-1")
    assert [point.label for point in analyse([alone]).points] == ["seed-1"]
    assert said([alone])[0].startswith("Only one run can be compared: best validation loss ")


def test_an_option_is_named_by_its_group_without_the_other_keys_that_it_sets() -> None:
    wsd = {"schedule.name": "wsd", "schedule.min_lr_ratio": 0.0}
    cosine = {"schedule.name": "cosine", "schedule.min_lr_ratio": 0.1}
    records = seeds([1.7], **wsd) + seeds([1.6], **cosine)
    labels = [point.label for point in analyse(records).points]
    assert labels == ["schedule=wsd", "schedule=cosine"]
    more = records + seeds([1.5], **cosine | {"schedule.min_lr_ratio": 0.2})
    assert [point.label for point in analyse(more).points] == [
        "schedule=wsd min_lr_ratio=0.0",
        "schedule=cosine min_lr_ratio=0.1",
        "schedule=cosine min_lr_ratio=0.2",
    ]


def test_how_many_more_seeds_would_show_a_difference() -> None:
    losses = [1.6, 1.61, 1.612, 1.611]
    records = [
        record
        for number, loss in enumerate(losses)
        for record in seeds([loss - 0.01, loss, loss + 0.01], **{"model.n_layer": number})
    ]
    (sentence,) = (one for one in said(records) if "more seed" in one)
    assert sentence.startswith("About ") and sentence.endswith(
        "per point would show the difference to n_layer=2 (0.0120) with 80 % power, if it is real."
    )


def test_only_a_few_of_many_points_are_named() -> None:
    draws = np.random.default_rng(3).normal(1.6, 0.01, (9, 3)).tolist()
    records = [
        record
        for number, losses in enumerate(draws)
        for record in seeds(losses, **{"model.n_layer": number})
    ]
    sentence = said(records)[1]
    assert sentence.startswith("None of the 8 other points is shown to be worse. Not shown: ")
    assert sentence.endswith("; and 5 more.")


def test_runs_that_are_missing_are_counted() -> None:
    bad = [run(None, 9, status="out_of_memory"), run(None, 8, status="diverged"), run(None, 7)]
    assert said([*SWEEP, *bad])[-2:] == [
        "2 runs have not finished and are not averaged: 1 out of memory, 1 diverged.",
        "Left out, 1 finished run: without a validation loss.",
    ]


def test_while_runs_are_missing_the_best_is_the_best_so_far() -> None:
    report = analyse([*SWEEP, run(None, 9, status="running")])
    assert sentences(report)[0].startswith("So far the best settings are n_layer=8: ")
    assert sentences(report)[-1] == "1 run has not finished and is not averaged: 1 running."
    assert longer(report) is None


def test_nothing_to_compare() -> None:
    assert said([]) == ["No finished run can be compared."]
    assert said([run(1.6)]) == [
        "Only one run can be compared: best validation loss 1.6000 nats per token (one seed)."
    ]
    assert said(TWO[:3])[0].startswith("All 3 compared runs have the same settings: best val")


def test_bits_per_byte_are_explained() -> None:
    other = [replace(record, data_digest="other") for record in TWO[:3]]
    answer = said([*other, *TWO[3:]])
    assert answer[0].startswith(
        "The best settings are n_layer=4: best validation bits per byte 2.3227 (mean of 3 seeds"
    )
    assert (
        "The points are compared by bits per byte, because the runs have different vocabularies."
        in answer
    )


@pytest.mark.parametrize("best, hint", [(0.01, "lower"), (0.02, None), (0.04, "higher")])
def test_a_best_rate_at_the_end_of_the_range_is_pointed_out(best: float, hint: str | None) -> None:
    records = [
        record
        for rate in (0.01, 0.02, 0.04)
        for record in seeds([1.7 - 0.1 * (rate == best)] * 2, **{"optimizer.lr": rate})
    ]
    found = [one for one in said(records) if "end of the range" in one]
    expected = [f"The best rate, {best:g}, is at the end of the range: try a {hint} one."]
    assert found == (expected if hint else [])
    deeper = seeds([1.0, 1.0], **{"optimizer.lr": 0.001, "model.n_layer": 8})
    assert not any("end of the range" in one for one in said([*records, *deeper]))


def test_the_test_text_is_quoted() -> None:
    tested = [replace(record, test={"loss": 1.65}) for record in TWO]
    sentence = "On the test text the best settings have a loss of 1.6500 (3 runs)"
    assert f"{sentence}." in said(tested)
    with_default = said(tested, default={"model.n_layer": "2"})
    assert f"{sentence}, and the default has 1.6500 (3 runs)." in with_default


def test_the_best_run_of_the_best_point_is_trained_longer() -> None:
    command = longer(analyse(TWO))
    assert command is not None
    assert command.endswith("resume=outputs/model.n_layer-4_seed-1 trainer.max_steps=200")
    minutes = {"trainer.max_steps": None, "trainer.max_minutes": 2.5}
    assert (longer(analyse([run(1.6, **minutes)])) or "").endswith("trainer.max_minutes=5")
    assert longer(analyse([run(1.6, **{"trainer.max_steps": None})])) is None
    assert longer(analyse([])) is None
