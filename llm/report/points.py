"""Runs that differ in nothing but the seed are one point of a comparison."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm.experiment.sweep_table import labels
from llm.report.measure import Measure
from llm.report.record import RunRecord
from llm.sealed import Plain

SEED = "seed"
# Settings that follow from others; they are listed only where nothing else tells two points apart.
DERIVED = (
    "trainer.micro_batch_size", "schedule.warmup_steps", "model.n_kv_head", "model.n_head",
    "model.head_size", "model.default_head_size", "model.intermediate_size", "data.vocab_size",
    "model.vocab_size",
)  # fmt: skip
AXES = ("parameters", "peak_memory_bytes", "train_seconds")  # costs of a lower loss


@dataclass
class Point:
    """Runs with the same settings. Means are over its runs; None: unknown."""

    index: int
    label: str
    values: dict[str, str]
    runs: list[int]
    seeds: list[int | None]
    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    last_mean: float | None = None
    last_sd: float | None = None
    bits_per_byte: float | None = None
    parameters: float | None = None
    peak_memory_bytes: float | None = None
    train_seconds: float | None = None
    tokens_per_second: float | None = None
    test_mean: float | None = None
    test_sd: float | None = None
    test_n: int = 0
    scores: dict[str, float] = field(default_factory=dict)  # means of the runs that have each
    front: list[str] = field(default_factory=list)


def make_points(
    records: Sequence[RunRecord], kept: Sequence[int], measure: Measure
) -> tuple[list[str], list[Point]]:
    """The keys in which the points differ, and the points in the order of their first runs."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number in kept:
        record = records[number]
        groups[record.point or record.folder].append(number)
    firsts = [records[numbers[0]] for numbers in groups.values()]
    keys = differing_keys(firsts)
    values = [values_of(record, keys) for record in firsts]
    names = unique(labels(values) if keys else [_name(record) for record in firsts])
    made = zip(groups.values(), names, values, strict=True)
    return keys, [
        _point(index, name, texts, numbers, records, measure)
        for index, (numbers, name, texts) in enumerate(made)
    ]


def _name(record: RunRecord) -> str:
    """The name of a point that is not compared with another: what its sweep sets, or its folder."""
    swept = {key: value for key, value in record.values.items() if key != SEED}
    return labels([swept])[0] if swept else record.name


def _point(
    index: int, label: str, values: dict[str, str], runs: list[int],
    records: Sequence[RunRecord], measure: Measure,
) -> Point:  # fmt: skip
    mine = [records[number] for number in runs]
    measured = [value for record in mine if (value := measure.of(record)) is not None]

    def mean(read: Callable[[RunRecord], Any]) -> float | None:
        return _mean(_known(map(read, mine)))

    last = _known(record.val_loss for record in mine)
    test = _known(record.test.get("loss") for record in mine)
    names = dict.fromkeys(name for record in mine for name in record.scores)
    scores = {
        name: statistics.fmean(_known(record.scores.get(name) for record in mine)) for name in names
    }
    return Point(
        index, label, values, runs, [record.seed for record in mine], len(mine),
        mean=statistics.fmean(measured),
        sd=_sd(measured),
        last_mean=_mean(last),
        last_sd=_sd(last),
        bits_per_byte=mean(lambda record: record.bits_per_byte),
        parameters=mean(lambda record: record.parameters),
        peak_memory_bytes=mean(lambda record: record.peak_memory_bytes),
        train_seconds=mean(lambda record: record.train_seconds),
        tokens_per_second=mean(lambda record: record.tokens_per_second),
        scores=scores,
        test_mean=_mean(test),
        test_sd=_sd(test),
        test_n=len(test),
    )  # fmt: skip


def _known(values: Iterable[Any]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def differing_keys(records: Sequence[RunRecord]) -> list[str]:
    """Keys in which runs differ, except the seed: those of their sweep first.

    The keys of a sweep suffice where they tell all of its jobs apart. Runs from other places may
    also differ in settings that no sweep varies, such as the number of steps.
    """
    swept = [key for key in _keys(record.values for record in records) if key != SEED]
    swept = [key for key in swept if _differs(records, key)]
    is_one_sweep = len({record.sweep for record in records}) == 1
    if is_one_sweep and len(_rows(records, swept)) == len(records):
        return swept
    all_keys = _keys(record.settings for record in records)
    keys = list(dict.fromkeys(swept + [key for key in all_keys if _differs(records, key)]))
    for key in [*DERIVED, *_set_by_options(keys)]:
        fewer = [one for one in keys if one != key]
        if key in keys and key not in swept and _tells_as_much(records, fewer, keys):
            keys = fewer
    return keys


def _set_by_options(keys: Sequence[str]) -> list[str]:
    """Keys beside the name of an option: ``schedule=cosine`` sets ``schedule.min_lr_ratio``."""
    groups = {key.removesuffix(".name") for key in keys if key.endswith(".name")}
    return [key for key in keys if key.rpartition(".")[0] in groups and not key.endswith(".name")]


def _tells_as_much(records: Sequence[RunRecord], fewer: list[str], keys: list[str]) -> bool:
    return len(_rows(records, fewer)) == len(_rows(records, keys))


def _keys(mappings: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _differs(records: Sequence[RunRecord], key: str) -> bool:
    """Whether a key has several values. Most settings are shared, so no text is made of them."""
    if all(key in record.settings for record in records):
        return any(record.settings[key] != records[0].settings[key] for record in records)
    return len(_rows(records, [key])) > 1


def _rows(records: Sequence[RunRecord], keys: Sequence[str]) -> set[tuple[str | None, ...]]:
    return {tuple(value_of(record, key) for key in keys) for record in records}


def value_of(record: RunRecord, key: str) -> str | None:
    """A setting as text, or else a value of the run's sweep; None if it has neither."""
    if key in record.settings:
        return as_text(record.settings[key])
    return record.values.get(key)


def values_of(record: RunRecord, keys: Sequence[str]) -> dict[str, str]:
    """The values of ``keys``, without those that the run does not have."""
    values = ((key, value_of(record, key)) for key in keys)
    return {key: value for key, value in values if value is not None}


def as_text(value: Any) -> str:
    """A value as it is typed: ``0.01``, ``true``, ``null``, ``[0.8,0.95]``."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def number_of(text: str | None) -> float | None:
    """The number that a text stands for; None if it is a word."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def same_value(one: str | None, other: str | None) -> bool:
    """Whether two texts are the same value: ``1e-3`` is ``0.001``."""
    if one == other:
        return True
    a, b = number_of(one), number_of(other)
    return a is not None and a == b


def unique(names: Sequence[str]) -> list[str]:
    """``names``, with `` (2)`` after the second of two equal ones."""
    taken, made, seen = set(names), [], Counter[str]()
    for name in names:
        seen[name] += 1
        label, number = name, seen[name]
        while number > 1 and (label := f"{name} ({number})") in taken:
            number += 1
        taken.add(label)
        made.append(label)
    return made


def shared_settings(records: Sequence[RunRecord]) -> Plain:
    """The settings that all records have in common."""
    if not records:
        return {}
    common = dict(records[0].settings)
    for record in records[1:]:
        for key in [key for key in common if not _has(record, key, common[key])]:
            del common[key]
    return common


def _has(record: RunRecord, key: str, value: Any) -> bool:
    return key in record.settings and record.settings[key] == value


def mark_fronts(points: Sequence[Point]) -> None:
    """Note in each point the axes for which no other point is better at the same cost or less."""
    for axis in AXES:
        known = [(cost, point) for point in points if (cost := getattr(point, axis)) is not None]
        lowest = float("inf")
        for _, point in sorted(known, key=lambda pair: (pair[0], pair[1].mean)):
            if point.mean < lowest:
                lowest = point.mean
                point.front.append(axis)
