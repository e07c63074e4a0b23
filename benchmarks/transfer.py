"""Is one learning rate best at every size? python -m benchmarks.transfer --out FILE.png

Reads the runs of ``sweep=learning_rate``, over widths and over depths (docs/recipe.md has the
commands), draws the loss of each size over the learning rate, and prints what one shared rate costs
each size.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.rows import Row, write_json

SWEEPS = [Path("multirun/learning_rate"), Path("multirun/learning_rate_depth")]
Size = tuple[int, int]  # n_embed, n_layer
Losses = dict[Size, dict[float, list[float]]]  # by size and rate; one loss per seed


def read(folders: list[Path]) -> Losses:
    """Final validation losses of all finished runs in ``folders``."""
    found: Losses = defaultdict(lambda: defaultdict(list))
    for path in (path for folder in folders for path in sorted(folder.glob("*/summary.json"))):
        summary = json.loads(path.read_text(encoding="utf-8"))
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        if summary["status"] == "finished":
            size = (config["model"]["n_embed"], config["model"]["n_layer"])
            found[size][config["optimizer"]["lr"]].append(summary["val_loss"])
    return found


def seed_noise(losses: Losses) -> float:
    """Pooled standard deviation of the difference between two means over seeds."""
    points = [seeds for rates in losses.values() for seeds in rates.values()]
    variance = statistics.mean(statistics.variance(seeds) for seeds in points)
    return float((2 * variance / min(map(len, points))) ** 0.5)


def shared_rate(losses: Losses) -> float:
    """The rate with the smallest worst :func:`regret` over all sizes."""
    common = set.intersection(*(set(rates) for rates in losses.values()))
    return min(common, key=lambda rate: max(regret(rates, rate) for rates in losses.values()))


def regret(rates: dict[float, list[float]], rate: float) -> float:
    """Mean loss at ``rate`` minus the mean loss at the best rate."""
    means = {each: statistics.mean(seeds) for each, seeds in rates.items()}
    return means[rate] - min(means.values())


def draw(losses: Losses, shared: float, out: Path) -> None:
    """Draw two panels, for widths and depths, with the shared rate as a line."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=False, layout="constrained")
    depth = statistics.mode(layers for _, layers in losses)
    width = statistics.mode(embed for embed, layers in losses if layers != depth)
    groups = (
        ("width", [size for size in sorted(losses) if size[1] == depth], 0),
        ("layers", [size for size in sorted(losses) if size[0] == width], 1),
    )
    for axes, (label, sizes, place) in zip(panels, groups, strict=True):
        for size in sizes:
            rates = sorted(losses[size])
            means = [statistics.mean(losses[size][rate]) for rate in rates]
            (line,) = axes.plot(rates, means, marker="o", label=f"{label} {size[place]}")
            for rate in rates:
                seeds = losses[size][rate]
                axes.plot([rate] * len(seeds), seeds, ".", color=line.get_color(), alpha=0.4)
        axes.axvline(shared, color="grey", lw=1, ls="--")
        axes.set(xscale="log", xlabel="optimizer.lr", ylabel="validation loss")
        axes.minorticks_off()
        axes.set_xticks(sorted(losses[sizes[0]]), [f"{x:g}" for x in sorted(losses[sizes[0]])])
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Print the table in Markdown and draw the picture."""
    parser = argparse.ArgumentParser(description="Is one learning rate best at every size?")
    parser.add_argument("--folders", type=Path, nargs="+", default=SWEEPS)
    parser.add_argument("--out", type=Path, required=True, help="file of the picture")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    losses = read(arguments.folders)
    if not losses or any(len(seeds) < 2 for rates in losses.values() for seeds in rates.values()):
        parser.exit(2, "transfer: run both sweeps first, with two seeds or more for each rate\n")
    shared, noise = shared_rate(losses), seed_noise(losses)
    print(f"shared rate {shared:g}; two means differ by {noise:.4f} by chance\n")
    grid = sorted(set.union(*(set(rates) for rates in losses.values())))
    print("| n_embed | n_layer | best loss |", *(f"at {rate:g} |" for rate in grid))
    print("|---" * (3 + len(grid)) + "|")
    rows = []
    for n_embed, n_layer in sorted(losses):
        rates = losses[n_embed, n_layer]
        best = min(rates, key=lambda rate: statistics.mean(rates[rate]))
        by_seed = [a - b for a, b in zip(rates[shared], rates[best], strict=True)]
        rows.append(
            Row(
                id=f"transfer: n_embed={n_embed} n_layer={n_layer}",
                what=f"loss at its best rate, {best:g}; at {shared:g}; the difference as the ratio",
                ours=statistics.mean(rates[best]),
                other=statistics.mean(rates[shared]),
                ratio=regret(rates, shared),
                low=min(by_seed),
                high=max(by_seed),
            )
        )
        above = (f"{regret(rates, rate):+.4f} |" if rate in rates else "- |" for rate in grid)
        print(f"| {n_embed} | {n_layer} | {rows[-1].ours:.4f} |", *above)
    write_json(rows, arguments.json)
    draw(losses, shared, arguments.out)


if __name__ == "__main__":
    main()
