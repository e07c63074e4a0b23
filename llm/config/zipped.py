"""Values that belong together: ``zip=model.n_layer,model.n_embed`` pairs each depth with a width.

The keys of a group advance through their values together. Groups and all other keys still form
every combination.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from llm.errors import Refused, require
from llm.settings.keys import is_key, suggestion

FROM_FILE, TYPED = "zip", "zip_typed"  # keys of hydra.sweeper; zip=a,b is stored in the second
PAIR = "model.n_layer,model.n_embed"  # for messages
Step = list[tuple[str, Override]]  # the keys that advance together, each with its next value


def without_short_form(overrides: Sequence[str], is_sweep: bool) -> list[str]:
    """The overrides with every ``zip=a,b`` as an override of Hydra's section.

    Raises :class:`llm.errors.Refused` for ``zip=`` outside a sweep, or with fewer than two keys.
    """
    typed = [one for one in overrides if one.startswith("zip=")]
    if not typed:
        return list(overrides)
    require(is_sweep, f"{typed[0]} pairs the values of a sweep: add -m")
    groups = [one.removeprefix("zip=").strip("[]").split(",") for one in typed]
    for shown, group in zip(typed, groups, strict=True):
        _require_two_keys(shown, group)
    others = [one for one in overrides if one not in typed]
    lists = ",".join(f"[{','.join(group)}]" for group in groups)
    return [*others, f"hydra.sweeper.{TYPED}=[{lists}]"]


def zip_groups(sweeper: Any) -> list[list[str]]:
    """The groups of keys in ``sweeper``, Hydra's section: of the sweep file, and of ``zip=``.

    Raises :class:`llm.errors.Refused` if they are not lists of two keys or more.
    """
    found: list[list[str]] = []
    for name in (FROM_FILE, TYPED):
        given = sweeper.get(name)
        if given is None:
            continue
        groups: Any = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
        shown = f"hydra.sweeper.{name}={groups}"
        is_list = isinstance(groups, list) and all(isinstance(group, list) for group in groups)
        require(is_list and groups, f"{shown} must be a list of groups of keys, as in [[{PAIR}]]")
        for group in groups:
            _require_two_keys(shown, group)
        found += groups
    return found


def axes(
    choices: Mapping[str, list[Override]], groups: list[list[str]], typed: Collection[str]
) -> list[list[Step]]:
    """The dimensions of the grid. Each is the steps of a group, or of a key outside all groups.

    ``choices`` holds the values of each key; ``typed`` names the keys that are not from a sweep
    file. Raises :class:`llm.errors.Refused` for a group whose keys cannot advance together.
    """
    known = {key.lstrip("+"): key for key in choices}
    together: dict[str, list[str]] = {}  # from each key of a group to all of them
    for group in groups:
        keys = [_known_key(name, known) for name in group]
        for key in keys:
            require(key not in together, f"zip names {key} twice: a key can be in one group only")
            together[key] = keys
        _require_equal_counts({key: len(choices[key]) for key in keys}, typed)
    found: dict[str, list[Step]] = {}  # by the first key of each dimension
    for key in choices:
        keys = together.get(key, [key])
        if not any(one in found for one in keys):
            steps = zip(*(choices[one] for one in keys), strict=True)
            found[key] = [list(zip(keys, step, strict=True)) for step in steps]
    return list(found.values())


def refuse_shuffled(overrides: Sequence[Override], groups: list[list[str]]) -> None:
    """Raise :class:`llm.errors.Refused` for ``shuffle(...)`` in a group: each start of the sweep
    would pair other values.
    """
    paired = {name.lstrip("+") for group in groups for name in group}
    for one in overrides:
        is_shuffled = one.key_or_group in paired and getattr(one.value(), "shuffle", False)
        again = f"{one.input_line} would pair other values each time: leave out shuffle"
        require(not is_shuffled, again)


def _known_key(name: str, known: Mapping[str, str]) -> str:
    """The key as its values were given, which may start with ``+``."""
    plain = name.strip().lstrip("+")
    if plain in known:
        return known[plain]
    if is_key(plain):
        raise Refused(f"zip names {plain}, which does not vary: give it values, as in {plain}=A,B")
    why = f"which is unknown: there is no such key{suggestion(plain)}"
    raise Refused(f"zip names {plain}, {why}")


def _require_two_keys(shown: str, group: Sequence[Any]) -> None:
    are_keys = len(group) > 1 and all(isinstance(key, str) and key.strip() for key in group)
    require(are_keys, f"{shown} must name two keys or more, as in zip={PAIR}")


def _require_equal_counts(counts: Mapping[str, int], typed: Collection[str]) -> None:
    """``counts``: the number of values of each key of a group."""
    if len(set(counts.values())) == 1:
        return
    listed = " and ".join(f"{key} has {n} value{'s' * (n != 1)}" for key, n in counts.items())
    from_file = [key for key in counts if key not in typed]
    if 0 < len(from_file) < len(counts):
        again = " and ".join(f"{key}=..." for key in from_file)
        fix = f"a typed list replaces the sweep file's: type {again} too"
        fix += f", or hydra.sweeper.{FROM_FILE}=null for all combinations"
    elif 1 in counts.values():
        fix = "give each key the same number of values, or leave out the one that does not vary"
    else:
        fix = "give each key the same number of values"
    raise Refused(f"{listed}, but zip pairs them: {fix}")
