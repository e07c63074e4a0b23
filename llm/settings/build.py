"""The one place where a section of the settings becomes an object.

A built-in section is built from a class of this package. A custom one (:mod:`llm.settings.custom`)
may name any class or function; its errors, on import or when it is called, become one line.
"""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

from llm.errors import Refused, Stop, as_stop, require
from llm.settings.custom import TARGET, Custom
from llm.settings.schema import LoggerSection, TrainSettings
from llm.training.schedule import EARLY, Horizon, Schedule
from llm.training.signature import require_arguments, takes

LOGGER_FACTS = ("folder", "config", "run_id")  # arguments that a custom logger may take
TRIED = 1000  # steps at which a custom schedule is checked before a run starts


def build(section: Any, **runtime: Any) -> Any:
    """Call the ``_target_`` of a section with its other keys and with the objects in ``runtime``.

    Raises :class:`llm.errors.Refused` if that fails for a custom section.
    """
    if isinstance(section, Custom):
        return _build_custom(section, **runtime)
    arguments = {one.name: getattr(section, one.name) for one in fields(section)}
    arguments.pop("default_head_size", None)  # it was only needed to choose head_size
    target = _imported(arguments.pop(TARGET))
    return target(**arguments, **runtime)


def _imported(name: str) -> Any:
    """The object of a dotted name: ``module.Class``, or ``module.Class.method``."""
    parent, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(parent), attribute)
    except ModuleNotFoundError as error:
        if error.name != parent or "." not in parent:
            raise
        return getattr(_imported(parent), attribute)  # the parent is a class, not a module


def locate_custom(section: Custom) -> Callable[..., Any]:
    """The class or function that a custom section names.

    Raises :class:`llm.errors.Refused` if it cannot be imported.
    """
    where = f"{section.where}: {TARGET}={section.target}"
    is_dotted = "." in section.target and all(section.target.split("."))
    require(is_dotted, f"{where} is not a dotted name, as in torch.optim.SGD")
    try:
        target: Callable[..., Any] = _imported(section.target)
    except (Exception, SystemExit) as error:
        raise Refused(f"{where} cannot be imported: {_first_line(error)}") from error
    require(callable(target), f"{where} is a {type(target).__name__}, which cannot be called")
    return target


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


@contextlib.contextmanager
def naming(section: Custom) -> Iterator[None]:
    """Turn an exception of custom code into one line that names its section."""
    try:
        yield
    except Stop:
        raise
    except Exception as error:
        raise as_stop(error) or Refused(
            f"{section.where}: {section.target}: {_first_line(error)}"
        ) from error


def _build_custom(section: Custom, **runtime: Any) -> Any:
    target = locate_custom(section)
    with naming(section):
        if section.group == "schedule":
            return CustomSchedule(section.where, target, section.arguments)
        from llm.training.custom import custom_optimizer

        return custom_optimizer(section.where, target, section.arguments, **runtime)


class CustomSchedule(Schedule):
    """A function of (step, max_steps, keys); or a class or function that is called with the keys
    and returns a function of (step, max_steps).
    """

    def __init__(self, where: str, target: Callable[..., Any], keys: dict[str, Any]) -> None:
        super().__init__(name=where, warmup_steps=0)  # the function does its own warm-up
        self.share = partial(target, **keys) if takes(target, "max_steps") else target(**keys)
        require(
            callable(self.share), f"{where} makes a {type(self.share).__name__}, not a function"
        )

    def __call__(self, step: int, max_steps: int) -> float:
        """Share of the full rate at ``step`` (1 .. max_steps)."""
        return float(self.share(step, max_steps))

    def in_time(self, step: int, max_steps: int | None, horizon: Horizon) -> float:
        """Share of the full rate at ``step`` of a run with a budget in minutes.

        Until ``max_steps`` is decided, which is after the share :data:`EARLY` of the time, each
        step has the rate of a step that is as early in its run.
        """
        return self(step, max_steps or max(TRIED, round(step / EARLY)))

    def check(self, max_steps: int | None) -> None:
        """Raise :class:`llm.errors.Refused` for a share that is negative or not finite."""
        max_steps = max_steps or TRIED
        for step in sorted({*range(1, max_steps, -(-max_steps // TRIED)), max_steps}):
            share = self(step, max_steps)
            require(
                math.isfinite(share) and share >= 0,
                f"{self.name} gives {share} at step {step} of {max_steps}: it must be a share of "
                "the full rate, 0 or more",
            )


def logger_options(settings: TrainSettings) -> LoggerSection | Custom:
    """``logger``, with ``run.note`` as W&B's notes if it has no notes of its own."""
    section = settings.logger
    if isinstance(section, Custom) or section.notes is not None:
        return section
    return replace(section, notes=settings.run.note)


def custom_logger(section: object) -> Callable[..., Any] | None:
    """A function of folder, config and run_id that starts a custom logger; None for W&B."""
    if not isinstance(section, Custom):
        return None
    target, arguments = locate_custom(section), section.arguments
    with naming(section):
        wanted = [fact for fact in LOGGER_FACTS if takes(target, fact)]
        require_arguments(target, [*arguments, *wanted])

    def start(**facts: Any) -> Any:
        return target(**arguments, **{fact: facts[fact] for fact in wanted})

    return start


def try_custom(settings: TrainSettings) -> None:
    """Raise :class:`llm.errors.Refused` for a custom schedule or logger that does not work.

    A custom optimizer is tried where its memory is measured (:mod:`llm.planning.custom_optimizer`).
    """
    if isinstance(settings.schedule, Custom):
        with naming(settings.schedule):
            build(settings.schedule).check(settings.trainer.max_steps)
    custom_logger(settings.logger)
