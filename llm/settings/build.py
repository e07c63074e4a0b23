"""The one place where a configuration becomes an object.

A section of ours is built from a class of ours. One of the user's own (:mod:`llm.settings.own`) may
name any class or function, as its file is the user's code. What goes wrong there, while it is
imported or called, is told in one line.
"""

import contextlib
import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llm.errors import Refused, Stop, as_stop, require
from llm.settings.own import Own
from llm.training.schedule import Schedule
from llm.training.signature import require_arguments, takes

if TYPE_CHECKING:
    from llm.settings.schema import TrainSettings

LOGGERS_GET = ("folder", "config", "run_id")  # if the class of a logger takes them
TRIED = 1000  # steps of a run for which a schedule of one's own is asked before it begins

NOT_BUILT = "not an argument"  # in the metadata of a field that is a setting and nothing else


def build(section: Any, **runtime: Any) -> Any:
    """Call the ``_target_`` of a section with its other keys and with the objects in ``runtime``.

    Raises :class:`llm.errors.Refused` where that cannot be done.
    """
    if isinstance(section, Own):
        return _build_own(section, **runtime)
    if is_dataclass(section) and not isinstance(section, type):
        settings = {field.name for field in fields(section) if NOT_BUILT in field.metadata}
        plain = {key: value for key, value in asdict(section).items() if key not in settings}
    else:
        plain = dict(section)
    for key, value in plain.items():
        _check_plain(key, value)
    return _of_ours(plain.pop("_target_"))(**plain, **runtime)


def _of_ours(name: str) -> Callable[..., Any]:
    """A class or function whose code is in this package."""
    require(name.startswith("llm."), f"_target_={name} is not in llm: a file of one's own may be")
    found = _located(name, f"_target_={name}")
    real = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    code = inspect.isclass(found) or inspect.isfunction(found)
    require(code and real == name, f"_target_={name} is {real}, not a class or function there")
    return found


def _check_plain(key: str, value: Any) -> None:
    if isinstance(value, dict):
        raise ValueError(f"{key} is a nested configuration: pass what it would build instead")
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str | int | float | bool | None):
            raise ValueError(f"{key}={item!r} is not a plain value")


def target_of(section: Own) -> Callable[..., Any]:
    """The class or function that a section of the user's own names."""
    return _located(section._target_, f"{section.where}: _target_={section._target_}")


def _located(name: str, where: str) -> Callable[..., Any]:
    """What a dotted name stands for; ``where`` is told in a refusal."""
    parts = name.split(".")
    require(len(parts) > 1 and all(parts), f"{where} is not a dotted name, as in torch.optim.SGD")
    try:
        found: Any = importlib.import_module(parts[0])
        for number, part in enumerate(parts[1:], 2):
            if not hasattr(found, part) and inspect.ismodule(found):
                importlib.import_module(".".join(parts[:number]))
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise Refused(f"{where} cannot be imported: {_told(error)}") from error
    require(callable(found), f"{where} is a {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]  # it can be called


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


@contextlib.contextmanager
def telling(section: Own) -> Iterator[None]:
    """What the user's code raises meanwhile, in one line."""
    try:
        yield
    except Stop:
        raise
    except Exception as error:
        raise as_stop(error) or Refused(
            f"{section.where}: {section._target_}: {_told(error)}"
        ) from error


def _build_own(section: Own, **runtime: Any) -> Any:
    target = target_of(section)
    with telling(section):
        if section.group == "schedule":
            return OwnSchedule(section.where, target, section.arguments)
        from llm.training.adapted import adapted

        return adapted(section.where, target, section.arguments, **runtime)


class OwnSchedule(Schedule):
    """A function of (step, max_steps, keys), or what a class or function makes of the keys: called
    with (step, max_steps).
    """

    def __init__(self, where: str, target: Callable[..., Any], keys: dict[str, Any]) -> None:
        super().__init__(name=where, warmup_steps=0)  # it warms up as it likes
        self.where = where
        self.share = partial(target, **keys) if takes(target, "max_steps") else target(**keys)
        require(callable(self.share), f"{where} makes a {type(self.share).__name__}, no function")

    def __call__(self, step: int, max_steps: int) -> float:
        """Share of the full rate at ``step`` (1 .. max_steps)."""
        return float(self.share(step, max_steps))

    def check(self, max_steps: int) -> None:
        """Raise :class:`llm.errors.Refused` for a share that is negative or not finite."""
        for step in sorted({*range(1, max_steps, -(-max_steps // TRIED)), max_steps}):
            share = self(step, max_steps)
            right = math.isfinite(share) and share >= 0
            require(
                right, f"{self.where} gives {share} at step {step} of {max_steps}: it must be a "
                "share of the full rate, 0 or more",
            )  # fmt: skip


def own_logger(section: object) -> Callable[..., Any] | None:
    """What makes a logger of the user's own, given folder, config and run_id; None for ours."""
    if not isinstance(section, Own):
        return None
    target = target_of(section)
    with telling(section):
        wanted = {key: None for key in LOGGERS_GET if takes(target, key)}
        require_arguments(target, section.arguments | wanted)

    def start(**of_run: Any) -> Any:
        found = {key: value for key, value in of_run.items() if key in wanted}
        return target(**section.arguments, **found)

    return start


def try_own(settings: "TrainSettings") -> None:
    """Raise :class:`llm.errors.Refused` for a schedule or logger of one's own that does not work.

    An optimizer is tried where its memory is measured (:mod:`llm.planning.probe`).
    """
    if isinstance(settings.schedule, Own):
        schedule = build(settings.schedule)
        with telling(settings.schedule):
            schedule.check(settings.trainer.max_steps)
    own_logger(settings.logger)
