"""The schemas that the files below ``conf/`` start with, in Hydra's store."""

from dataclasses import fields, make_dataclass
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import BooleanNode
from omegaconf.errors import ValidationError

from llm.settings.custom import GROUPS
from llm.settings.schema import (
    NO_KEY,
    SETTINGS,
    LoggerSection,
    MuonOptimizer,
    Optimizer,
    ScheduleSection,
)


def for_composition(schema: type) -> type:
    """``schema`` for composition: sections that may be of a custom class have any keys.

    Each built-in option of such a section starts with a schema of its own.
    """
    known = [
        (one.name, Any, None) if one.name in GROUPS else (one.name, one.type, one)
        for one in fields(schema)
        if NO_KEY not in one.metadata
    ]
    return make_dataclass(schema.__name__, known)


# Each primary config starts with its schema: see conf/train.yaml.
for _command, _schema in SETTINGS.items():
    ConfigStore.instance().store(name=f"{_command}_schema", node=for_composition(_schema))
for _option, _schema in (
    ("adamw", Optimizer), ("muon", MuonOptimizer), ("schedule", ScheduleSection),
    ("logger", LoggerSection),
):  # fmt: skip
    ConfigStore.instance().store(name=f"{_option}_schema", node=_schema)
# Hydra copies its whole store for every group that --help lists, which takes half a second. The
# store does not change after this line, so a copy may be the store itself.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]  # Hydra has none


def _strict_boolean(self: BooleanNode, value: Any) -> bool:
    if type(value) is int and value not in (0, 1):
        raise ValidationError("Value '$VALUE' must be true or false")
    return _lenient_boolean(self, value)


# OmegaConf converts any integer to a boolean: `compile: 7` in an option file would mean true.
_lenient_boolean = BooleanNode._validate_and_convert_impl
BooleanNode._validate_and_convert_impl = _strict_boolean  # type: ignore[method-assign]  # no hook


def _known_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    return RunMode.RUN if AS_RUN in overrides else _composed_mode(self, config_name, overrides)


# Hydra composes everything once to find its mode, and again to run. The jobs of a sweep name it.
AS_RUN = f"hydra.mode={RunMode.RUN.name}"
_composed_mode = Hydra.get_mode
Hydra.get_mode = _known_mode  # type: ignore[method-assign]  # no hook
