"""The schemas that the files below ``conf/`` start with, in Hydra's store."""

from dataclasses import fields, make_dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import BooleanNode, DictConfig
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


AS_RUN = f"hydra.mode={RunMode.RUN.name}"  # each job of a sweep names its mode
_compose = ConfigLoaderImpl.load_configuration


def _mode_of(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """The mode that the configuration names; None if it names no mode, or is wrong.

    Hydra composes everything once to find the mode, and again to run, which is a third of the time
    that a refused command takes. Here the second composition returns or raises what the first did.
    """
    if AS_RUN in overrides:
        return RunMode.RUN
    loader: Any = self.config_loader
    typed = list(overrides)
    cfg: DictConfig | None = None
    error: Exception | None = None
    try:
        cfg = _compose(loader, config_name, typed, RunMode.RUN, validate_sweep_overrides=False)
    except Exception as raised:
        error = raised

    def again(config_name: str, overrides: list[str], run_mode: RunMode, **options: bool) -> Any:
        del loader.load_configuration  # only the next composition is the same
        added = overrides[len(typed) :]  # Hydra adds the mode if nobody typed one
        is_the_same = overrides[: len(typed)] == typed and len(added) <= 1
        if not is_the_same or (cfg is None and run_mode != RunMode.RUN):
            return _compose(loader, config_name, overrides, run_mode, **options)
        parsed = OverridesParser.create().parse_overrides(overrides)
        loader.validate_sweep_overrides_legal(parsed, run_mode, from_shell=True)
        if error is not None:
            raise error
        if added and cfg is not None:
            cfg.hydra.overrides.hydra.extend(added)
            cfg.hydra.mode = run_mode
        return cfg

    loader.load_configuration = again
    return None if cfg is None else cfg.hydra.mode


Hydra.get_mode = _mode_of  # type: ignore[method-assign]  # no hook
