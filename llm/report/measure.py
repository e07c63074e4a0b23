"""Which runs can be compared, and by which number."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from llm.report.record import RunRecord

BEST, LAST = "best", "last"  # evaluations: the lowest loss, or the final one
PROTOCOL = {
    "block_size": "block sizes", "stride": "strides of the windows",
    "windows": "numbers of windows", "tokens": "numbers of tokens",
}  # fmt: skip
SETTINGS = {"model.block_size": "block sizes", "trainer.eval_batches": "numbers of batches"}
TEXT = (  # settings that choose the text; an older run may lack one, as if it were 0
    "data.name", "data.corpus", "data.val_fraction", "data.test_fraction",
)  # fmt: skip
LENGTH = ("trainer.max_steps", "trainer.max_minutes")
LONGEST_LIST = 4  # values in a sentence


@dataclass(frozen=True)
class Measure:
    """The number by which points are compared. ``why``: the reason why it is not the loss."""

    key: str
    name: str
    unit: str
    why: str | None = None

    def of(self, record: RunRecord) -> float | None:
        """The number of one run; None if it is unknown or not finite."""
        value = getattr(record, self.key)
        return value if value is not None and math.isfinite(value) else None


LOSSES = {
    BEST: Measure("best_val_loss", "best validation loss", "nats per token"),
    LAST: Measure("val_loss", "last validation loss", "nats per token"),
}
BITS = {
    BEST: ("bits_per_byte", "best validation bits per byte"),
    LAST: ("last_bits_per_byte", "last validation bits per byte"),
}


@dataclass(frozen=True)
class LeftOut:
    """Indices of finished runs that are not compared, and why."""

    runs: list[int]
    reason: str


def comparable(
    records: Sequence[RunRecord], metric: str = BEST
) -> tuple[Measure, list[int], list[LeftOut]]:
    """The measure, the indices of the runs that it compares, and the finished runs left out."""
    reasons: dict[int, str] = {}
    kept = [number for number, record in enumerate(records) if record.is_finished]

    def leave_out(why: Callable[[int], str | None]) -> None:
        nonlocal kept
        reasons.update({number: reason for number in kept if (reason := why(number))})
        kept = [number for number in kept if number not in reasons]

    loss = LOSSES[metric]
    leave_out(lambda number: _without_loss(records[number], loss))
    longer = _trained_longer([(number, records[number]) for number in kept])
    leave_out(longer.get)
    repeated = _repeated([(number, records[number]) for number in kept])
    leave_out(repeated.get)
    texts = _texts([records[number] for number in kept])
    text_of = dict(zip(kept, texts, strict=True))
    if texts:
        # Of equally frequent texts the first listed wins.
        main = Counter(texts).most_common(1)[0][0]
        leave_out(
            lambda number: None if text_of[number] == main
            else "evaluated on another text than the others"
        )  # fmt: skip
    measure = loss
    if why := _difference([records[number] for number in kept]):
        key, name = BITS[metric]
        measure = Measure(key, name, "bits per byte", why)
        leave_out(
            lambda number: None if measure.of(records[number]) is not None
            else f"without bits per byte, and its loss does not compare because {why}"
        )  # fmt: skip
    return measure, kept, _grouped(reasons)


def _without_loss(record: RunRecord, loss: Measure) -> str | None:
    if record.settings.get("trainer.eval_only"):
        return "evaluated only, not trained (trainer.eval_only=true)"
    return "without a validation loss" if loss.of(record) is None else None


def _trained_longer(runs: Sequence[tuple[int, RunRecord]]) -> dict[int, str]:
    """Jobs of a sweep that ``resume=`` has trained longer than the other jobs."""
    sweeps: dict[str, list[tuple[int, RunRecord]]] = defaultdict(list)
    for number, record in runs:
        # A key without a dot is an option of a group, which may set any key.
        free = any(
            key.startswith("trainer.") or ("." not in key and key != "seed")
            for key in record.values
        )
        if record.sweep is not None and not free:
            sweeps[record.sweep].append((number, record))
    found = {}
    for jobs in sweeps.values():
        for key in LENGTH:
            lengths = {number: record.settings.get(key) for number, record in jobs}
            known = [value for value in lengths.values() if isinstance(value, int | float)]
            usual = Counter(known).most_common(1)[0][0] if known else math.inf
            for number, value in lengths.items():
                if isinstance(value, int | float) and value > usual:
                    found[number] = "trained longer than the other jobs of its sweep (resume=)"
    return found


def _repeated(runs: Sequence[tuple[int, RunRecord]]) -> dict[int, str]:
    """Runs with the point and the seed of a later one, which alone is counted."""
    latest: dict[tuple[str, int], int] = {}
    found = {}
    for number, record in runs:
        if record.seed is None or not record.point:
            continue
        earlier = latest.get((record.point, record.seed))
        if earlier is not None:
            found[earlier] = "another run has the same settings and seed; the last one is counted"
        latest[record.point, record.seed] = number
    return found


def _texts(records: Sequence[RunRecord]) -> list[Hashable]:
    """For each run, an identifier of the text on which it was evaluated."""
    known = {
        record.data_digest: record.evaluation["text"]
        for record in records
        if record.evaluation.get("text")
    }
    texts = [record.evaluation.get("text") or known.get(record.data_digest) for record in records]
    if all(texts):
        return list(texts)
    return [tuple(str(record.settings.get(key) or None) for key in TEXT) for record in records]


def _difference(records: Sequence[RunRecord]) -> str | None:
    """Why the losses of runs on one text do not compare; None if they do."""
    parts = []
    digests = {record.data_digest for record in records}
    if len(digests) > 1:
        names = _values(record.settings.get("data.tokenizer") for record in records)
        parts.append("different vocabularies" + (f" ({names})" if ", " in names else ""))
    is_new = all("block_size" in record.evaluation for record in records)
    for key, words in (PROTOCOL if is_new else SETTINGS).items():
        values = [(record.evaluation if is_new else record.settings).get(key) for record in records]
        if key == "tokens" and parts:
            continue  # a consequence of the other differences
        if len(set(map(str, values))) > 1:
            parts.append(f"different {words} of their evaluations ({_values(values)})")
    return f"the runs have {' and '.join(parts)}" if parts else None


def _values(values: Iterable[object]) -> str:
    """``32, 64, 128``: the different values, shortened."""
    distinct = list(dict.fromkeys(map(str, values)))
    more = [f"{len(distinct) - LONGEST_LIST} more"] if len(distinct) > LONGEST_LIST else []
    return ", ".join(distinct[:LONGEST_LIST] + more)


def _grouped(reasons: dict[int, str]) -> list[LeftOut]:
    runs: dict[str, list[int]] = defaultdict(list)
    for number, reason in sorted(reasons.items()):
        runs[reason].append(number)
    return [LeftOut(numbers, reason) for reason, numbers in runs.items()]
