"""Pictures of the live table of a sweep: python -m benchmarks.screen

Trains eight tiny networks on a CPU, two at a time, and kills one of them. When three have finished
and two are training, it draws the table as terminals of 80 and 120 columns show it.
"""

import argparse
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

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME
from rich.text import Text

from llm.commands import FOLDER
from llm.experiment.sweep import Job, Places, run_jobs
from llm.experiment.sweep_screen import SweepScreen
from llm.experiment.watch import FINISHED, RUNNING, Forecast, Watched
from llm.lock import LOCK

WIDTHS, HEIGHT = (80, 120), 24
STEPS, BATCH, BLOCK, VOCABULARY = 400, 8, 64, 65
SIZES = list(product((2, 4, 6, 8), (64, 96)))  # n_layer, n_embed
KILLED = 2  # the number of the job that is killed
CELL_WIDTH, CELL_HEIGHT, MARGIN = 0.602, 1.35, 1.2  # in the size of the font (DejaVu Sans Mono)
FONT_SIZE, DPI = 9.0, 150


def forecast(n_layer: int, n_embed: int) -> Forecast:
    """Roughly what is planned for a network of this size; its MLP has 8/3 n_embed units."""
    weights = VOCABULARY * n_embed + 12 * n_layer * n_embed**2
    flops = 6.0 * weights + 12.0 * n_layer * n_embed * BLOCK
    tokens = STEPS * BATCH * BLOCK
    return Forecast(weights, STEPS, tokens, None, flops, 0, 2**30, fits=True)


def command(n_layer: int, n_embed: int, folder: Path) -> list[str]:
    """The command that trains one network in ``folder``."""
    return [
        sys.executable, str(FOLDER / "run_train.py"), "logger=none", f"run.dir={folder}",
        f"model.n_layer={n_layer}", f"model.n_embed={n_embed}", "model.head_size=32",
        f"model.block_size={BLOCK}", f"trainer.batch_size={BATCH}", f"trainer.max_steps={STEPS}",
        "trainer.log_interval=5", "trainer.eval_interval=50", "trainer.eval_batches=4",
        "trainer.device=cpu",
    ]  # fmt: skip


def watch(screen: SweepScreen, pictures: dict[int, list[Text]]) -> None:
    """Kill one job in the middle, and take the pictures when the table has something to show."""
    victim = screen.jobs[KILLED]
    while (victim.number("step") or 0) < STEPS / 2:
        time.sleep(0.1)
    os.kill(int((victim.folder / LOCK).read_text(encoding="ascii")), signal.SIGKILL)
    while True:
        time.sleep(0.1)
        states = [job.state for job in screen.jobs]
        running = [job for job in screen.jobs if job.state == RUNNING and job.best]
        if states.count(FINISHED) >= 3 and len(running) == 2:
            break
    for width in WIDTHS:
        pictures[width] = screen.table.live(width, HEIGHT)


def draw(lines: Sequence[Text], width: int, path: Path) -> None:
    """Draw lines of ``width`` cells as a terminal shows them."""
    size = FONT_SIZE / 72  # inches
    columns, rows = width * CELL_WIDTH + 2 * MARGIN, len(lines) * CELL_HEIGHT + 2 * MARGIN
    figure = plt.figure(figsize=(columns * size, rows * size), facecolor=_hex(None, False))
    console = Console(width=width, color_system="truecolor")
    for row, line in enumerate(lines):
        column = 0
        for segment in console.render(line, console.options.update(no_wrap=True)):
            style = segment.style or Style()
            for word in segment.text.rstrip("\n").split(" "):
                x = (MARGIN + column * CELL_WIDTH) / columns
                y = 1 - (MARGIN + (row + 0.8) * CELL_HEIGHT) / rows
                figure.text(
                    x, y, word, family="DejaVu Sans Mono", fontsize=FONT_SIZE, va="baseline",
                    color=_hex(style.color, True, bool(style.dim)), parse_math=False,
                    weight="bold" if style.bold else "normal",
                )  # fmt: skip
                column += len(word) + 1
            column -= 1
    figure.savefig(path, dpi=DPI)
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
        jobs, watched = [], []
        for number, (n_layer, n_embed) in enumerate(SIZES):
            place = folder / f"job-{number}"
            place.mkdir(parents=True)
            jobs.append(Job(number, [], place, command(n_layer, n_embed, place)))
            values = {"model.n_layer": str(n_layer), "model.n_embed": str(n_embed)}
            watched.append(Watched(place, values, forecast(n_layer, n_embed)))
        pictures: dict[int, list[Text]] = {}
        with SweepScreen(watched, 2, folder) as screen:
            camera = threading.Thread(target=watch, args=(screen, pictures), daemon=True)
            camera.start()
            run_jobs(jobs, Places(2), on_start=lambda job: screen.started(job.folder))
    for width, lines in pictures.items():
        draw(lines, width, out / f"sweep_{width}.png")


if __name__ == "__main__":
    main()
