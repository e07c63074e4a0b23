"""The schemas that the files below ``conf/`` start with, in Hydra's store."""

from dataclasses import fields, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode
from omegaconf.errors import ValidationError

from llm.settings.own import GROUPS
from llm.settings.schema import (
    NO_KEY,
    SETTINGS,
    LoggerSection,
    MuonOptimizer,
    Optimizer,
    ScheduleSection,
)


def for_composition(schema: type) -> type:
    """``schema`` as Hydra's composition knows it, with any keys in the groups whose options may be
    the user's own. The files of ours there begin with schemas of their own.
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
# Hydra copies its whole store for every group that --help and completion list, which takes them a
# second. Nobody changes what is in it after this line, so the copies may be the store itself.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]  # Hydra has none


def _strict(self: BooleanNode, value: Any) -> bool:
    if type(value) is int and value not in (0, 1):
        raise ValidationError("Value '$VALUE' must be true or false")
    return _lenient(self, value)


# OmegaConf takes any whole number for a boolean: trainer.compile=7 would be true.
_lenient = BooleanNode._validate_and_convert_impl
BooleanNode._validate_and_convert_impl = _strict  # type: ignore[method-assign]
