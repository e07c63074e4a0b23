"""Options of the user's own: files below ``--config-dir`` whose ``_target_`` may be any class.

Option files are the user's code, as in every Hydra project. Nothing else names code: no run folder,
no checkpoint, no dataset, and no argument on the command line.
"""

import keyword
from dataclasses import asdict, dataclass, make_dataclass
from typing import Any, ClassVar

from llm.errors import require

NOT_BUILT = "not an argument"  # in the metadata of a field that is a setting and nothing else
GROUPS = ("optimizer", "schedule", "logger")  # whose options may be the user's own
TARGET, OPTION = "_target_", "option"
RESERVED = ("cross_check", "arguments", "where", "group", OPTION)  # no keys of a file


@dataclass
class Own:
    """A section from a file of the user's; its keys are the fields of a subclass."""

    _target_: str
    option: str  # the file's name, by which a run is continued
    group: ClassVar[str] = ""

    @property
    def where(self) -> str:
        """``optimizer=sgd``"""
        return f"{self.group}={self.option}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the class is called with."""
        return {key: value for key, value in asdict(self).items() if key not in (TARGET, OPTION)}


def own_section(group: str, option: str, values: dict[Any, Any]) -> Own:
    """The section of an option that does not begin with a schema of ours.

    Raises :class:`llm.errors.Refused` for a file that names no class, and for keys that no class
    could be called with.
    """
    where = f"{group}={option}"
    target = values.get(TARGET)
    require(
        isinstance(target, str),
        f"{where}: its file names no {TARGET}; name a class, or begin with one of our options, as "
        f"in `defaults: [{'wandb' if group == 'logger' else 'adamw'}, _self_]`",
    )
    keys = {key: value for key, value in values.items() if key != TARGET}
    for key, value in keys.items():
        named = isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
        require(named, f"{where}: the key {key!r} is not the name of an argument")
        free = key not in RESERVED and not key.startswith("_")
        require(free, f"{where}: the key {key!r} has a meaning of its own here: take another name")
        _require_plain(f"{group}.{key}", value)
    made = make_dataclass(
        "OwnSection", [(key, Any) for key in keys], bases=(Own,), namespace={"group": group}
    )
    section: Own = made(target, option, **keys)
    return section


def state_bits(optimizer: Any) -> int:
    """Bits of AdamW's running means, if it has them; another class keeps what it keeps."""
    return 32 if isinstance(optimizer, Own) else int(optimizer.state_bits)


def uses_wandb(logger: Any) -> bool:
    """Whether W&B is imported for a ``logger/`` section."""
    return not isinstance(logger, Own) and logger.mode != "disabled"


def check_targets(settings: Any) -> None:
    """Raise :class:`llm.errors.Refused` for a class that cannot be what a section asks for."""
    for name in ("model", "optimizer", "schedule", "trainer"):
        section = getattr(settings, name)
        require(
            isinstance(section, Own) or section._target_.startswith("llm."),
            f"{name}._target_={section._target_} is not a class of llm, whose keys this option "
            "has: docs/extending.md shows how to add one's own",
        )
    if isinstance(settings.optimizer, Own):
        own = settings.optimizer.where
        require(
            not settings.trainer.step_in_backward,
            f"trainer.step_in_backward=true updates one weight at a time, which {own} cannot: "
            "take one of ours, or leave it out",
        )
        require(
            settings.precision.name != "bf16_weights",
            f"precision=bf16_weights needs an optimizer that rounds as ours do, and {own} is one "
            "of your own: take precision=bf16",
        )


def _require_plain(key: str, value: Any) -> None:
    """A value, or a list or a section of values: what ``config.yaml`` can give back."""
    inside = [value]
    if isinstance(value, list):
        inside = value
    elif isinstance(value, dict):
        for name in value:
            named = isinstance(name, str) and not name.startswith("_")
            require(named, f"{key} has the key {name!r}: only the section itself names a class")
        inside = list(value.values())
    for item in inside:
        plain = isinstance(item, str | int | float | None)
        large = isinstance(item, int) and abs(item) >= 2**63
        require(
            plain and not large, f"{key}: {item!r:.60} is not a text, a number, true, false or null"
        )
