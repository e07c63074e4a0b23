"""A grid of overrides as checked settings, thousands of them within seconds.

Hydra takes a quarter of a second to compose one configuration. It does so here once for each
combination of group options; single values then go into copies of the plain settings. Sweeps and
``run_plan.py`` both expand their grids here.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any, Generic, TypeVar, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.compose import read_settings
from llm.config.mistakes import explained
from llm.errors import Refused, require
from llm.options import validate
from llm.planning.points import Point, label
from llm.settings.schema import TrainSettings
from llm.settings.values import leaves

MOST = 20_000  # points: a mistyped range must not take all memory
FEWER = f"take at most {MOST:,} at once"
S = TypeVar("S", bound=TrainSettings)
SHAPED = ("model", "init_from")  # what decides the shape where a run starts from other weights
Report = Callable[[int, int], None]  # called with (points checked, points in all)


class Combinations(Generic[S]):
    """All combinations of typed overrides and of a sweep file's ``params``.

    ``composed`` is what Hydra has composed without the values that vary, ``kind`` the class of the
    settings. ``outcome`` completes the sentence "job ... cannot run".
    """

    def __init__(
        self, loader: ConfigLoader, composed: DictConfig, kind: type[S], outcome: str = ""
    ) -> None:
        self.loader, self.composed, self.kind, self.outcome = loader, composed, kind, outcome
        self.families: dict[tuple[str, ...], Family[S]] = {}
        self.given: dict[str, list[Override]] = {}
        self.varied: list[str] = []

    def expand(self, params: dict[str, str], arguments: Sequence[str]) -> int:
        """Read the overrides; returns the number of combinations.

        Raises :class:`llm.errors.Refused` for a key without values and for too many combinations.
        """
        parser = OverridesParser.create(config_loader=self.loader)
        of_file = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
        # Of a key that is there twice the last counts, as in Hydra's own sweeper.
        every = [*of_file, *parser.parse_overrides(list(arguments))]
        self.is_single = not of_file and not any(one.is_sweep_override() for one in every)
        self.given = {one.get_key_element(): choices(one) for one in every}
        count = math.prod(map(len, self.given.values()))
        require(count <= MOST, f"these are {count:,} combinations: {FEWER}")
        self.varied = [key for key, options in self.given.items() if len(options) > 1]
        self.groups = [key for key in self.varied if self.is_group(self.given[key][0])]
        self.singles = [key for key in self.varied if key not in self.groups]
        return count

    def points(self, report: Report = lambda done, total: None) -> Iterator[Point[S]]:
        """Every combination, checked; :class:`llm.errors.Refused` names one that cannot work."""
        total = math.prod(map(len, self.given.values()))
        for done, one in enumerate(product(*self.given.values()), 1):
            yield self.point(dict(zip(self.given, one, strict=True)))
            report(done, total)

    def is_group(self, override: Override) -> bool:
        """Whether it chooses an option, for which Hydra reads another file."""
        return bool(self.loader.get_group_options(override.key_or_group))

    def point(self, overrides: dict[str, Override]) -> Point[S]:
        """One combination."""
        values = {key: overrides[key].get_value_element_as_str() for key in self.varied}
        typed = tuple(str(override.input_line) for override in overrides.values())
        try:
            return Point(self.settings(overrides), values, typed)
        except (Refused, HydraException, OmegaConfBaseException) as error:
            which = f"job {label(values)} cannot run{self.outcome}: " if values else ""
            raise Refused(f"{which}{explained(error) or error}") from error

    def settings(self, overrides: dict[str, Override]) -> S:
        """Its settings, from others of its family where there are some already."""
        options = tuple(str(overrides[key].input_line) for key in self.groups)
        family, settings = self.families.get(options), None
        if family is not None:
            settings = family.varied([overrides[key] for key in self.singles])
        if settings is not None:
            return settings
        # The first of its family, or one with a value that Hydra refuses, and says why.
        family = Family(self.compose(overrides), self.kind)
        self.families.setdefault(options, family)
        return family.settings

    def compose(self, overrides: dict[str, Override]) -> DictConfig:
        """What Hydra makes of one combination."""
        typed = [str(override.input_line) for override in overrides.values()]
        config = self.loader.load_sweep_config(self.composed, typed)
        # What an option says of the sweep comes too late here: the grid has been expanded.
        same = config.hydra.sweeper == self.composed.hydra.sweeper
        groups = " or ".join(f"{key}=" for key in self.groups)
        require(same, f"{groups} says what to sweep over, so it cannot vary: run one after another")
        require(not config.get("resume"), "resume= continues one run, so it cannot be swept over")
        return config


class Family(Generic[S]):
    """Points with the same option of each group. Hydra composes one of them."""

    def __init__(self, config: DictConfig, kind: type[S]) -> None:
        self.config, self.settings = config, cast(S, read_settings(config, cast(Any, kind)))
        self.head_size = config.model.head_size  # as given: null, if n_head decides
        self.converted: dict[str, Any] = {}
        every = leaves(OmegaConf.to_container(config, resolve=False))
        self.is_plain = not any(_is_reference(value) for _, value in every)

    def varied(self, overrides: Sequence[Override]) -> S | None:
        """The settings with other values, checked; None if it takes Hydra to make them."""
        if not self.is_plain or not all(map(self.is_single_value, overrides)):
            return None
        shaped = self.settings.init_from or any(o.key_or_group == "init_from" for o in overrides)
        if shaped and any(o.key_or_group.partition(".")[0] in SHAPED for o in overrides):
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
        validate(settings)
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
    """An override for each of its values; :class:`llm.errors.Refused` where it has none."""
    if not override.is_sweep_override():
        return [override]
    require(
        override.is_discrete_sweep(),
        f"{override.input_line} is a continuous range: take range(...) or choice(...)",
    )
    found: list[Override] = []
    for value in override.sweep_iterator():
        require(len(found) < MOST, f"{override.input_line} has more than {MOST:,} values: {FEWER}")
        one = replace(override, value_type=ValueType.ELEMENT, _value=value)
        one.input_line = f"{one.get_key_element()}={one.get_value_element_as_str()}"
        found.append(one)
    require(found, f"{override.input_line} has no values, so there is nothing to run")
    return found


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and "${" in value
