"""The loss of a network on a split of prepared data or on a text, for ``run_eval.py``."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from llm.data.dataset import LARGE, Dataset
from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.evaluation.loss import Evaluation, EvaluationProtocol
from llm.evaluation.split import EVAL_BATCH, evaluate_split
from llm.evaluation.text import TOO_SHORT, evaluate_tokens, text_tokens
from llm.experiment.rundir import CONFIG
from llm.model.gpt import GPT
from llm.options import from_plain
from llm.sealed import Plain
from llm.settings.eval import EvalSettings
from llm.settings.saved import load_plain
from llm.settings.schema import PrecisionSection
from llm.tasks.subject import Subject
from llm.training.options import TrainerOptions
from llm.training.precision import Precision, resolve_precision, to_precision

Reading = Callable[[Iterator[Any], int], Iterable[Any]]  # batches and their number


class Task(Protocol):
    """A measurement of a network. Its file is read before any network is loaded."""

    @property
    def name(self) -> str:
        """The key of the result in ``eval.json``."""

    def evaluate(self, subject: Subject, model: GPT, reading: Reading) -> Plain:
        """The result as plain values."""


@dataclass(frozen=True)
class SplitTask:
    """The loss of a split: of the data of the run, or of the prepared data in ``folder``."""

    settings: EvalSettings
    folder: Path | None = None

    @property
    def name(self) -> str:
        """``loss`` on the validation split of the run, ``loss_test`` on its test split; of other
        data the name of the folder: ``novels``, ``novels_test``.
        """
        split = self.settings.split
        name = "loss" if self.folder is None else self.folder.resolve().name
        return name if split == "val" else f"{name}_{split}"

    def evaluate(self, subject: Subject, model: GPT, reading: Reading) -> Plain:
        """The loss, and how it was measured."""
        dataset = subject.dataset() if self.folder is None else _opened(self.folder)
        split, tokenizer = self.settings.split, subject.source.tokenizer
        remedy = "give the text as data_path=FILE.txt"
        if dataset.template:
            remedy = f"prepare it again with data.tokenizer={subject.place} (run_prepare.py)"
        require(
            dataset.tokenizer.is_same(tokenizer),
            f"{subject.place} has {tokenizer.described(dataset.tokenizer)}, and {dataset.folder} "
            f"has {dataset.tokenizer.described(tokenizer)}: {remedy}",
            key="data_path",
        )
        require(
            split in dataset.splits,
            f"split={split}: {dataset.folder} was prepared without it (data.test_fraction=null): "
            "take split=val",
            key="split", suggestions=["split=val"],
        )  # fmt: skip
        if self.settings.as_in_training:
            return self._as_in_training(subject, model, dataset, reading)
        if dataset.template:
            return self._of_answers(model, dataset, reading)
        lengths = tokenizer.byte_lengths
        found, windows = evaluate_tokens(
            model, dataset.splits[split], lengths, *window_of(self.settings, model), reading
        )
        return {
            **_numbers(found), "split": split, "text": dataset.text, "window": windows.size,
            "stride": windows.stride, "windows": len(windows.starts()), "precision": "fp32",
        }  # fmt: skip

    def _of_answers(self, model: GPT, dataset: Dataset, reading: Reading) -> Plain:
        """The loss of the answers of conversations, in packed rows as in training."""
        typed = self.settings.window or self.settings.stride
        require(
            not typed,
            f"{dataset.folder} has conversations, which are not cut into windows: leave out window "
            "and stride",
        )
        dataset.check(model.config.block_size, model.config.vocab_size or 0)
        rows = self.settings.batch_size or EVAL_BATCH
        found, protocol = evaluate_split(
            model, dataset, self.settings.split, nullcontext(), rows, None, reading
        )
        return _with_protocol(found, protocol, "fp32")

    def _as_in_training(
        self, subject: Subject, model: GPT, dataset: Dataset, reading: Reading
    ) -> Plain:
        require(subject.run, f"as_in_training=true needs a run, and {subject.place} is not a run")
        assert subject.run is not None
        plain, where = load_plain(subject.run), f"{subject.run / CONFIG}: "
        trainer = from_plain(TrainerOptions, plain.get("trainer"), f"{where}trainer.")
        section = from_plain(PrecisionSection, plain.get("precision"), f"{where}precision.")
        device = model.embed.weight.device
        precision = Precision(resolve_precision(section.name, device)[0], device)
        found, protocol = evaluate_split(
            to_precision(model, precision.weights), dataset, self.settings.split,
            precision.autocast, trainer.micro_batch, trainer.eval_batches, reading,
        )  # fmt: skip
        model.float()  # for the next task
        return _with_protocol(found, protocol, precision.name)


def _with_protocol(found: Evaluation, protocol: EvaluationProtocol, precision: str) -> Plain:
    stride = float(protocol.stride)
    return {
        **_numbers(found), "split": protocol.split, "text": protocol.text,
        "window": protocol.block_size, "stride": int(stride) if stride.is_integer() else stride,
        "windows": protocol.windows, "precision": precision,
    }  # fmt: skip


@dataclass(frozen=True)
class TextTask:
    """The loss of a text file."""

    name: str
    text: str
    settings: EvalSettings

    def evaluate(self, subject: Subject, model: GPT, reading: Reading) -> Plain:
        """The loss, and how it was measured."""
        tokenizer = subject.source.tokenizer
        try:
            tokens = text_tokens(tokenizer, self.text)
            require(len(tokens) > 1, TOO_SHORT)
        except Refused as refusal:  # such as a character that is not in the vocabulary
            raise Refused(f"{self.name}: {refusal}") from None
        found, windows = evaluate_tokens(
            model, tokens, tokenizer.byte_lengths, *window_of(self.settings, model), reading
        )
        if tokenizer.end_of_text is not None:  # then all bytes of the text are predicted
            found = replace(found, bytes=len(self.text.encode()))
        return {
            **_numbers(found), "file": self.name, "starts_with": first_token(tokenizer),
            "window": windows.size, "stride": windows.stride, "windows": len(windows.starts()),
            "precision": "fp32",
        }  # fmt: skip


def _numbers(found: Evaluation) -> Plain:
    require(math.isfinite(found.loss), "the loss is not finite: the weights are damaged")
    return {
        "kind": "loss", "loss": found.loss, "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte, "tokens": found.tokens, "bytes": found.bytes,
    }  # fmt: skip


def first_token(tokenizer: Tokenizer) -> str | None:
    """The special token that is put before a text; None if the tokenizer has no such token."""
    end = tokenizer.end_of_text
    return next((name for name, token in tokenizer.special_ids.items() if token == end), None)


def window_of(settings: EvalSettings, model: GPT) -> tuple[int, int | None, int | None]:
    """The window, the stride, and the number of windows in a batch.

    Raises :class:`llm.errors.Refused` for a window beyond ``block_size``.
    """
    most = model.config.block_size
    require(
        (settings.window or 0) <= most,
        f"window={settings.window} is longer than the model's block_size={most}",
        key="window", suggestions=[f"window={most}"],
    )  # fmt: skip
    size = settings.window or most
    require(
        (settings.stride or 0) <= size,
        f"stride={settings.stride} is larger than the window of {size} tokens, so it would skip "
        f"tokens: give at most {size}",
        key="stride", suggestions=[f"stride={size}"],
    )  # fmt: skip
    return size, settings.stride, settings.batch_size


def _opened(folder: Path) -> Dataset:
    dataset = Dataset.open(folder)
    if dataset.size <= LARGE:
        dataset.verify()
    return dataset
