"""``llm.load``: a finished or running run, its numbers and its network."""

import json
import os
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.errors import Refused, did_you_mean, reason_for, require

if TYPE_CHECKING:
    from llm.checkpoint.checkpoint import Checkpoint
    from llm.data.tokenizer import Tokenizer
    from llm.evaluation.loss import Evaluation
    from llm.model.gpt import GPT

# Keys of run_sample.py with which it does more than write one text
NO_OPTIONS = ("ckpt", "prompt_file", "num_samples", "device", "stream", "logprobs",
              "verify_cache", "benchmark", "chat", "template", "system")  # fmt: skip

# Fields of a record of a run
COLUMNS = ("seed", "status", "reason", "note", "step", "tokens", "parameters", "best_val_loss",
           "best_step", "val_loss", "bits_per_byte", "tokens_per_second", "train_seconds",
           "wall_seconds", "peak_memory_bytes", "predicted_memory_bytes")  # fmt: skip


def load(folder: str | os.PathLike[str], device: str = "auto") -> "Run":
    """The run in a run folder, or a checkpoint. ``device``: where its network computes.

    Raises :class:`llm.Refused` for any other folder.
    """
    from llm.checkpoint.find import MANIFEST, find_checkpoint

    path = Path(folder)
    if os.path.isfile(path / MANIFEST):
        run = path.absolute().parent.parent  # outputs/a of outputs/a/checkpoints/best
        return Run(run if is_run(run) else path, path, device)
    return Run(path, None if is_run(path) else find_checkpoint("folder", str(path)), device)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` is the folder of a run."""
    from llm.experiment.rundir import CONFIG, SUMMARY

    return any(os.path.isfile(Path(folder) / name) for name in (CONFIG, SUMMARY))


def runs(*folders: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """A plain record of each run in ``folders``, for ``pandas.DataFrame(llm.runs("outputs"))``.

    A folder may be a run, a sweep, or one with runs below it. The settings in which the runs differ
    are columns, such as ``model.n_layer``. Raises :class:`llm.Refused` for a folder without runs.
    """
    from llm.report.points import shared_settings
    from llm.report.runs import find_runs

    records = find_runs([Path(folder) for folder in folders])
    # A job that waits and a run with a damaged config.yaml have no settings.
    shared = shared_settings([record for record in records if record.settings])
    keys = sorted({key for record in records for key in record.settings})
    differing = [key for key in keys if key not in shared]
    return [
        {"folder": one.folder, "sweep": one.sweep}
        | {key: one.settings.get(key) for key in differing}
        | {name: getattr(one, name) for name in COLUMNS}
        for one in records
    ]


class Run:
    """A run folder. Its files are read when they are asked for, so a running run can be watched."""

    def __init__(self, folder: Path, checkpoint: Path | None = None, device: str = "auto") -> None:
        self.folder = folder
        self.device = device
        self._place = checkpoint  # None: the best checkpoint of the folder

    def __repr__(self) -> str:
        parts = [f"{str(self.folder)!r}, {self.status}"]
        if (step := self.summary.get("step")) is not None:
            parts.append(f"step {step:,}")
        if (loss := self.best_val_loss) is not None:
            parts.append(f"best val loss {loss:.4f}")
        return f"<llm.Run {', '.join(parts)}>"

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json``; empty until the run has ended."""
        from llm.experiment.rundir import read_summary

        return read_summary(self.folder) or {}

    @property
    def status(self) -> str:
        """``finished``, ``diverged``, ...; ``running`` for a run without ``summary.json``."""
        return str(self.summary.get("status") or "running")

    @property
    def val_loss(self) -> float | None:
        """The last validation loss, in nats per token."""
        return self.summary.get("val_loss")

    @property
    def best_val_loss(self) -> float | None:
        """The lowest validation loss, in nats per token."""
        return self.summary.get("best_val_loss")

    @property
    def config(self) -> dict[str, Any]:
        """``config.yaml``: every setting of the run."""
        from llm.settings.saved import load_plain

        return load_plain(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, for ``pandas.DataFrame(run.metrics)``."""
        from llm.experiment.rundir import METRICS

        rows = []
        try:
            with (self.folder / METRICS).open(encoding="utf-8") as file:
                for line in file:
                    if line.endswith("\n"):  # the last line may be half-written
                        rows.append(json.loads(line))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            path = self.folder / METRICS
            raise Refused(f"{path} cannot be read: {reason_for(path, error)}") from None
        return rows

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The loaded checkpoint, or the best one of the run."""
        from llm.checkpoint.checkpoint import Checkpoint
        from llm.checkpoint.find import find_checkpoint

        return Checkpoint.open(self._place or find_checkpoint("folder", str(self.folder)))

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that the network was trained with."""
        return self.checkpoint.tokenizer

    @cached_property
    def model(self) -> "GPT":
        """The network of the checkpoint in evaluation mode, with weights in float32."""
        from llm.device import select_device
        from llm.interchange.source import load_model, open_source

        source = open_source("folder", str(self.checkpoint.path))
        return load_model(source, select_device(self.device, key="device"))

    def sample(self, prompt: str = "", **options: Any) -> str:
        """The text that ``run_sample.py`` prints, prompt included.

        ``options`` are its keys, with its defaults: ``seed=1``, ``temperature=0``,
        ``max_new_tokens=100``, ``stop="\\n\\n"``, ``echo=False`` ... Raises :class:`llm.Refused`.
        """
        import copy

        from llm.experiment.samples import check_stops, read_prompt, sample_text
        from llm.options import validate
        from llm.sampling.layout import lay_out_for_decoding
        from llm.settings.sample import SampleSettings

        known = {field.name for field in fields(SampleSettings)} - {*NO_OPTIONS, "prompt"}
        for key in options:
            require(key in known, f"{key} is no option of sample{did_you_mean(key, known)}")
        settings = SampleSettings(ckpt=str(self.folder), prompt=prompt, **options)
        validate(settings)
        check_stops(self.tokenizer, settings.stops())
        tokens = read_prompt(self.tokenizer, prompt, None, self.checkpoint.model.block_size)
        model = copy.deepcopy(self.model)  # the layout for decoding is not for training
        lay_out_for_decoding(model)
        return sample_text(
            model, self.tokenizer, tokens, settings, settings.seed, settings.echo, settings.stops()
        )

    def loss(self, text: str) -> float:
        """Mean cross-entropy of ``text`` in nats per token.

        The text is cut into windows of ``block_size`` tokens, as in validation. Every token but the
        first counts once, predicted from the tokens before it in its window. Computed in float32.
        """
        return self._evaluate(text).loss

    def bits_per_byte(self, text: str) -> float:
        """The same cross-entropy in bits per byte of UTF-8, comparable between tokenizers."""
        found = self._evaluate(text).bits_per_byte
        require(found is not None, "the text has no bytes")
        return float(found or 0.0)

    def _evaluate(self, text: str) -> "Evaluation":
        from llm.evaluation.text import evaluate_tokens

        tokenizer = self.tokenizer  # its own refusals are not about the text
        try:
            tokens = tokenizer.encode(text)
        except Refused as refusal:
            raise Refused(f"the text has characters that are {refusal}") from None
        return evaluate_tokens(self.model, tokens, tokenizer.byte_lengths)[0]
