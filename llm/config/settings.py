"""From what Hydra composed to plain, checked values, and from those to ``config.yaml`` and back."""

import copy
import hashlib
import json
import os
import re
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from llm.checkpoint.find import FOLDER, newest_runs
from llm.config.keys import meant
from llm.config.origin import shape_of_origin
from llm.config.own import GROUPS, OPTION, own_section, use_folders
from llm.config.plain_yaml import read_yaml
from llm.config.schema import (
    Model,
    PlanSettings,
    PrepareSettings,
    SampleSettings,
    ScheduleSection,
    TrainSettings,
)
from llm.config.verbatim import (
    BREAK,
    KEYS,
    guard,
    guard_all,
    leaves,
    refuse_calls,
    unguard_all,
)
from llm.data.config import padded
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.sealed import Plain

Settings = TypeVar("Settings", TrainSettings, PlanSettings, SampleSettings, PrepareSettings)

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
NAME_OF_OPTION = r"\w[\w.-]*(/\w[\w.-]*)*"
OF_THIS_START = ("resume", "verify")  # typed for one start of a run, no settings of it


def read_settings(cfg: DictConfig, kind: type[Settings]) -> Settings:
    """The typed and checked settings of a composed configuration.

    With ``resume=FOLDER`` they are the folder's, under what was typed; with ``init_from=FOLDER``
    the shape of the network is that of the weights. ``cfg`` may still have Hydra's own section,
    which is removed: it tells which options were chosen, and what was typed.
    """
    of_hydra = _taken_hydra(cfg)
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)):
        refuse_calls(key, value)
    if issubclass(kind, TrainSettings) and cfg.get("resume"):
        cfg = _resumed(cfg, of_hydra)
    _refuse_additions(cfg, kind)
    made = cast(dict[str, object], vars(OmegaConf.to_object(cfg)))
    for group in GROUPS:
        section = made.get(group)
        if isinstance(section, dict):
            assert of_hydra is not None, "a composed configuration with hydra's section"
            made[group] = own_section(group, of_hydra.runtime.choices[group], section)
        elif group in made:
            is_section = is_dataclass(section)
            found = "null" if section is None else f"{section!r:.60}"
            require(is_section, f"{group} is {found}, not a section: take one of its options")
    if of_hydra is not None:
        use_folders(of_hydra)
    settings = kind(**made)  # type: ignore[arg-type]  # as composed
    unguard_all(settings)
    if isinstance(settings, TrainSettings):
        shaped = shape_of_origin(settings, typed_keys(of_hydra))
        settings.model = replace(settings.model, **shaped)
        settings.model.settle()
    settings.check()
    return settings


def _taken_hydra(cfg: DictConfig) -> DictConfig | None:
    """What Hydra says of itself, taken out of ``cfg`` or, in a run, from where it keeps it."""
    if "hydra" in cfg:
        of_hydra = cast(DictConfig, cfg.hydra)
        with open_dict(cfg):
            del cfg["hydra"]
        return of_hydra
    return cast(DictConfig, HydraConfig.get()) if HydraConfig.initialized() else None


def _refuse_additions(cfg: DictConfig, kind: type, prefix: str = "") -> None:
    # ``+key=value`` gets past the schema in Hydra's composition, and nothing would read it.
    known = {field.name: field.type for field in fields(kind)}
    for key in [str(key) for key in cfg]:
        require(
            key in known,
            f"{prefix}{key} is unknown: no key is called so{meant(prefix + key, known)}",
        )
        section = cast(type, OmegaConf.get_type(cfg, key))  # a group's own, e.g. Muon's
        if is_dataclass(section):
            _refuse_additions(cfg[key], section, f"{prefix}{key}.")


def resolve(settings: TrainSettings, vocab_size: int, precision: str) -> TrainSettings:
    """The same settings with what was left open filled in: the numbers that the run really uses.

    ``vocab_size`` is the tokenizer's; BPE's is padded to a multiple of 64, since matrix products
    are faster for it (nanoGPT, commit 77e7e04).
    """
    tokens, schedule = vocab_size, settings.schedule
    if isinstance(schedule, ScheduleSection):
        warmup = schedule.warmup(settings.trainer.max_steps)
        schedule = replace(schedule, warmup_steps=warmup)
    shape = settings.model.resolve(padded(vocab_size, settings.data.tokenizer))
    return replace(
        settings,
        model=Model(**asdict(shape)),
        precision=replace(settings.precision, name=precision),
        trainer=replace(settings.trainer, micro_batch_size=settings.trainer.micro_batch),
        data=replace(settings.data, vocab_size=tokens),
        schedule=schedule,
    )


def to_plain(settings: TrainSettings) -> Plain:
    """What ``config.yaml`` holds: plain values, and no class to build (a folder names no code)."""
    plain = asdict(settings)
    del plain["model"]["default_head_size"]  # has become head_size, or was not needed
    for section in plain.values():
        if isinstance(section, dict):
            section.pop("_target_", None)
    for key in OF_THIS_START:
        plain.pop(key)
    return plain


def to_yaml(settings: TrainSettings) -> str:
    """The text of ``config.yaml``: ASCII, since PyYAML loses a U+0085 that it does not escape."""
    return yaml.safe_dump(to_plain(settings), sort_keys=False, width=100)


def load_plain(folder: Path) -> Plain:
    """The contents of ``folder/config.yaml``; :class:`llm.errors.Refused` if there are none, or if
    a run cannot have written them.
    """
    path = folder / "config.yaml"
    try:
        path.stat()  # before what else is here: there may be no run at all
        _refuse_links(folder)
        plain = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, OSError) and not os.path.lexists(path):  # or its name is too long
            raise Refused(f"resume={folder} {not_a_run(folder)}") from None
        raise Refused(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    require(isinstance(plain, dict), f"{path} holds no settings")
    for section in IDENTITY:
        found = plain.get(section)
        require(isinstance(found, dict | None), f"{path}: {section} is {found!r}, not a section")
    for key, value in leaves(plain):
        require(isinstance(value, str | int | float | None), f"{path}: {key} is no plain value")
        if key not in KEYS:
            refuse_calls(f"{path}: {key}", value)
    return cast(Plain, plain)


def not_a_run(folder: Path) -> str:
    """The end of a sentence: why the run in ``folder``, which has no config.yaml, cannot go on."""
    if not os.path.exists(folder):  # Path.exists raises where a name is too long
        return f"does not exist{newest_runs()}"
    for run in (folder, *list(folder.parents)[:2]):
        if run != folder and (run / "config.yaml").exists() and (run / FOLDER).is_dir():
            return f"is a part of a run: continue the whole run by resume={run}"
    if not (folder / FOLDER).is_dir():
        return f"is not a run folder: it has no config.yaml{newest_runs()}"
    return (
        "has checkpoints but no config.yaml, so nothing tells how they were trained: use their "
        f"weights by ckpt={folder} or init_from={folder}"
    )


def _refuse_links(folder: Path) -> None:
    # A run that goes on appends to files in its folder and deletes old ones. Through a link it
    # would do so to files elsewhere.
    for path in sorted(folder.iterdir()):
        plain = not path.is_symlink() and (path.is_file() or path.is_dir())
        require(plain, f"{path} is neither a file nor a folder, so nothing is continued here")


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


def saved_groups(folder: Path) -> list[str]:
    """``optimizer=adamw schedule=cosine``: what to compose with before the folder's values."""
    plain = load_plain(folder)
    names = {group: _saved_option(plain, group) for group in GROUPS}
    for group, name in names.items():
        known = group == "logger" and name is None
        require(
            known or (isinstance(name, str) and re.fullmatch(NAME_OF_OPTION, name)),
            f"{folder}/config.yaml: {group}.name={name!r} is not the name of an option",
        )
    return [f"{group}={name}" for group, name in names.items() if name is not None]


def _saved_option(plain: Plain, group: str) -> object:
    """The option of ``config.yaml``; None for a logger of ours, whose keys say all there is."""
    section = plain.get(group)
    if not isinstance(section, dict):
        return None
    return section.get(OPTION, None if group == "logger" else section.get("name"))


def _chosen_option(cfg: DictConfig, of_hydra: DictConfig | None, group: str) -> object:
    """The same of a composed configuration."""
    if is_dataclass(OmegaConf.get_type(cfg, group)):  # it begins with a schema of ours
        return None if group == "logger" else cfg[group].name
    return of_hydra and of_hydra.runtime.choices[group]


def typed_keys(of_hydra: DictConfig | None = None) -> set[str]:
    """The keys on the command line, as Hydra's own section tells; none without one."""
    if of_hydra is None:
        if not HydraConfig.initialized():
            return set()
        of_hydra = cast(DictConfig, HydraConfig.get())
    # Unresolved: what a reference in a value leads to is not in this section.
    overrides = cast(list[str], OmegaConf.to_container(of_hydra.overrides.task, resolve=False))
    return {override.partition("=")[0].lstrip("+~") for override in overrides}


def _resumed(composed: DictConfig, of_hydra: DictConfig | None) -> DictConfig:
    """The settings of ``resume``'s folder, under what was typed on the command line."""
    folder = Path(str(composed.resume).replace(BREAK, ""))
    cfg, saved = copy.deepcopy(composed), load_plain(folder)
    before = {group: _saved_option(saved, group) for group in GROUPS}
    now = {group: _chosen_option(composed, of_hydra, group) for group in GROUPS}
    was, typed = before["optimizer"], now["optimizer"]
    require(
        was == typed,
        f"{folder} was trained with optimizer={was}, whose state optimizer={typed} cannot use: "
        f"start from its weights by init_from={folder}",
    )
    for group in GROUPS:
        if before[group] != now[group]:
            saved.pop(group, None)  # another one's keys
        elif now[group] is not None and not is_dataclass(OmegaConf.get_type(cfg, group)):
            saved[group].pop(OPTION)
            OmegaConf.set_struct(cfg[group], False)  # keys that were added by +key=value
    for key in OF_THIS_START:
        saved.pop(key, None)
    # It may delete a folder, whose name is in the file as well: only who types it knows which.
    (saved.get("data") or {}).pop("overwrite", None)
    try:
        cfg = cast(DictConfig, OmegaConf.merge(cfg, guard_all(saved)))
    except OmegaConfBaseException as error:
        raise Refused(f"{folder}/config.yaml: {str(error).splitlines()[0]}") from None
    for override in HydraConfig.get().overrides.task:
        key = str(override).partition("=")[0].lstrip("+~")
        require(
            key not in ("experiment", "sweep", "run.name", "run.dir"),
            f"{key}= has no place beside resume=",
        )
        if before.get(key) is None or before[key] != now[key]:
            OmegaConf.update(cfg, key, OmegaConf.select(composed, key), merge=False)
    if cfg.trainer.eval_only:  # looks at the best weights of the folder and leaves it as it is
        cfg.init_from, cfg.resume = guard(str(folder)), None
        cfg.run.name = cfg.run.dir = cfg.run.sweep = None
    else:
        cfg.run.name, cfg.run.dir = None, guard(str(folder))
    return cfg
