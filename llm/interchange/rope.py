"""Rotary positions in a config.json: the base, and its scaling for longer texts."""

import math
from dataclasses import dataclass
from pathlib import Path

from llm.errors import Refused, require
from llm.options import from_plain, option
from llm.sealed import Plain

# The keys of each type.
ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
    "yarn": {
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
        "attention_factor", "truncate",
    },
}  # fmt: skip
ALWAYS = {"rope_type", "rope_theta", "partial_rotary_factor"}
REQUIRED = {"factor", "low_freq_factor", "high_freq_factor"}  # by the types that have them


@dataclass
class Rope:
    """``rope_parameters``, which was named ``rope_scaling`` before transformers 5."""

    rope_type: str = option("default", one_of=ROPE_KEYS)
    rope_theta: float | None = option(None, more_than=0)
    factor: float = option(1.0, at_least=1)
    low_freq_factor: float = option(1.0, more_than=0)
    high_freq_factor: float = option(4.0, more_than=0)
    original_max_position_embeddings: int | None = option(None, at_least=1)
    beta_fast: float = option(32.0, more_than=0)
    beta_slow: float = option(1.0, more_than=0)
    attention_factor: float | None = None
    truncate: bool = option(True, one_of=(True,))
    partial_rotary_factor: float = option(1.0, one_of=(1,))


def rope_options(sections: Plain, theta: float | None, context: int, path: Path) -> Plain:
    """The options of :class:`llm.model.config.GPTConfig` for rotary positions.

    ``sections``: rope_scaling and rope_parameters of ``path``; ``theta``: its rope_theta;
    ``context``: its longest text in tokens. Raises :class:`llm.errors.Refused` for values that
    contradict each other, and for a scaling that this program does not have.
    """
    given = _merged(sections, path)
    rope = from_plain(Rope, given, f"{path}: rope_parameters.")
    kind, base = rope.rope_type, rope.rope_theta
    for key in given.keys() - ALWAYS - ROPE_KEYS[kind]:
        raise Refused(f"{path}: rope_parameters.{key} does not go with rope_type={kind}")
    for key in REQUIRED & ROPE_KEYS[kind]:
        require(key in given, f"{path}: rope_parameters.{key} is missing")
    differs = f"{path}: rope_theta is {theta}, and {base} in rope_parameters: correct one of them"
    require(base is None or theta is None or base == theta, differs)
    options: Plain = {"rope_base": float(base or theta or 10_000.0)}
    if kind == "default":
        return options
    options |= {"rope_scaling": kind, "rope_factor": float(rope.factor)}
    if kind == "linear":
        return options
    options["rope_original_size"] = rope.original_max_position_embeddings or context
    low, high = rope.low_freq_factor, rope.high_freq_factor
    if kind == "yarn":
        low, high = rope.beta_slow, rope.beta_fast
        usual, own = 0.1 * math.log(rope.factor) + 1, rope.attention_factor
        other = f"{path}: rope_parameters.attention_factor={own} is not supported, only {usual}"
        require(own is None or math.isclose(own, usual, rel_tol=1e-6), other)
    return options | {"rope_low": float(low), "rope_high": float(high)}


def _merged(sections: Plain, path: Path) -> Plain:
    """The values of both sections without nulls; the older key ``type`` becomes ``rope_type``.

    Raises :class:`llm.errors.Refused` for sections that contradict each other.
    """
    merged: Plain = {}
    for name, section in sections.items():
        require(isinstance(section or {}, dict), f"{path}: {name} must be a section of keys")
        for key, value in (section or {}).items():
            key = "rope_type" if key == "type" else key
            said = merged.get(key)
            twice = f"{path}: {name}.{key:.40} is {value!r:.40}, and elsewhere {said!r:.40}"
            require(said is None or value is None or said == value, twice)
            if value is not None:
                merged[key] = value
    return merged
