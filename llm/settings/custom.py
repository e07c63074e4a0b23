"""Custom options: files below ``--config-dir`` whose ``_target_`` may be any class.

Option files are trusted as the user's own code, as in every Hydra project. Nothing else may name a
class: no run folder, checkpoint or dataset, and no argument on the command line.
"""

from dataclasses import dataclass
from typing import Any

from llm.errors import require

GROUPS = ("optimizer", "schedule", "logger")  # the groups that may have custom options
TARGET, OPTION = "_target_", "option"


@dataclass
class Custom:
    """A section from a user's file."""

    group: str
    option: str  # the name of the file, which config.yaml records
    target: str  # the dotted name of a class or function
    arguments: dict[str, Any]  # the other keys of the file

    @property
    def where(self) -> str:
        """``optimizer=sgd``"""
        return f"{self.group}={self.option}"

    def plain(self) -> dict[str, Any]:
        """The section for ``config.yaml``, without the name of the class."""
        return {OPTION: self.option, **self.arguments}


def custom_section(group: str, option: str, values: dict[Any, Any]) -> Custom:
    """The section of an option file that does not begin with a built-in schema.

    Raises :class:`llm.errors.Refused` if it names no class, or holds values that ``config.yaml``
    cannot hold.
    """
    where = f"{group}={option}"
    target = values.get(TARGET)
    require(
        isinstance(target, str),
        f"{where}: its file names no {TARGET}; name a class, or begin with a built-in option, as "
        f"in `defaults: [{'wandb' if group == 'logger' else 'adamw'}, _self_]`",
    )
    require(OPTION not in values, f"{where}: the key '{OPTION}' is reserved: take another name")
    arguments = {key: value for key, value in values.items() if key != TARGET}
    _require_plain(group, arguments)
    return Custom(group, option, str(target), arguments)


def _require_plain(key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            named = isinstance(name, str) and not name.startswith("_")
            require(named, f"{key} has the key {name!r}: only the section itself names a class")
            _require_plain(f"{key}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            _require_plain(key, item)
    else:
        plain = isinstance(value, str | int | float | None)
        require(plain, f"{key}: {value!r:.60} is not a text, a number, true, false or null")


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
        if isinstance(section, Custom):
            continue
        require(
            section._target_.startswith("llm."),
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
