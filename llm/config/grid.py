"""A grid of overrides as checked settings, thousands of them within seconds.

Hydra takes a quarter of a second to compose a configuration. Here it composes one for each
combination of group options; other values go into copies of its settings. Sweeps and
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
from llm.config.verbatim import leaves, shown
from llm.errors import Refused, require
from llm.options import validate
from llm.planning.plan import label
from llm.planning.points import Point
from llm.settings.custom import Custom
from llm.settings.schema import TrainSettings

MOST = 20_000  # points: a mistyped range must not take all memory
FEWER = f"take at most {MOST:,} at once"
S = TypeVar("S", bound=TrainSettings)
Report = Callable[[int, int], None]  # called with (points checked, points in all)


class Combinations(Generic[S]):
    """All combinations of typed overrides and of a sweep file's ``params``.

    ``composed`` is the configuration without the values that vary, ``kind`` the class of the
    settings. ``outcome`` completes the sentence "job ... cannot run". Raises
    :class:`llm.errors.Refused` for a key without values and for too many combinations.
    """

    def __init__(
        self, loader: ConfigLoader, composed: DictConfig, kind: type[S],
        params: dict[str, str], arguments: Sequence[str], outcome: str = "",
    ) -> None:  # fmt: skip
        self.loader, self.composed, self.kind, self.outcome = loader, composed, kind, outcome
        parser = OverridesParser.create(config_loader=loader)
        from_file = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
        # The last override of a key counts, as in Hydra's own sweeper.
        every = [*from_file, *parser.parse_overrides(list(arguments))]
        self.is_single = not from_file and not any(one.is_sweep_override() for one in every)
        self.given = {one.get_key_element(): choices(one) for one in every}
        self.count = math.prod(map(len, self.given.values()))
        require(self.count <= MOST, f"these are {self.count:,} combinations: {FEWER}")
        self.varied = [key for key, options in self.given.items() if len(options) > 1]
        self.groups = [key for key in self.varied if self._is_group(self.given[key][0])]
        self.families: dict[tuple[str, ...], Family[S]] = {}

    def points(self, report: Report = lambda done, total: None) -> Iterator[Point[S]]:
        """Every combination, checked; :class:`llm.errors.Refused` names one that cannot work."""
        for done, one in enumerate(product(*self.given.values()), 1):
            yield self._point(dict(zip(self.given, one, strict=True)))
            report(done, self.count)

    def _is_group(self, override: Override) -> bool:
        """Whether it chooses an option of a group, for which Hydra reads another file."""
        return bool(self.loader.get_group_options(override.key_or_group))

    def _point(self, overrides: dict[str, Override]) -> Point[S]:
        values = {key: shown(overrides[key].get_value_element_as_str()) for key in self.varied}
        typed = tuple(str(override.input_line) for override in overrides.values())
        try:
            return Point(self._settings(overrides), values, typed)
        except (Refused, HydraException, OmegaConfBaseException) as error:
            job = f"job {label(values)} cannot run{self.outcome}: " if values else ""
            raise Refused(f"{job}{explained(error) or error}") from error

    def _settings(self, overrides: dict[str, Override]) -> S:
        options = tuple(str(overrides[key].input_line) for key in self.groups)
        if (family := self.families.get(options)) is not None:
            singles = [overrides[key] for key in self.varied if key not in self.groups]
            if (settings := family.varied(singles)) is not None:
                return settings
        # The first of its family, or Hydra must resolve a reference or refuse a value.
        family = Family(self._compose(overrides), self.kind)
        self.families.setdefault(options, family)
        return family.settings

    def _compose(self, overrides: dict[str, Override]) -> DictConfig:
        typed = [str(override.input_line) for override in overrides.values()]
        config = self.loader.load_sweep_config(self.composed, typed)
        # The grid has been expanded already, so an option of it cannot change the sweep.
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
        self.values: dict[str, Any] = {}  # by override, as the schema converts them
        every = leaves(OmegaConf.to_container(config, resolve=False))
        self.has_references = any(_is_reference(value) for _, value in every)

    def varied(self, overrides: Sequence[Override]) -> S | None:
        """The settings with other values, checked; None if only Hydra can make them."""
        keys = [override.key_or_group for override in overrides]
        starts = self.settings.init_from or "init_from" in keys  # and other weights give the shape
        reshaped = starts and any(key.partition(".")[0] in ("model", "init_from") for key in keys)
        if self.has_references or reshaped or not all(map(self._is_single_value, overrides)):
            return None
        settings = copy.copy(self.settings)
        for section in {key.partition(".")[0] for key in keys if "." in key}:
            setattr(settings, section, copy.copy(getattr(settings, section)))
        if settings.model is not self.settings.model:
            settings.model.head_size = self.head_size
        for override in overrides:
            section, _, name = override.key_or_group.rpartition(".")
            place = getattr(settings, section) if section else settings
            try:
                setattr(place, name, self._value(override))
            except OmegaConfBaseException:
                return None
        settings.model.settle()
        validate(settings, only={key.partition(".")[0] for key in keys})
        return settings

    def _is_single_value(self, override: Override) -> bool:
        """Whether it is a plain ``key=value`` or ``section.key=value``."""
        section, _, name = override.key_or_group.rpartition(".")
        place = getattr(self.settings, section, None) if section else self.settings
        if isinstance(place, Custom):  # its fields are not the keys of its file
            return False
        known = is_dataclass(place) and name in {field.name for field in fields(place)}
        value = override.value()
        plain = not isinstance(value, dict) and not _is_reference(value)
        return known and plain and override.type == OverrideType.CHANGE

    def _value(self, override: Override) -> Any:
        """Its value as the schema converts it: ``4`` to 4.0 for a float."""
        text, key = str(override.input_line), override.key_or_group
        if text not in self.values:
            OmegaConf.update(self.config, key, override.value(), merge=True)
            value = OmegaConf.select(self.config, key)
            is_list = OmegaConf.is_config(value)
            self.values[text] = OmegaConf.to_container(value) if is_list else value
        return self.values[text]


def choices(override: Override) -> list[Override]:
    """An override for each of its values; :class:`llm.errors.Refused` where it has none."""
    if not override.is_sweep_override():
        return [_with_value(override, override.value())] if _is_number(override) else [override]
    require(
        override.is_discrete_sweep(),
        f"{override.input_line} is a continuous range: take range(...) or choice(...)",
    )
    found: list[Override] = []
    for value in override.sweep_iterator():
        require(len(found) < MOST, f"{override.input_line} has more than {MOST:,} values: {FEWER}")
        found.append(_with_value(override, value))
    require(found, f"{override.input_line} has no values, so there is nothing to run")
    return found


def _with_value(override: Override, value: Any) -> Override:
    one = replace(override, value_type=ValueType.ELEMENT, _value=value)
    one.input_line = f"{one.get_key_element()}={one.get_value_element_as_str()}"
    return one


def _is_number(override: Override) -> bool:
    # 1e-3 is written 0.001 also where it is the only value: a job's folder keeps its name.
    return isinstance(override.value(), int | float)


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and "${" in value
