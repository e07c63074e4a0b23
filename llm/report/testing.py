"""Evaluate runs on the test split of their data (``data.test_fraction``), if a report asks to.

No run, checkpoint or setting is chosen by this loss. So unlike the lowest of many validation losses
it does not flatter the winner. It is measured once and stored as ``test.json`` in the run folder.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.data.batches import Batch
from llm.data.config import DataConfig
from llm.data.dataset import LARGE, Dataset
from llm.data.prepare import ready
from llm.disk import writing
from llm.errors import Refused, require
from llm.experiment.rundir import CONFIG, TEST, replace_text
from llm.model.config import GPTConfig
from llm.options import from_plain, option
from llm.report.record import RunRecord
from llm.settings.saved import load_plain
from llm.settings.schema import PrecisionSection
from llm.training.options import TrainerOptions

if TYPE_CHECKING:  # it imports torch
    from llm.evaluation.split import Reading

Progress = Callable[[int, int], None]  # called with (batches done, batches in all)


@dataclass(frozen=True)
class SplitLoss:
    """The values of ``test.json``: a loss, its checkpoint, and how it was measured."""

    split: str
    checkpoint: str  # checkpoints/best-00000400
    loss: float = option(at_least=0)  # nats per token
    bits_per_byte: float | None = option(at_least=0)
    text: str = option()  # sha256 of the text and its splits, independent of the tokenizer
    block_size: int = option(at_least=1)
    windows: int = option(at_least=1)
    stride: float = option(at_least=0)  # mean number of tokens between the starts of windows
    tokens: int = option(at_least=1)
    bytes: int = option(at_least=0)
    data_digest: str = option()


@dataclass(frozen=True)
class Job:
    """A run whose best checkpoint can be evaluated, with its settings."""

    record: RunRecord
    dataset: Dataset
    model: GPTConfig
    trainer: TrainerOptions
    precision: str

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.record.folder)

    @property
    def is_done(self) -> bool:
        """Whether ``test.json`` is valid and of the checkpoint that is the best one now."""
        try:
            found = from_plain(SplitLoss, self.record.test, f"{TEST}: ")
        except Refused:
            return False
        known = (found.split, found.checkpoint, found.data_digest)
        return known == ("test", self.record.best_checkpoint, self.dataset.digest)

    @property
    def batches(self) -> int:
        """How many batches its evaluation reads."""
        from llm.evaluation.split import count_of_windows

        windows = count_of_windows(self.trainer.eval_batches)
        size, batch_size = self.model.block_size, self.trainer.micro_batch
        return self.dataset.validation(size, batch_size, windows, "test")[0]


def test_runs(
    records: Sequence[RunRecord], on_progress: Progress = lambda done, total: None
) -> tuple[list[RunRecord], dict[str, str]]:
    """The same runs with ``test`` filled in, and by folder the reasons why some have no test loss.

    The best checkpoint of each run is evaluated on the test split as the run evaluates its
    validation split: with its precision, windows (``trainer.eval_batches``) and micro-batches. A
    valid ``test.json`` is not measured again. Raises :class:`llm.errors.DiskError` if one cannot
    be written.
    """
    jobs, refused, open_data = list[Job](), dict[str, str](), cache(open_prepared)
    for record in records:
        try:
            jobs.append(job_of(record, open_data))
        except Refused as refusal:
            refused[record.folder] = str(refusal)
    found = {job.record.folder: job.record.test for job in jobs if job.is_done}
    to_do = [job for job in jobs if not job.is_done]
    done, total = 0, sum(job.batches for job in to_do)

    def reading(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
        nonlocal done
        for batch in batches:
            yield batch
            done += 1
            on_progress(done, total)

    for job in to_do:
        try:
            values = asdict(evaluate_run(job, "test", reading))
        except Refused as refusal:
            refused[job.record.folder] = str(refusal)
            continue
        with writing(job.folder / TEST):
            replace_text(job.folder / TEST, json.dumps(values, indent=1) + "\n")
        found[job.record.folder] = values
    return [replace(record, test=found.get(record.folder, {})) for record in records], refused


test_runs.__test__ = False  # type: ignore[attr-defined]  # it is no test for pytest to collect


def evaluate_run(
    job: Job, split: str, reading: "Reading" = lambda batches, count: batches
) -> SplitLoss:
    """The loss of the best checkpoint of a run on a split, measured as in training.

    On the machine of the run, ``"val"`` gives its best validation loss to the last bit. Raises
    :class:`llm.errors.Refused` for a checkpoint that cannot be used or was trained on other data.
    """
    from llm.checkpoint.checkpoint import Checkpoint
    from llm.device import select_device
    from llm.evaluation.split import evaluate_split
    from llm.interchange.source import load_model, open_source
    from llm.training.precision import Precision, resolve_precision, to_precision

    name, dataset = str(job.record.best_checkpoint), job.dataset
    checkpoint = Checkpoint.open(job.folder / name)
    require(
        checkpoint.identity.get("data_digest") == dataset.digest,
        f"{checkpoint.path} was trained on other data than {dataset.folder}",
    )
    dataset.check(checkpoint.model.block_size, checkpoint.model.vocab_size or 0)
    device = select_device(job.trainer.device)
    precision = Precision(resolve_precision(job.precision, device)[0], device)
    source = open_source("runs", str(checkpoint.path))
    model = to_precision(load_model(source, device), precision.weights)
    result, protocol = evaluate_split(
        model, dataset, split, precision.autocast, job.trainer.micro_batch,
        job.trainer.eval_batches, reading,
    )  # fmt: skip
    require(math.isfinite(result.loss), f"{checkpoint.path}: its loss on {split} is not finite")
    return SplitLoss(
        checkpoint=name, loss=result.loss, bits_per_byte=result.bits_per_byte,
        data_digest=dataset.digest, **asdict(protocol),
    )  # fmt: skip


def job_of(record: RunRecord, open_data: Callable[..., Dataset] | None = None) -> Job:
    """The run with its dataset and the settings of its evaluations.

    Raises :class:`llm.errors.Refused` for a run without a best checkpoint or a test split, and if
    its data is not there or has changed.
    """
    folder = Path(record.folder)
    require(record.best_checkpoint, f"{folder} has no checkpoint with the best validation loss")
    plain, where = load_plain(folder), f"{folder / CONFIG}: "
    data = from_plain(DataConfig, plain.get("data"), f"{where}data.")
    model = from_plain(GPTConfig, plain.get("model"), f"{where}model.")
    trainer = from_plain(TrainerOptions, plain.get("trainer"), f"{where}trainer.")
    precision = from_plain(PrecisionSection, plain.get("precision"), f"{where}precision.")
    require(
        data.test_fraction is not None,
        f"{folder} was trained without a test split (data.test_fraction=null)",
    )
    dataset = (open_data or open_prepared)(*astuple(replace(data, overwrite=False)))
    require(
        dataset.digest == record.data_digest,
        f"{dataset.folder} is not the data that {folder} was trained on: its digest is another",
    )
    return Job(record, dataset, model, trainer, precision.name)


def open_prepared(*data: Any) -> Dataset:
    """The prepared dataset of the fields of a ``DataConfig``, checked as at the start of a run."""
    folder, is_ready = ready(DataConfig(*data))
    require(is_ready, f"{folder} is not there: prepare it again with run_prepare.py")
    dataset = Dataset.open(folder)
    if dataset.size <= LARGE:
        dataset.verify()
    return dataset
