"""Custom options: files below ``--config-dir`` whose ``_target_`` may be any class.

Option files are the user's code, as in every Hydra project. Nothing else names code: no run folder,
no checkpoint, no dataset, and no argument on the command line.
"""

import keyword
from dataclasses import asdict, dataclass, make_dataclass
from typing import Any, ClassVar

from llm.errors import require

GROUPS = ("optimizer", "schedule", "logger")  # those that may have custom options
TARGET, OPTION = "_target_", "option"
RESERVED = ("cross_check", "arguments", "where", "group", OPTION)  # attributes of a section


@dataclass
class Custom:
    """A section from a user's file; the keys of the file are the fields of a subclass."""

    _target_: str
    option: str  # the file's name, by which a run is continued
    group: ClassVar[str] = ""

    @property
    def where(self) -> str:
        """``optimizer=sgd``"""
        return f"{self.group}={self.option}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the class."""
        return {key: value for key, value in asdict(self).items() if key not in (TARGET, OPTION)}


def custom_section(group: str, option: str, values: dict[Any, Any]) -> Custom:
    """The section of an option file that does not begin with a built-in schema.

    Raises :class:`llm.errors.Refused` if it names no class, or has a key that is no argument.
    """
    where = f"{group}={option}"
    target = values.get(TARGET)
    require(
        isinstance(target, str),
        f"{where}: its file names no {TARGET}; name a class, or begin with a built-in option, as "
        f"in `defaults: [{'wandb' if group == 'logger' else 'adamw'}, _self_]`",
    )
    keys = {key: value for key, value in values.items() if key != TARGET}
    for key, value in keys.items():
        named = isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
        require(named, f"{where}: the key {key!r} is not the name of an argument")
        free = key not in RESERVED and not key.startswith("_")
        require(free, f"{where}: the key {key!r} is reserved here: take another name")
        _require_plain(f"{group}.{key}", value)
    made = make_dataclass(
        "CustomSection", [(key, Any) for key in keys], bases=(Custom,), namespace={"group": group}
    )
    section: Custom = made(target, option, **keys)
    return section


def _require_plain(key: str, value: Any) -> None:
    """Allow a plain value, a list or a section of them: the values that config.yaml can hold."""
    if isinstance(value, dict):
        for name in value:
            named = isinstance(name, str) and not name.startswith("_")
            require(named, f"{key} has the key {name!r}: only the section itself names a class")
    items = list(value.values()) if isinstance(value, dict) else value
    for item in items if isinstance(items, list) else [items]:
        plain = isinstance(item, str | int | float | None)
        require(plain, f"{key}: {item!r:.60} is not a text, a number, true, false or null")


def state_bits(optimizer: Any) -> int:
    """Bits of each number in AdamW's running means; 32 for a custom optimizer."""
    return 32 if isinstance(optimizer, Custom) else int(optimizer.state_bits)


def uses_wandb(logger: Any) -> bool:
    """Whether W&B is imported for a ``logger/`` section."""
    return not isinstance(logger, Custom) and logger.mode != "disabled"


def check_targets(settings: Any) -> None:
    """Raise :class:`llm.errors.Refused` for a class that does not fit its section."""
    for name in ("model", "optimizer", "schedule", "trainer"):
        section = getattr(settings, name)
        require(
            isinstance(section, Custom) or section._target_.startswith("llm."),
            f"{name}._target_={section._target_} does not have the keys of this built-in option: "
            "docs/extending.md shows how to add a custom one",
        )
    if isinstance(settings.optimizer, Custom):
        where = settings.optimizer.where
        require(
            not settings.trainer.step_in_backward,
            f"trainer.step_in_backward=true updates one weight at a time, which the custom {where} "
            "cannot: take a built-in optimizer, or leave it out",
        )
        require(
            settings.precision.name != "bf16_weights",
            "precision=bf16_weights needs an optimizer that rounds stochastically, which the "
            f"custom {where} does not: take precision=bf16",
        )
