"""What each part of the fast recipe is worth: python -m benchmarks.ablation [--json FILE]

Trains ``experiment=fast`` with one change at a time, three seeds each (conf/sweep/ablation.yaml),
and prints how much each change raises the validation loss. Finished runs are not repeated, so the
command can be interrupted and started again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.rows import Row, write_json

COMMAND = [sys.executable, "run_train.py", "-m", "sweep=ablation", "experiment=fast"]
FOLDER = Path("multirun/ablation")
CHANGES = [
    "model.smear=0",
    "model.smear=1",
    "model.residual_scalars=false",
    "model.tie_embeddings=true",
    "model.qk_norm=false",
    "model.mlp=relu2",
    "model.mlp=gelu",
    "optimizer=adamw optimizer.lr=1e-3 schedule.warmup_steps=20",
    "optimizer=adamw optimizer.lr=2e-3 schedule.warmup_steps=20",
    "optimizer=adamw optimizer.lr=4e-3 schedule.warmup_steps=20",
    "optimizer=adamw optimizer.lr=8e-3 schedule.warmup_steps=20",
    "optimizer.ns_steps=3",
    "optimizer.momentum=0.95",
    "optimizer.weight_decay=0.1",
    "schedule=cosine",
    "schedule.cooldown_fraction=0.2",
    "schedule.cooldown_fraction=1.0",
    "schedule.warmup_steps=20",
    "trainer.grad_clip=0",
]


def losses(change: str) -> list[float]:
    """Final validation losses of the recipe with ``change``, one per seed; trains missing runs."""
    name = change.replace(" ", "+") or "recipe"
    folder = FOLDER.with_name(f"{FOLDER.name}-{''.join(c if c.isalnum() else '-' for c in name)}")
    subprocess.run([*COMMAND, f"run.sweep={folder.name}", *change.split()], check=True)
    summaries = sorted(folder.glob("*/summary.json"))
    return [float(json.loads(path.read_text(encoding="utf-8"))["val_loss"]) for path in summaries]


def main() -> None:
    """Train the missing runs, then print the table in Markdown."""
    parser = argparse.ArgumentParser(description="What each part of the fast recipe is worth")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", help="only changes that contain this text")
    arguments = parser.parse_args()
    recipe = losses("")
    middle = statistics.mean(recipe)
    rows = []
    for change in ["", *CHANGES]:
        if arguments.only and arguments.only not in change:
            continue
        found = losses(change) if change else recipe
        differences = sorted(a - b for a, b in zip(found, recipe, strict=True))  # seed by seed
        rows.append(
            Row(
                id=f"ablation: {change or 'experiment=fast'}",
                what=f"validation loss, {len(found)} seeds; ratio is the difference",
                ours=middle,
                other=statistics.mean(found),
                ratio=statistics.mean(differences),
                low=differences[0],
                high=differences[-1],
            )
        )
    print("| change | val loss | difference | spread |\n|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row.ratio):
        change = row.id.removeprefix("ablation: ")
        print(
            f"| `{change}` | {row.other:.4f} | {row.ratio:+.4f} | "
            f"{row.low:+.4f} to {row.high:+.4f} |"
        )
    write_json(rows, arguments.json)


if __name__ == "__main__":
    main()
