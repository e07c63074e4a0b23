"""Where the time of a step goes: ``profile.txt``, and ``profile.json`` for ui.perfetto.dev."""

import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from llm.disk import could_not_write

SKIPPED, WARMUP, MEASURED = 2, 2, 6  # steps: the first ones allocate; the profiler warms up too


def profiler_of(steps: int, device: torch.device, folder: Path) -> profile:
    """A context manager that profiles steps 5 to 10, or the last steps of a shorter run, and writes
    both files to ``folder``. Call its ``step`` after each of the ``steps`` steps of the run.

    Raises :class:`llm.errors.DiskError`.
    """

    def write(profiled: profile) -> None:
        key = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        table = profiled.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=60)
        path = folder / "profile.txt"
        try:
            path.write_text(table + "\n", encoding="utf-8")
            profiled.export_chrome_trace(str(folder / "profile.json"))
        except OSError as error:
            raise could_not_write(path, error) from error

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    skipped = min(SKIPPED, (steps - 1) // 2)
    warmup = min(WARMUP, steps - 1 - skipped)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Profiler won't be using warmup")  # a run of one step
        plan = schedule(wait=skipped, warmup=warmup, active=MEASURED, repeat=1)
    return profile(activities=activities, schedule=plan, on_trace_ready=write)
