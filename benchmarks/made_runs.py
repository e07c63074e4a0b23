"""Run folders with invented numbers, for tests and benchmarks of the report: no run is trained."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from llm.experiment.names import folder_name
from llm.experiment.rundir import CONFIG, METRICS, SAMPLES, replace_text, write_summary
from llm.settings.identity import config_digest
from llm.settings.saved import to_plain, to_yaml
from llm.settings.schema import TrainSettings

DATA = "f80fb766d99d80f5c2fb549d523b15591c990bb9c628b9df316a6b0495af9d03"
EVALUATION = {
    "split": "val", "text": "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    "block_size": 128, "windows": 320, "stride": 128, "tokens": 40_960, "bytes": 40_960,
}  # fmt: skip


def changed(settings: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """``settings`` with other values of some dotted keys."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section:
            value = replace(getattr(settings, section), **{name: value})
        settings = replace(settings, **{section or name: value})
    return settings


def make_run(
    folder: Path, values: Mapping[str, Any], losses: Sequence[float], *, status: str = "finished",
    reason: str | None = None, rows: int = 20, samples: int = 2, **facts: Any,
) -> Path:  # fmt: skip
    """A run folder. ``losses``: of its evaluations; ``rows``: of training between them.

    ``values``: settings that differ from the defaults. ``facts`` replace values of the summary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = changed(TrainSettings(), values).resolve(77, "fp32")
    replace_text(folder / CONFIG, to_yaml(settings))
    model = settings.model
    parameters = 12 * model.n_layer * model.n_embed**2 + 77 * model.n_embed
    per_step = settings.trainer.batch_size * model.block_size
    speed = 4e9 / (6 * parameters)
    lines, step, best = [], 0, math.inf
    for number, loss in enumerate(losses):
        for _ in range(rows if number else 0):
            step += 10
            row = _row(step, per_step, speed, loss + 1 / math.sqrt(step))
            lines.append(row | {"train_seconds": row["tokens"] / speed})
        best = min(best, loss)
        row = lines.pop() if lines else _row(0, per_step, speed, None)
        bits = loss / math.log(2)
        lines.append(row | {
            "val/loss": loss, "val/perplexity": math.exp(loss), "val/bits_per_byte": bits,
            "best/val_loss": best,
        })  # fmt: skip
    replace_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
    texts = (
        {"step": step, "prompt": "\n", "text": f"ROMEO:\nO, the {word} of night!", "loops": 0.0}
        for word in ("light", "end")[:samples]
    )
    replace_text(folder / SAMPLES, "".join(json.dumps(text) + "\n" for text in texts))
    for name in (f"best-{step:08d}", f"step-{step:08d}"):
        (folder / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
    summary = {
        "status": status, "reason": reason, "step": step, "tokens": step * per_step,
        "parameters": parameters, "best_val_loss": best, "val_loss": losses[-1],
        "bits_per_byte": best / math.log(2), "tokens_per_second": speed,
        "peak_memory_bytes": 2**28 + 16 * parameters,
        "predicted_memory_bytes": 2**28 + 17 * parameters, "memory_changes": [],
        "wall_seconds": step * per_step / speed + 2, "train_seconds": step * per_step / speed,
        "config_digest": config_digest(to_plain(settings), DATA), "data_digest": DATA,
        "git_commit": "0" * 40, "versions": {"python": "3.11"}, "evaluation": EVALUATION,
    }  # fmt: skip
    write_summary(folder, **summary | facts)
    return folder


def _row(step: int, per_step: int, speed: float, loss: float | None) -> dict[str, Any]:
    return {"step": step, "tokens": step * per_step} | ({} if loss is None else {
        "train/loss": loss, "lr": 0.01, "grad_norm": 1.0, "tokens_per_second": speed, "mfu": 0.3,
        "peak_memory_bytes": 2**28,
    })  # fmt: skip


def make_sweep(
    folder: Path, over: Mapping[str, Sequence[Any]], seeds: Sequence[int] = (1, 2, 3),
    noise: float = 0.01, evaluations: int = 5, rows: int = 20, randomness: int = 0,
) -> Path:  # fmt: skip
    """A sweep over all combinations of ``over``: larger networks have lower losses."""
    drawn = random.Random(randomness)
    jobs = {}
    for combination in product(*over.values(), seeds):
        values = dict(zip([*over, "seed"], combination, strict=True))
        settings = changed(TrainSettings(), values)
        size = settings.model.n_layer * settings.model.n_embed**2
        rate = math.log10(getattr(settings.optimizer, "lr", 0.02) / 0.02) ** 2
        final = 1.4 + 6 * size**-0.2 + 0.1 * rate + drawn.gauss(0, noise)
        losses = [final + 3 * math.exp(-5 * n / (evaluations - 1)) for n in range(evaluations)]
        typed = {key: str(value) for key, value in values.items()}
        name = folder_name(typed)
        make_run(folder / name, values, losses, rows=rows)
        jobs[name] = typed
    text = {"over": sorted([*over, "seed"]), "fixed": {}, "jobs": jobs}
    replace_text(folder / "sweep.json", json.dumps(text))
    return folder
