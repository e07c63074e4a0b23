"""What identifies the result of a run, and whether a folder holds the run that is asked for."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

from llm.errors import Refused
from llm.model.config import GPTConfig
from llm.sealed import Plain
from llm.settings.saved import load_plain, to_plain
from llm.settings.schema import TrainSettings

# What identifies a result (its config_digest). Left out is how a run is executed or watched:
# device, compile, micro_batch_size, logger, intervals, folders, and what only saves memory.
IDENTITY = {
    "model": tuple(field.name for field in fields(GPTConfig) if field.name != "loss"),
    "data": ("name", "corpus", "tokenizer", "vocab_size", "val_fraction", "allow_special"),
    "optimizer": None,
    "schedule": None,
    "precision": None,
    "trainer": (
        "max_steps",
        "batch_size",
        "grad_clip",
        "overfit_batches",
        "skip_spikes",
        "rollbacks",
    ),
}
LATER = {"optimizer": {"state_bits": 32}}  # keys of such groups that came after the first runs
# May differ from the folder's on an explicit resume=: to go on further, or after a divergence.
EXTENDABLE = {"trainer.max_steps", "trainer.skip_spikes", "trainer.rollbacks"}


def identity(plain: Plain, data_digest: str) -> Plain:
    """What identifies the result of a run, as ``section.key`` -> value."""
    found: Plain = {"data_digest": data_digest}
    for section, keys in IDENTITY.items():
        values = plain.get(section) or {}
        # What came after a run was started has changed nothing in it: it is as by default.
        default = (
            LATER.get(section, {}) if keys is None else asdict(getattr(TrainSettings(), section))
        )
        known = default | values
        found |= {f"{section}.{key}": known.get(key) for key in (known if keys is None else keys)}
    return found | {key: plain.get(key) for key in ("init_from", "seed")}


def config_digest(plain: Plain, data_digest: str) -> str:
    """sha256 of :func:`identity`."""
    return hashlib.sha256(
        json.dumps(identity(plain, data_digest), sort_keys=True).encode()
    ).hexdigest()


def refuse_differences(
    folder: Path, mine: Plain, theirs: Plain, resumed: bool, init_from: tuple[object, object]
) -> None:
    """Raise :class:`llm.errors.Refused` naming what differs between two :func:`identity`.

    ``init_from`` are the paths in the folder and in the settings, for the message: the same weights
    may have two paths.
    """
    allowed = EXTENDABLE if resumed else set()
    keys = [
        key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key) and key not in allowed
    ]
    if keys:
        said = {key: f"{key} was {theirs.get(key)}, now {mine.get(key)}" for key in keys}
        if "data_digest" in said:  # two digests tell nobody anything
            said["data_digest"] = "the text of its data, or the tokens made of it, are not the same"
        if "init_from" in said:
            was, now = init_from
            said["init_from"] = f"init_from was {was}, now {now}, and its weights are not the same"
        listed = ", ".join(said.values())
        raise Refused(
            f"{folder} holds another run ({listed}): take another run.name, the same settings, or "
            f"go on with more steps by resume={folder} trainer.max_steps=MORE"
        )


def refuse_plan_of_another_run(settings: TrainSettings, vocab_size: int) -> None:
    """Refuse what ``run_train.py`` would refuse to continue from ``settings.resume``.

    This is done without torch, so the text and the weights of ``init_from`` are not compared.
    """
    folder = Path(str(settings.resume))
    saved = load_plain(folder)
    precision = settings.precision.name
    if precision == "auto":
        precision = str((saved.get("precision") or {}).get("name"))
    same = {"init_from": None}
    mine = identity(to_plain(settings.resolve(vocab_size, precision)) | same, "")
    refuse_differences(folder, mine, identity(saved | same, ""), True, (None, None))
