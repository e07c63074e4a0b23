"""Where the time of a step goes: ``profile.txt``, and ``profile.json`` for ui.perfetto.dev."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED, WARMUP, MEASURED = 2, 2, 6  # steps: the first ones allocate, and the profiler warms up too


@contextlib.contextmanager
def profiling(folder: Path | None, device: torch.device) -> Iterator[Callable[[], object]]:
    """What to call after each step; a few early ones are measured and written to ``folder``."""
    if folder is None:
        yield lambda: None
        return

    def write(found: profile) -> None:
        found.export_chrome_trace(str(folder / "profile.json"))
        key = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        table = found.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=60)
        (folder / "profile.txt").write_text(table + "\n", encoding="utf-8")

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    steps = schedule(wait=SKIPPED, warmup=WARMUP, active=MEASURED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
