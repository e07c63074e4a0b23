"""Draw the losses of runs: python -m benchmarks.curve RUN_FOLDER [RUN_FOLDER ...] --out FILE.png"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read(folder: Path, key: str) -> tuple[list[int], list[float]]:
    """Tokens and values of the rows of ``metrics.jsonl`` that have ``key``."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
    found = [(row["tokens"], row[key]) for row in rows if row.get(key) is not None]
    return [tokens for tokens, _ in found], [value for _, value in found]


def main() -> None:
    """Draw training losses as thin and validation losses as thick lines, one colour per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for number, run in enumerate(arguments.runs):
        label = f"{run.name}: " if len(arguments.runs) > 1 else ""
        color = f"C{number}"
        tokens, losses = read(run, "train/loss")
        axes.plot(tokens, losses, color=color, alpha=0.35, lw=1, label=f"{label}training")
        tokens, losses = read(run, "val/loss")
        best = f"{label}validation, {min(losses):.3f} at best"
        axes.plot(tokens, losses, color=color, lw=2, marker="o", markersize=3, label=best)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
