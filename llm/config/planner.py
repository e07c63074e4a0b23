"""``run_plan.py``: all points of a grid as checked settings, a thousand of them within a second.

Hydra takes a quarter of a second to compose a configuration. It does so here once for each
combination of group options; single values then go into copies of the plain settings.
"""

import copy
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from llm.config import launcher  # noqa: F401  (makes the package hydra_plugins)
from llm.config.mistakes import one_line
from llm.config.schema import PlanSettings
from llm.config.settings import read_settings
from llm.config.verbatim import leaves
from llm.errors import Refused, require

PLUGIN = "hydra_plugins.llm_plan"
MOST = 20_000  # points: a mistyped range must not take all memory


@dataclass(frozen=True)
class Point:
    """The settings of one combination, and the values of what varies between all of them."""

    settings: PlanSettings
    values: dict[str, str]  # as one would type them

    @property
    def label(self) -> str:
        """``model.n_layer=4 model.n_embed=384``"""
        return label(self.values)


def label(values: dict[str, str]) -> str:
    """The overrides that give ``values``."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def as_points(main: Callable[[list[Point]], None]) -> Callable[[Any], None]:
    """For the function below ``@hydra.main``: what the sweeper hands over, or with hydra.mode=RUN a
    configuration, as a list of points.
    """

    @functools.wraps(main)
    def inner(given: Any) -> None:
        main(given if isinstance(given, list) else [Point(read_settings(given, PlanSettings), {})])

    return inner


class Planner(Sweeper):
    """All combinations at once, for a main function that takes a list of points."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what :meth:`sweep` needs; called by Hydra once."""
        self.loader, self.plan = hydra_context.config_loader, task_function
        self.composed = config
        self.families: dict[tuple[str, ...], Family] = {}

    def sweep(self, arguments: list[str]) -> Any:
        """Call the main function with all points."""
        return self.plan(self.points(arguments))

    def points(self, arguments: list[str]) -> list[Point]:
        """All combinations of ``arguments`` and of a sweep file's; :class:`llm.errors.Refused` with
        its overrides for one that cannot work.
        """
        parser = OverridesParser.create(config_loader=self.loader)
        of_file = parser.parse_overrides([f"{key}={value}" for key, value in self.params.items()])
        typed = parser.parse_overrides(arguments)
        if not of_file and not any(override.is_sweep_override() for override in typed):
            HydraConfig.instance().set_config(self.composed)  # resume= asks what was typed
            return [Point(read_settings(_without_hydra(self.composed), PlanSettings), {})]
        # Of a key that is there twice the last counts, as in Hydra's own sweeper.
        given = {one.get_key_element(): choices(one) for one in [*of_file, *typed]}
        count = math.prod(map(len, given.values()))
        require(count, "a range or choice is empty: there is nothing to plan")
        require(count <= MOST, f"these are {count:,} combinations: plan at most {MOST:,} at once")
        self.varied = {key for key, options in given.items() if len(options) > 1}
        self.groups = {key for key in self.varied if self.is_group(given[key][0])}
        return [self.point(dict(zip(given, one, strict=True))) for one in product(*given.values())]

    def is_group(self, override: Override) -> bool:
        """Whether it chooses an option, for which Hydra reads another file."""
        return bool(self.loader.get_group_options(override.key_or_group))

    def point(self, overrides: dict[str, Override]) -> Point:
        """One combination."""
        values = {
            key: override.get_value_element_as_str()
            for key, override in overrides.items()
            if key in self.varied
        }
        try:
            return Point(self.settings(overrides), values)
        except (Refused, HydraException, OmegaConfBaseException) as error:
            which = f"job {label(values)} cannot run: " if values else ""
            raise Refused(f"{which}{one_line(error)}") from error

    def settings(self, overrides: dict[str, Override]) -> PlanSettings:
        """Its settings, from others of its family where there are some already."""
        options = tuple(str(overrides[key].input_line) for key in self.groups)
        family, settings = self.families.get(options), None
        if family is not None:
            settings = family.varied([overrides[key] for key in self.varied - self.groups])
        if settings is None:  # also where a value is refused, for Hydra to say why
            family = Family(self.compose(list(overrides.values())))
            self.families.setdefault(options, family)
            settings = family.settings
        return settings

    def compose(self, overrides: Sequence[Override]) -> DictConfig:
        """What Hydra makes of one combination."""
        typed = [str(override.input_line) for override in overrides]
        config = _without_hydra(self.loader.load_sweep_config(self.composed, typed))
        require(not config.get("resume"), "resume= continues one run: plan it without a grid")
        return config


class Family:
    """Points with the same option of each group, of which Hydra has composed one."""

    def __init__(self, config: DictConfig) -> None:
        self.config, self.settings = config, read_settings(config, PlanSettings)
        self.head_size = config.model.head_size  # as given: null, if n_head decides
        self.converted: dict[str, Any] = {}
        every = leaves(OmegaConf.to_container(config, resolve=False))
        self.is_plain = not any(_is_reference(value) for _, value in every)

    def varied(self, overrides: Sequence[Override]) -> PlanSettings | None:
        """The settings with other values, checked; None if it takes Hydra to make them."""
        if not self.is_plain or not all(map(self.is_single_value, overrides)):
            return None
        settings = copy.copy(self.settings)
        copied: set[str] = set()
        for override in overrides:
            *sections, name = override.key_or_group.split(".")
            place: Any = settings
            for section in sections:
                if section not in copied:
                    copied.add(section)
                    setattr(settings, section, copy.copy(getattr(settings, section)))
                    if section == "model":
                        settings.model.head_size = self.head_size
                place = getattr(settings, section)
            try:
                setattr(place, name, self.value(override))
            except OmegaConfBaseException:
                return None
        settings.model.settle()
        settings.check()
        return settings

    def is_single_value(self, override: Override) -> bool:
        """Whether it is a plain ``key=value`` or ``section.key=value``."""
        *sections, name = override.key_or_group.split(".")
        place: Any = self.settings
        if sections:
            place = getattr(place, sections[0], None)
        known = is_dataclass(place) and name in {field.name for field in fields(place)}
        value = override.value()
        plain = not isinstance(value, dict) and not _is_reference(value)
        return known and plain and len(sections) < 2 and override.type == OverrideType.CHANGE

    def value(self, override: Override) -> Any:
        """Its value as the schema has it: ``4`` as 4.0 for a float, and so on."""
        text, key = str(override.input_line), override.key_or_group
        if text not in self.converted:
            OmegaConf.update(self.config, key, override.value(), merge=True)
            value = OmegaConf.select(self.config, key)
            self.converted[text] = (
                OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            )
        return self.converted[text]


def choices(override: Override) -> list[Override]:
    """An override for each of its values."""
    if not override.is_sweep_override():
        return [override]
    require(
        override.is_discrete_sweep(),
        f"{override.input_line} has no end of values: take range(...) or choice(...)",
    )
    found = []
    for value in override.sweep_iterator():
        one = replace(override, value_type=ValueType.ELEMENT, _value=value)
        one.input_line = f"{one.get_key_element()}={one.get_value_element_as_str()}"
        found.append(one)
    return found


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config


def _register() -> None:
    sys.modules[PLUGIN] = sys.modules[__name__]
    Planner.__module__ = PLUGIN
    Plugins.instance().register(Planner)


_register()
