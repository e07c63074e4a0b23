"""The settings of a run that decide which runs are compared, and as one point or as two."""

import hashlib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from typing import Any

from llm.sealed import Plain
from llm.settings.custom import OPTION
from llm.settings.schema import MuonOptimizer, Optimizer, TrainSettings

# Sections and keys that change neither the result of a run nor its evaluation.
LEFT_OUT = {"seed", "run", "logger", "memory", "resume", "verify"}
LEFT_OUT |= {f"data.{key}" for key in ("dir", "path", "overwrite")}
LEFT_OUT |= {
    f"trainer.{key}"
    for key in (
        "log_interval", "checkpoint_interval", "keep_last", "sample_interval", "profile",
        "micro_batch_size", "device",
    )
}  # fmt: skip
NO_SETTINGS = ("_target_", "default_head_size")  # fields of the schema that config.yaml lacks


def compared_settings(plain: Plain, swept: Iterable[str], init_digest: object) -> dict[str, Any]:
    """The settings in ``config.yaml`` in which two runs may differ, except the seed, by dotted key.

    A key that the run's version did not have gets its default. ``swept``: keys that the run's sweep
    varies, which always count. ``init_digest``: of the weights of ``init_from``, if known; it
    replaces their path.
    """
    every: dict[str, Any] = {}
    defaults = _defaults((plain.get("optimizer") or {}).get("name") == "muon")
    for section, values in (defaults | plain).items():
        known = defaults.get(section)
        if isinstance(known, dict) and isinstance(values, dict) and OPTION not in values:
            values = known | values
        every |= _flat(section, values)
    if every.get("init_from") is not None and isinstance(init_digest, str):
        every["init_from"] = init_digest
    chosen = {key.lstrip("+") for key in swept} - {"seed"}
    return {
        key: value
        for key, value in every.items()
        if key in chosen or not (key in LEFT_OUT or key.partition(".")[0] in LEFT_OUT)
    }


def digest_of(values: object) -> str:
    """A short sha256 of plain values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _defaults(is_muon: bool) -> Plain:
    """Today's defaults of every section, for a run with this optimizer."""
    sections = asdict(TrainSettings())
    sections["optimizer"] = asdict(MuonOptimizer() if is_muon else Optimizer())
    for section in sections.values():
        if isinstance(section, dict):
            for key in NO_SETTINGS:
                section.pop(key, None)
    del sections["typed"]
    return sections


def _flat(key: str, value: Any) -> dict[str, Any]:
    """``{"model.n_layer": 4}`` for ``model`` and ``{"n_layer": 4}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {key: str(value)}  # JSON has no infinity
    if not isinstance(value, dict):
        return {sys.intern(key): value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(f"{key}.{name}", item)
    return flat
