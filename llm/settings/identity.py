"""The keys that identify the result of a run, and whether a folder holds the run asked for."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

from llm.errors import Refused
from llm.model.config import GPTConfig
from llm.sealed import Plain
from llm.settings.saved import load_plain, to_plain
from llm.settings.schema import TrainSettings

# None: every key of the section. Left out is how a run is executed or watched: device, compile,
# micro_batch_size, logger, intervals, folders, and options that only save memory.
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
# These may be changed with resume=: to train longer, or to go on after a divergence.
EXTENDABLE = {"trainer.max_steps", "trainer.skip_spikes", "trainer.rollbacks"}


def identity(plain: Plain, data_digest: str) -> Plain:
    """The settings that identify a result, as ``section.key`` -> value."""
    found: Plain = {"data_digest": data_digest}
    for section, keys in IDENTITY.items():
        values = plain.get(section) or {}
        if keys is not None:  # a key that is newer than the run has its default
            defaults = asdict(getattr(TrainSettings(), section))
            values = {key: values.get(key, defaults[key]) for key in keys}
        found |= {f"{section}.{key}": value for key, value in values.items()}
    return found | {key: plain.get(key) for key in ("init_from", "seed")}


def config_digest(plain: Plain, data_digest: str) -> str:
    """sha256 of :func:`identity`."""
    text = json.dumps(identity(plain, data_digest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_differences(
    folder: Path, mine: Plain, theirs: Plain, resumed: bool, init_from: tuple[object, object]
) -> None:
    """Raise :class:`llm.errors.Refused` naming the differences between two :func:`identity`.

    ``init_from`` are the paths in the folder and in the settings, for the message: the same weights
    may have two paths.
    """
    allowed = EXTENDABLE if resumed else set()
    keys = [
        key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key) and key not in allowed
    ]
    if not keys:
        return
    said = {key: f"{key} was {theirs.get(key)}, now {mine.get(key)}" for key in keys}
    if "data_digest" in said:  # nobody can read a digest
        said["data_digest"] = "the text of its data, or the tokens made of it, are not the same"
    if "init_from" in said:
        was, now = init_from
        said["init_from"] = f"init_from was {was}, now {now}, and its weights are not the same"
    raise Refused(
        f"{folder} holds another run ({', '.join(said.values())}): take another run.name, the same "
        f"settings, or train it longer by resume={folder} trainer.max_steps=MORE"
    )


def refuse_plan_of_another_run(settings: TrainSettings, vocab_size: int) -> None:
    """Refuse a plan for ``resume=`` if ``run_train.py`` would refuse to continue that run.

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
