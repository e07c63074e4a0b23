"""Where the time of a step goes: ``profile.txt``, and ``profile.json`` for ui.perfetto.dev."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from llm.disk import could_not_write

SKIPPED, WARMUP, MEASURED = 2, 2, 6  # steps: the first ones allocate; the profiler warms up too
NOTHING = "trainer.profile=true measured nothing: the run ended before the step to measure"


@contextlib.contextmanager
def profiling(
    enabled: bool, steps: int, device: torch.device, folder: Path, warn: Callable[[str], object]
) -> Iterator[Callable[[], object]]:
    """Yields a function to call after each of ``steps`` steps. If ``enabled``, some early steps are
    measured and written to ``folder``; of a few steps, the last.

    Warns if the run ends before there is a step to measure. Raises :class:`llm.errors.DiskError`.
    """
    if not enabled or steps < 1:
        yield lambda: None
        if enabled:
            warn(NOTHING)
        return
    table_path = folder / "profile.txt"
    table_path.unlink(missing_ok=True)  # of the run before it was resumed

    def write(profiled: profile) -> None:
        key = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        table = profiled.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=60)
        try:
            table_path.write_text(table + "\n", encoding="utf-8")
            profiled.export_chrome_trace(str(folder / "profile.json"))
        except OSError as error:
            raise could_not_write(table_path, error) from error

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    skipped = min(SKIPPED, (steps - 1) // 2)
    warmup = min(WARMUP, steps - 1 - skipped)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Profiler won't be using warmup")  # of one step
        plan = schedule(wait=skipped, warmup=warmup, active=MEASURED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
    if not table_path.exists():
        warn(NOTHING)
