"""The keys that identify the result of a run, and the differences between two runs."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

from llm.data.config import TOKENIZERS
from llm.errors import Refused
from llm.model.config import GPTConfig
from llm.sealed import Plain
from llm.settings.saved import load_plain, to_plain
from llm.settings.schema import TrainSettings

# None: every key of the section. Keys that only say how a run is executed or logged are left out:
# device, compile, micro_batch_size, logger, intervals, folders, and options that only save memory.
IDENTITY = {
    "model": tuple(field.name for field in fields(GPTConfig) if field.name != "loss"),
    "data": ("name", "corpus", "tokenizer", "vocab_size", "val_fraction", "allow_special", "mix"),
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
# Keys that came later: at their default they are left out, so that older runs keep their digests.
LATER = (
    "qkv_bias", "norm_eps", "rope_base", "rope_scaling", "rope_factor", "rope_original_size",
    "rope_low", "rope_high", "mix",
)  # fmt: skip
# resume= may change these: to train longer, or to continue after a divergence.
EXTENDABLE = {
    "trainer.max_steps", "trainer.max_minutes", "trainer.skip_spikes", "trainer.rollbacks",
}  # fmt: skip


def identity(plain: Plain, data_digest: str) -> Plain:
    """The settings that identify a result, as ``section.key`` -> value."""
    identifying: Plain = {"data_digest": data_digest}
    for section, keys in IDENTITY.items():
        values = plain.get(section) or {}
        if keys is not None:  # a key that the run's version did not have gets its default
            defaults = asdict(getattr(TrainSettings(), section))
            if section == "trainer" and values.get("max_steps", 0) is None:
                keys = (*keys, "max_minutes")
            if section == "data" and values.get("test_fraction") is not None:
                keys = (*keys, "test_fraction")  # runs without a test split keep their digests
            values = {key: values.get(key, defaults[key]) for key in keys}
            if section == "data" and values["tokenizer"] not in TOKENIZERS:
                values["tokenizer"] = "of weights"  # data_digest says which; the place may move
            for key in LATER:
                if key in values and values[key] == defaults[key]:
                    del values[key]
        identifying |= {f"{section}.{key}": value for key, value in values.items()}
    tuned = plain.get("finetune") or {}
    if tuned.get("name", "none") != "none":  # other runs keep the digests of earlier versions
        defaults = asdict(TrainSettings().finetune)
        identifying |= {f"finetune.{key}": tuned.get(key, defaults[key]) for key in defaults}
    return identifying | {key: plain.get(key) for key in ("init_from", "seed")}


def config_digest(plain: Plain, data_digest: str) -> str:
    """sha256 of :func:`identity`."""
    return _digest(identity(plain, data_digest))


def point_digest(plain: Plain, data_digest: str) -> str:
    """sha256 of :func:`identity` without the seed, so that it is the same for all seeds."""
    return _digest(identity(plain, data_digest) | {"seed": None})


def _digest(values: Plain) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def refuse_differences(
    folder: Path, mine: Plain, theirs: Plain, resumed: bool, init_from: tuple[object, object],
    name: str = "run.name",
) -> None:  # fmt: skip
    """Raise :class:`llm.errors.Refused` naming the differences between two :func:`identity`.

    For the message, ``init_from`` has the path in the folder and the one in the settings: an
    identity holds the digest of the weights instead. ``name``: the key that chooses another folder.
    """
    allowed = EXTENDABLE if resumed else set()
    if resumed and theirs.get("schedule.warmup_steps") is None:
        # It had a budget in minutes, and now a number of steps fixes its warm-up.
        allowed = allowed | {"schedule.warmup_steps"}
    keys = [
        key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key) and key not in allowed
    ]
    if not keys:
        return
    changes = {key: f"{key} was {theirs.get(key)}, now {mine.get(key)}" for key in keys}
    if "data_digest" in changes:
        changes["data_digest"] = "the text of its data, or the tokens made of it, are not the same"
    if "init_from" in changes:
        was, now = init_from
        changes["init_from"] = f"init_from was {was}, now {now}, and its weights are not the same"
    more = longer(mine.get("trainer.max_steps"))
    raise Refused(
        f"{folder} holds another run ({', '.join(changes.values())}): take another {name}, the "
        f"same settings, or train it longer by resume={folder} {more}"
    )


def longer(max_steps: object) -> str:
    """The override that trains a run with this ``trainer.max_steps`` longer."""
    return f"trainer.{'max_minutes' if max_steps is None else 'max_steps'}=MORE"


def refuse_plan_of_another_run(settings: TrainSettings, vocab_size: int) -> None:
    """Refuse a plan for ``resume=`` if ``run_train.py`` would refuse to continue that run.

    The text and the weights of ``init_from`` are not compared: that would need torch.
    """
    folder = Path(str(settings.resume))
    saved = load_plain(folder)
    precision = settings.precision.name
    if precision == "auto":
        precision = str((saved.get("precision") or {}).get("name"))
    same = {"init_from": None}
    mine = identity(to_plain(settings.resolve(vocab_size, precision)) | same, "")
    refuse_differences(folder, mine, identity(saved | same, ""), True, (None, None))
