"""Pictures of the live table of a sweep: python -m benchmarks.screen

Trains tiny networks on a CPU, two at a time, and kills one of them. When three have finished and
two are training, it draws the table as terminals of 80 and 120 columns show it, and stops.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME
from rich.text import Text

from llm.commands import FOLDER
from llm.config.inside import compose_training
from llm.experiment.sweep import Job, Places, run_jobs
from llm.experiment.sweep_screen import SweepScreen
from llm.experiment.watch import FINISHED, RUNNING, Watched
from llm.lock import LOCK
from llm.planning.forecast import forecast
from llm.signals import Signalled, raised

WIDTHS, HEIGHT = (80, 120), 24
SIZES = list(product((2, 4, 6, 8), (64, 96)))  # n_layer, n_embed
KILLED = 2  # the number of the job that is killed
STEPS = 300
RUN = [
    "logger=none", "model.head_size=32", "model.block_size=64", "trainer.batch_size=8",
    f"trainer.max_steps={STEPS}", "trainer.log_interval=5", "trainer.eval_interval=50",
    "trainer.eval_batches=4", "trainer.device=cpu", "memory.budget_gib=1",
]  # fmt: skip
# DejaVu Sans Mono at 20 pixels: its characters are 12 pixels wide.
SIZE, CELL_WIDTH, CELL_HEIGHT, MARGIN, DPI, COLOURS = 20, 12, 27, 24, 144, 128


def watched(overrides: list[str], folder: Path) -> Watched:
    """The job with these overrides and its forecast."""
    folder.mkdir(parents=True)
    values = dict(one.split("=", 1) for one in overrides)
    return Watched(folder, values, forecast(compose_training(*RUN, *overrides)))


def watch(screen: SweepScreen, pictures: dict[int, list[Text]]) -> None:
    """Kill one job in the middle, and take the pictures when the table has something to show."""
    victim = screen.jobs[KILLED]
    while (victim.number("step") or 0) < STEPS / 2:
        time.sleep(0.1)
    os.kill(int((victim.folder / LOCK).read_text(encoding="ascii")), signal.SIGKILL)
    while not (_count(screen, FINISHED) >= 3 and _count(screen, RUNNING, STEPS / 6) == 2):
        time.sleep(0.1)
    for width in WIDTHS:
        pictures[width] = screen.table.live(width, HEIGHT)
    os.kill(os.getpid(), signal.SIGTERM)


def _count(screen: SweepScreen, state: str, step: float = 0) -> int:
    """Jobs in ``state`` that have reached ``step``."""
    return sum(job.state == state and (job.number("step") or 0) >= step for job in screen.jobs)


def draw(lines: Sequence[Text], width: int, path: Path) -> None:
    """Draw lines of ``width`` cells as a terminal shows them."""
    columns, rows = width * CELL_WIDTH + 2 * MARGIN, len(lines) * CELL_HEIGHT + 2 * MARGIN
    figure = plt.figure(figsize=(columns / DPI, rows / DPI), dpi=DPI, facecolor=_hex(None, False))
    console = Console(width=width, color_system="truecolor")
    for row, line in enumerate(lines):
        column = 0
        for segment in console.render(line, console.options.update(no_wrap=True)):
            style = segment.style or Style()
            for word in segment.text.rstrip("\n").split(" "):
                figure.text(
                    (MARGIN + column * CELL_WIDTH) / columns,
                    1 - (MARGIN + (row + 0.75) * CELL_HEIGHT) / rows,
                    word, family="DejaVu Sans Mono", fontsize=72 * SIZE / DPI, va="baseline",
                    weight="bold" if style.bold else "normal", parse_math=False,
                    color=_hex(style.color, True, bool(style.dim)),
                )  # fmt: skip
                column += len(word) + 1
            column -= 1
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(COLOURS).save(path, optimize=True)
    plt.close(figure)


def _hex(color: Color | None, is_text: bool, is_dim: bool = False) -> str:
    """``#c5c8c6``; dim text is half-way to the background."""
    rgb = (color or Color.default()).get_truecolor(THEME, foreground=is_text)
    back = Color.default().get_truecolor(THEME, foreground=False)
    share = 0.5 if is_dim else 1.0
    mixed = (round(share * one + (1 - share) * other) for one, other in zip(rgb, back, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER / "docs", help="folder of the pictures")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "width_depth"
        jobs, views = [], []
        for number, (n_layer, n_embed) in enumerate(SIZES):
            place = folder / f"job-{number}"
            overrides = [f"model.n_layer={n_layer}", f"model.n_embed={n_embed}"]
            command = [sys.executable, str(FOLDER / "run_train.py"), *RUN, *overrides]
            jobs.append(Job(number, overrides, place, [*command, f"run.dir={place}"]))
            views.append(watched(overrides, place))
        pictures: dict[int, list[Text]] = {}
        with raised(), contextlib.suppress(Signalled), SweepScreen(views, 2, folder) as screen:
            threading.Thread(target=watch, args=(screen, pictures), daemon=True).start()
            run_jobs(jobs, Places(2), on_start=lambda job: views[job.number].started())
    for width, lines in pictures.items():
        draw(lines, width, out / f"sweep_{width}.png")


if __name__ == "__main__":
    main()
