"""Documents for tests of the page, written without reading runs: report.json and its extra data."""

import math
from itertools import product
from typing import Any

Plain = dict[str, Any]


def document(depths: int = 3, rates: int = 3, seeds: int = 3, **changes: Any) -> Plain:
    """A report on a sweep of ``depths`` x ``rates`` points, of which one run has diverged."""
    points: list[Plain] = []
    runs: list[Plain] = []
    for depth, rate in product(range(1, depths + 1), range(rates)):
        values = {"model.n_layer": str(2 * depth), "optimizer.lr": f"{0.001 * 3**rate:.3g}"}
        mean = 1.5 + 0.4 / depth + 0.05 * (rate - 1) ** 2
        numbers = list(range(len(runs), len(runs) + seeds))
        runs += [_run(len(points), values, seed, mean) for seed in range(1, seeds + 1)]
        points.append(_point(len(points), values, numbers, mean))
    best = min(points, key=lambda point: point["mean"])["index"]
    runs.append(_failed({"model.n_layer": "2", "optimizer.lr": "1"}))
    keys = ["model.n_layer", "optimizer.lr"]
    return {
        "schema": 1, "status": "finished", "exit": 0, "title": "width_depth",
        "made": "2026-11-29T01:40:00+00:00", "version": "0.2.0", "is_running": False,
        "measure": {
            "key": "best_val_loss", "name": "best validation loss", "unit": "nats per token",
            "why": None,
        },
        "question": "How deep should the network be?", "keys": keys,
        "shared": {"model.n_embed": 128, "trainer.max_steps": 1000},
        "answer": {
            "sentences": [
                f"Take {points[best]['label']}: its best validation loss is 1.6333 (n = {seeds}).",
                "That is 0.3167 better than the defaults, and the difference is shown (p < 0.001).",
            ],
            "best": best, "default": 0,
            "command": "python run_train.py resume=multirun/width_depth/a trainer.max_steps=10000",
        },
        "points": points, "comparisons": _comparisons(points, best), "verdict": None,
        "runs": runs, "counts": {"finished": len(points) * seeds, "diverged": 1},
        "left_out": [],
        "noise": {"sd": 0.01, "df": 18, "runs": 27, "points": 9, "source": "this sweep"},
        "importance": [
            {"key": keys[0], "n": len(points), "correlation": -0.91, "share": 0.83},
            {"key": keys[1], "n": len(points), "correlation": 0.12, "share": 0.1},
        ],
        "scaling": _scaling(points),
        "transfer": {
            "rate_key": "optimizer.lr", "size_key": "model.n_layer",
            "rows": [
                {"size": "2", "means": {"0.001": 1.95, "0.003": 1.9}, "best": "0.003"},
                {"size": "4", "means": {"0.003": 1.7, "0.009": 1.75}, "best": "0.003"},
            ],
            "sentence": "The best rate is 0.003 at both sizes.",
        },
    } | changes  # fmt: skip


def _point(index: int, values: Plain, runs: list[int], mean: float) -> Plain:
    depth = int(values["model.n_layer"])
    label = " ".join(f"{key.split('.')[1]}={value}" for key, value in values.items())
    return {
        "index": index, "label": label, "values": values, "runs": runs,
        "seeds": [n + 1 for n in range(len(runs))], "n": len(runs), "mean": mean,
        "sd": 0.01, "low": mean - 0.02, "high": mean + 0.02, "last_mean": mean + 0.01,
        "last_sd": 0.01, "bits_per_byte": mean / math.log(2), "parameters": 196_608 * depth,
        "peak_memory_bytes": 2**28 + 2**24 * depth, "train_seconds": 60.0 * depth,
        "tokens_per_second": 80_000 / depth, "test_mean": None, "test_sd": None, "test_n": 0,
        "front": ["parameters", "train_seconds"] if values["optimizer.lr"] == "0.003" else [],
    }  # fmt: skip


def _run(point: int, values: Plain, seed: int, mean: float) -> Plain:
    depth, loss = int(values["model.n_layer"]), mean + 0.01 * (seed - 2)
    name = ",".join(f"{key.split('.')[1]}={value}" for key, value in values.items())
    return {
        "folder": f"multirun/width_depth/{name},seed={seed}", "name": f"{name},seed={seed}",
        "sweep": "multirun/width_depth", "values": values | {"seed": str(seed)}, "note": None,
        "status": "finished", "reason": "", "seed": seed, "step": 1000, "tokens": 2_048_000,
        "parameters": 196_608 * depth, "best_val_loss": loss, "best_step": 900,
        "best_checkpoint": "checkpoints/best-00000900", "val_loss": loss + 0.01,
        "last_checkpoint": "checkpoints/step-00001000", "bits_per_byte": loss / math.log(2),
        "test": {}, "tokens_per_second": 80_000 / depth, "train_seconds": 60.0 * depth,
        "wall_seconds": 62.0 * depth, "peak_memory_bytes": 2**28 + 2**24 * depth + seed * 2**18,
        "predicted_memory_bytes": 2**28 + 17 * 2**20 * depth, "budget_bytes": 2**29,
        "flops_per_token": 6.0 * 196_608 * depth,
        "point": point, "changes": dict(values), "log": None,
    }  # fmt: skip


def _failed(values: Plain) -> Plain:
    run = _run(0, values, 1, 9.0)
    return run | {
        "status": "diverged", "reason": "the loss is NaN at step 40", "point": None, "step": 40,
        "best_val_loss": 3.5, "log": "step 20: loss 4.1\nstep 40: loss nan",
    }  # fmt: skip


def _comparisons(points: list[Plain], best: int) -> list[Plain]:
    found = []
    for point in points:
        difference = point["mean"] - points[best]["mean"]
        shown = difference > 0.06
        found.append({
            "point": point["index"], "with": best, "difference": difference,
            "low": difference - 0.02, "high": difference + 0.02, "p": 1e-4 if shown else 0.2,
            "p_adjusted": 3e-4 if shown else 0.4, "verdict": "worse" if shown else "not shown",
            "more_seeds": None if shown else 5,
            "test": "pooled variance, 18 degrees of freedom",
        })  # fmt: skip
    return [comparison for comparison in found if comparison["point"] != best]


def _scaling(points: list[Plain]) -> Plain:
    fitted = [[point["parameters"], point["mean"]] for point in points]
    return {
        "a": 160.0, "e": 1.3, "alpha": 0.45, "low": {}, "high": {}, "points": fitted,
        "sentence": "L = 1.30 + 160 N^-0.45 over 3 sizes.",
    }  # fmt: skip


def extra(report: Plain, rows: int = 100) -> Plain:
    """Curves and samples for the runs of ``report``; ``rows``: per training curve."""
    curves = [_curves(number, run, rows) for number, run in enumerate(report["runs"])]
    samples = [
        {
            "run": run, "step": 1000, "prompt": "ROMEO:\n", "text": f"O light of night {run}!",
            "scores": {"loops": 0.0, "distinct_4": 0.97},
        }
        for run in range(min(len(report["runs"]), 8))
    ]  # fmt: skip
    return {"curves": curves, "samples": samples, "notes": []}


def _curves(number: int, run: Plain, rows: int) -> Plain:
    def series(count: int) -> Plain:
        steps = [round(run["step"] * n / (count - 1)) for n in range(count)]
        losses = [run["best_val_loss"] + 3 * math.exp(-6 * n / (count - 1)) for n in range(count)]
        return {
            "step": steps, "tokens": [2048 * step for step in steps],
            "seconds": [step * run["train_seconds"] / 1000 for step in steps],
            "flops": [step * 2048 * 6 * run["parameters"] for step in steps], "loss": losses,
        }  # fmt: skip

    return {"run": number, "val": series(11), "train": series(rows)}
