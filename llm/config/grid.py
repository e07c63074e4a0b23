"""A grid of overrides as checked settings, thousands of them within seconds.

Hydra takes a quarter of a second to compose a configuration. Here it composes one for each
combination of group options; all other values are set in copies of its settings. Sweeps and
``run_plan.py`` both expand their grids here.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from itertools import chain, islice, product
from typing import Any, Generic, TypeVar, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Override,
    OverrideType,
    RangeSweep,
    Sweep,
    ValueType,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.compose import read_settings
from llm.config.mistakes import explained
from llm.config.verbatim import displayed, quote_param
from llm.config.zipped import axes, refuse_shuffled, zip_groups
from llm.errors import Refused, require
from llm.options import validate
from llm.planning.plan import label
from llm.planning.points import Point
from llm.settings.custom import Custom
from llm.settings.schema import TrainSettings

MAX_POINTS = 20_000  # a mistyped range must not fill the memory
FEWER = f"take at most {MAX_POINTS:,} at once"
S = TypeVar("S", bound=TrainSettings)
Report = Callable[[int, int], None]  # called with (points checked, points in all)


class Combinations(Generic[S]):
    """All combinations of the typed overrides and the ``params`` of a sweep file.

    The keys of a group that ``hydra.sweeper.zip`` names take their values together: the first of
    each, then the second. ``composed`` is the configuration without the values that vary, ``kind``
    the class of the settings. ``outcome`` is added to the message "job ... cannot run". Raises
    :class:`llm.errors.Refused` for a key without values, for a group that cannot advance together
    and for too many combinations.
    """

    def __init__(
        self, loader: ConfigLoader, composed: DictConfig, kind: type[S],
        params: dict[str, str], arguments: Sequence[str], outcome: str = "",
    ) -> None:  # fmt: skip
        self.loader, self.composed, self.kind, self.outcome = loader, composed, kind, outcome
        parser = OverridesParser.create(config_loader=loader)
        from_file = parser.parse_overrides([quote_param(*param) for param in params.items()])
        overrides = [*from_file, *parser.parse_overrides(list(arguments))]
        self.is_single = not from_file and not any(one.is_sweep_override() for one in overrides)
        lists = [one for one in overrides if one.is_sweep_override()]
        self.swept = [one.get_key_element() for one in [*from_file, *lists]]
        # The last override of a key wins, as in Hydra's own sweeper.
        self.choices = {one.get_key_element(): choices(one) for one in overrides}
        typed = {one.get_key_element() for one in overrides[len(from_file) :]}
        groups = zip_groups(composed.hydra.sweeper)
        refuse_shuffled(overrides, groups)
        self.axes = axes(self.choices, groups, typed)
        self.count = math.prod(map(len, self.axes))
        require(self.count <= MAX_POINTS, f"these are {self.count:,} combinations: {FEWER}")
        self.varied = [key for key, values in self.choices.items() if len(values) > 1]
        # For these keys Hydra reads another file.
        self.groups = [
            key for key in self.varied
            if loader.get_group_options(self.choices[key][0].key_or_group)
        ]  # fmt: skip
        self.templates: dict[tuple[str, ...], Template[S]] = {}  # by the options of these groups

    def points(self, report: Report = lambda done, total: None) -> Iterator[Point[S]]:
        """Every combination, checked; :class:`llm.errors.Refused` names one that cannot work."""
        for done, combination in enumerate(product(*self.axes), 1):
            yield self._point(dict(chain.from_iterable(combination)))
            report(done, self.count)

    def _point(self, overrides: dict[str, Override]) -> Point[S]:
        values = {key: displayed(overrides[key].get_value_element_as_str()) for key in self.varied}
        typed = tuple(str(override.input_line) for override in overrides.values())
        try:
            return Point(self._settings(overrides), values, typed)
        except (Refused, HydraException, OmegaConfBaseException) as error:
            job = f"job {label(values)} cannot run{self.outcome}: " if values else ""
            cause = explained(error) or error
            key, suggestions = getattr(cause, "key", None), getattr(cause, "suggestions", ())
            raise Refused(f"{job}{cause}", key=key, suggestions=suggestions) from error

    def _settings(self, overrides: dict[str, Override]) -> S:
        options = tuple(str(overrides[key].input_line) for key in self.groups)
        if options in self.templates:
            values = [overrides[key] for key in self.varied if key not in self.groups]
            if (settings := self.templates[options].with_values(values)) is not None:
                return settings
        composed = Template(self._compose(overrides), self.kind)
        self.templates.setdefault(options, composed)
        return composed.settings

    def _compose(self, overrides: dict[str, Override]) -> DictConfig:
        typed = [str(override.input_line) for override in overrides.values()]
        config = self.loader.load_sweep_config(self.composed, typed)
        # The grid is expanded by now, too late for an option that changes the sweep.
        same = config.hydra.sweeper == self.composed.hydra.sweeper
        groups = " or ".join(f"{key}=" for key in self.groups)
        require(same, f"{groups} says what to sweep over, so it cannot vary: run one after another")
        require(not config.get("resume"), "resume= continues one run, so it cannot be swept over")
        return config


class Template(Generic[S]):
    """Settings that Hydra has composed. Points with the same options of groups are copies."""

    def __init__(self, config: DictConfig, kind: type[S]) -> None:
        self.config, self.settings = config, cast(S, read_settings(config, cast(Any, kind)))
        self.head_size = config.model.head_size  # before settle(): null if n_head decides
        self.values: dict[str, Any] = {}  # cache: the converted value of each override
        self.has_references = "${" in OmegaConf.to_yaml(config)

    def with_values(self, overrides: Sequence[Override]) -> S | None:
        """The settings with other values, checked; None if only Hydra can compose them."""
        keys = [override.key_or_group for override in overrides]
        # The weights of init_from may change the shape of the network.
        from_weights = self.settings.init_from or "init_from" in keys
        reshaped = from_weights and any(key.startswith(("model.", "init_from")) for key in keys)
        if self.has_references or reshaped or not all(map(self._is_plain_value, overrides)):
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

    def _is_plain_value(self, override: Override) -> bool:
        """Whether the override is a plain ``key=value``, without a reference or a dict."""
        section, _, name = override.key_or_group.rpartition(".")
        place = getattr(self.settings, section, None) if section else self.settings
        if isinstance(place, Custom):  # its fields are not the keys of its file
            return False
        known = is_dataclass(place) and name in {field.name for field in fields(place)}
        value = override.value()
        is_reference = isinstance(value, str) and "${" in value
        plain = not isinstance(value, dict) and not is_reference
        return known and plain and override.type == OverrideType.CHANGE

    def _value(self, override: Override) -> Any:
        """The value as the schema converts it: ``4`` to 4.0 for a float."""
        text, key = str(override.input_line), override.key_or_group
        if text not in self.values:
            OmegaConf.update(self.config, key, override.value(), merge=True)
            value = OmegaConf.select(self.config, key)
            is_list = OmegaConf.is_config(value)
            self.values[text] = OmegaConf.to_container(value) if is_list else value
        return self.values[text]


def choices(override: Override) -> list[Override]:
    """An override for each value of a sweep; :class:`llm.errors.Refused` if it has none."""
    if not override.is_sweep_override():
        # 1e-3 becomes 0.001 here as well as in a sweep: the folder of a job keeps its name.
        is_number = isinstance(override.value(), int | float)
        return [_with_value(override, override.value())] if is_number else [override]
    typed, value = override.input_line, override.value()
    is_discrete = override.is_discrete_sweep()
    require(is_discrete, f"{typed} is a continuous range: take range(...) or choice(...)")
    if isinstance(value, RangeSweep):
        override = replace(override, _value=_exact(value, str(typed)))
    nested = isinstance(value, ChoiceSweep) and any(isinstance(one, Sweep) for one in value.list)
    require(
        not nested, f"{typed}: a range or choice cannot be one of several values: list them all"
    )
    values = list(islice(override.sweep_iterator(), MAX_POINTS + 1))
    require(len(values) <= MAX_POINTS, f"{typed} has more than {MAX_POINTS:,} values: {FEWER}")
    require(values, f"{typed} has no values, so there is nothing to run")
    return [_with_value(override, one) for one in values]


def _exact(given: RangeSweep, typed: str) -> RangeSweep:
    """The range in decimal arithmetic: range(0.1,0.4,0.1) is 0.1, 0.2 and 0.3, without 0.4."""
    numbers = [given.start, given.stop, given.step]
    is_range = all(number is not None and math.isfinite(number) for number in numbers)
    require(is_range and given.step, f"{typed} must be range(FIRST,END,STEP), STEP not 0")
    if all(isinstance(number, int) for number in numbers):
        return given
    start, stop, step = (cast(float, Decimal(str(number))) for number in numbers)
    return replace(given, start=start, stop=stop, step=step)


def _with_value(override: Override, value: Any) -> Override:
    one = replace(override, value_type=ValueType.ELEMENT, _value=value)
    one.input_line = f"{one.get_key_element()}={one.get_value_element_as_str()}"
    return one
