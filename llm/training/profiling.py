"""Where the time of a step goes: ``profile.txt``, and ``profile.json`` for ui.perfetto.dev."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile, schedule

from llm.disk import could_not_write

if TYPE_CHECKING:
    from llm.training.trainer import Trainer

SKIPPED, WARMUP, MEASURED = 2, 2, 6  # steps: the first ones allocate, and the profiler warms up too
NOTHING = "trainer.profile=true measured nothing: the run ended before the step to measure"


@contextlib.contextmanager
def profiling(trainer: "Trainer") -> Iterator[Callable[[], object]]:
    """Yields a function to call after each step. With ``trainer.profile`` some early steps are
    measured and written to the run folder; of a few steps, the last.

    Warns where the run ends before there is a step to measure. Raises
    :class:`llm.errors.DiskError`.
    """
    options, device, warn = trainer.options, trainer.device, trainer.logger.warn
    folder = trainer.checkpoints.folder.parent
    steps = 0 if options.eval_only else options.max_steps - trainer.progress.step
    if not options.profile or steps < 1:
        yield lambda: None
        if options.profile:
            warn(NOTHING)
        return
    table_path = folder / "profile.txt"
    table_path.unlink(missing_ok=True)  # that of the run before it was continued

    def write(found: profile) -> None:
        key = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        table = found.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=60)
        try:
            table_path.write_text(table + "\n", encoding="utf-8")
            found.export_chrome_trace(str(folder / "profile.json"))
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
