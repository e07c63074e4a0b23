"""The record of one run, read from its files, for a report."""

from dataclasses import dataclass, field
from typing import Any

from llm.sealed import Plain

RUNNING, DAMAGED = "running", "damaged"  # statuses that no summary.json has


@dataclass(frozen=True)
class RunRecord:
    """One run folder. Losses are in nats per token; None stands for an unknown number."""

    folder: str  # relative to the current folder where that is possible
    name: str  # of the folder, without its parents
    sweep: str | None = None  # the folder of the sweep, if the run is one of its jobs
    values: dict[str, str] = field(default_factory=dict)  # of the sweep's keys, with its seed
    note: str | None = None  # run.note
    status: str = "finished"  # of summary.json, or RUNNING, or DAMAGED
    reason: str = ""  # why it ended, or which file is damaged
    # All settings in which two runs may differ except the seed, by dotted key: {"model.n_layer": 4}
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    point: str = ""  # digest of `settings` and of the data; runs of one point differ in the seed
    data_digest: str | None = None  # of token ids and tokenizer
    # summary.json's: split, text (sha256), block_size, windows, stride, tokens, bytes
    evaluation: Plain = field(default_factory=dict)
    step: int | None = None
    tokens: int | None = None
    parameters: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    best_checkpoint: str | None = None  # checkpoints/best-00000400
    val_loss: float | None = None  # the last evaluation
    last_checkpoint: str | None = None  # checkpoints/step-00000400
    bits_per_byte: float | None = None  # of the best evaluation
    last_bits_per_byte: float | None = None
    test: Plain = field(default_factory=dict)  # test.json: loss, bits_per_byte, tokens, bytes, ...
    scores: dict[str, float] = field(default_factory=dict)  # of eval.json: {"eval/grammar": 0.8}
    tokens_per_second: float | None = None
    train_seconds: float | None = None
    wall_seconds: float | None = None
    peak_memory_bytes: int | None = None
    predicted_memory_bytes: int | None = None
    budget_bytes: int | None = None  # memory.budget_gib
    flops_per_token: float | None = None  # forward and backward

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished, so that its loss may enter a mean."""
        return self.status == "finished"
