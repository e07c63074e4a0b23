"""Records of invented runs, for tests of the numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llm.report.record import RunRecord

BASE = {
    "model.n_layer": 4, "model.n_embed": 128, "model.block_size": 64, "data.name": "play",
    "data.tokenizer": "char", "optimizer.lr": 0.01, "trainer.max_steps": 100,
    "trainer.eval_batches": 40,
}  # fmt: skip
EVALUATION = {
    "split": "val", "text": "play", "block_size": 64, "windows": 320, "stride": 64,
    "tokens": 20_480, "bytes": 20_480,
}  # fmt: skip


def run(loss: float | None, seed: int = 1, /, **facts: Any) -> RunRecord:
    """A finished run with this loss. Facts with a dot are settings: ``**{"model.n_layer": 2}``."""
    changed = {key: facts.pop(key) for key in list(facts) if "." in key}
    settings = BASE | changed
    point = str(sorted(changed.items()))
    name = "_".join([*(f"{key}-{value}" for key, value in changed.items()), f"seed-{seed}"])
    bits = None if loss is None else loss / math.log(2)
    record = RunRecord(
        folder=f"outputs/{name}", name=name, settings=settings, seed=seed, point=point,
        data_digest="digest", evaluation=EVALUATION, step=100, parameters=100_000,
        best_val_loss=loss, best_step=100, best_checkpoint="checkpoints/best-00000100",
        val_loss=loss, last_checkpoint="checkpoints/step-00000100", bits_per_byte=bits,
        last_bits_per_byte=bits, train_seconds=10.0, peak_memory_bytes=2**28,
    )  # fmt: skip
    return replace(record, **facts)


def seeds(losses: Sequence[float], /, **facts: Any) -> list[RunRecord]:
    """Runs of one point with the seeds 1, 2, ..."""
    return [run(loss, seed, **facts) for seed, loss in enumerate(losses, 1)]
