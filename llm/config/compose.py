"""From overrides to checked settings: Hydra composes them, and the result becomes plain values."""

import copy
import sys
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import llm.config.store  # noqa: F401  (registers the schemas that conf/*.yaml start with)
from llm.config.verbatim import guard, map_text, refuse_calls, unguard
from llm.data.config import DOWNLOADED_NAMES, TOKENIZERS
from llm.errors import Refused, require
from llm.options import validate
from llm.settings.custom import GROUPS, OPTION, custom_section
from llm.settings.eval import EvalSettings
from llm.settings.export import ExportSettings
from llm.settings.keys import suggestion, words_instead
from llm.settings.origin import check_tokenizer, data_of_origin, require_more_steps, shape_of_origin
from llm.settings.report import ReportSettings
from llm.settings.sample import SampleSettings
from llm.settings.saved import load_plain, saved_option
from llm.settings.schema import PlanSettings, PrepareSettings, TrainSettings

Settings = TypeVar(
    "Settings",
    TrainSettings, PlanSettings, SampleSettings, PrepareSettings, ReportSettings, EvalSettings,
    ExportSettings,
)  # fmt: skip
CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def read_settings(cfg: DictConfig, kind: type[Settings]) -> Settings:
    """The typed and checked settings of a composed configuration.

    With ``resume=FOLDER`` they are the settings in the folder, changed by typed overrides; with
    ``init_from=FOLDER`` the network gets the shape of the weights. Removes Hydra's section, with
    the chosen options and the typed overrides, from ``cfg``.
    """
    of_hydra = _take_hydra(cfg)
    refuse_calls(OmegaConf.to_container(cfg, resolve=False))
    if issubclass(kind, TrainSettings) and (resumed := cfg.get("resume")):
        cfg = _resumed(cfg, of_hydra)
        if kind is TrainSettings and not cfg.verify:
            _require_files(unguard(str(resumed)), cfg, typed_keys(of_hydra))
    _refuse_additions(cfg, kind)
    made = cast(dict[str, object], vars(OmegaConf.to_object(cfg)))
    for group in GROUPS:
        section = made.get(group)
        if isinstance(section, dict):
            assert of_hydra is not None, "a composed configuration with hydra's section"
            made[group] = custom_section(group, of_hydra.runtime.choices[group], section)
        elif group in made:
            value = "null" if section is None else f"{section!r:.60}"
            message = f"{group} is {value}, not a section: take one of its options"
            require(is_dataclass(section), message)
    if of_hydra is not None:
        _use_folders(of_hydra)
    settings = map_text(unguard, kind(**made))  # type: ignore[arg-type]  # as composed
    if isinstance(settings, TrainSettings):
        settings.typed = typed_keys(of_hydra)
        shaped = shape_of_origin(settings, settings.typed)
        settings.model = replace(settings.model, **shaped)
        settings.data = data_of_origin(settings.data, settings.init_from, settings.run)
        check_tokenizer(settings)
        settings.model.settle()
        require_more_steps(settings)
    elif isinstance(settings, PrepareSettings):
        settings.data = data_of_origin(settings.data, None)
    validate(settings)
    return settings


def _take_hydra(cfg: DictConfig) -> DictConfig | None:
    """Hydra's own section, removed from ``cfg``; Hydra's global one if ``cfg`` has none."""
    if "hydra" in cfg:
        of_hydra = cast(DictConfig, cfg.hydra)
        with open_dict(cfg):
            del cfg["hydra"]
        return of_hydra
    return cast(DictConfig, HydraConfig.get()) if HydraConfig.initialized() else None


def _use_folders(hydra: DictConfig) -> None:
    """Let Python find modules in a user's folder of options and in its parent folder.

    Both come last in ``sys.path``, so that nothing there replaces an installed module. Raises
    :class:`llm.errors.Refused` if a built-in option hides a chosen option of the user.
    """
    files = [source for source in hydra.runtime.config_sources if source.schema == "file"]
    built_in = next(Path(source.path) for source in files if source.provider == "main")
    for folder in (Path(source.path) for source in files if source.provider != "main"):
        for group, option in hydra.runtime.choices.items():
            file, other = (place / f"{group}/{option}.yaml" for place in (folder, built_in))
            hidden = file.is_file() and other.is_file() and not file.samefile(other)
            message = f"{group}={option} is a built-in option, which hides {file}"
            require(not hidden, f"{message}: take another name")
        for place in (str(folder), str(folder.parent)):
            if place not in sys.path:
                sys.path.append(place)


def _refuse_additions(cfg: DictConfig, kind: type, prefix: str = "") -> None:
    # Hydra lets +key=value past the schema, but nothing would read the key.
    known = {field.name: field.type for field in fields(kind)}
    for key in [str(key) for key in cfg]:
        full = prefix + key
        require(
            key in known, f"{full} is unknown: there is no such key{suggestion(full, known)}",
            key=full, suggestions=words_instead(full, str(cfg[key]), known),
        )  # fmt: skip
        section = cast(type, OmegaConf.get_type(cfg, key))  # of the chosen option, e.g. Muon's
        if is_dataclass(section):
            _refuse_additions(cfg[key], section, f"{prefix}{key}.")


def typed_keys(of_hydra: DictConfig | None) -> frozenset[str]:
    """The keys on the command line, from Hydra's own section; none without one."""
    if of_hydra is None:
        return frozenset()
    # Not resolved: a reference in a value may lead to a key outside this section.
    overrides = cast(list[str], OmegaConf.to_container(of_hydra.overrides.task, resolve=False))
    return frozenset(override.partition("=")[0].lstrip("+~") for override in overrides)


def _resumed(composed: DictConfig, of_hydra: DictConfig | None) -> DictConfig:
    """The settings in the folder of ``resume``, changed by typed overrides."""
    folder = Path(unguard(str(composed.resume)))
    cfg, saved = copy.deepcopy(composed), load_plain(folder)
    before = {group: saved_option(saved, group) for group in GROUPS}
    now = {group: _chosen_option(composed, of_hydra, group) for group in GROUPS}
    was, wanted = before["optimizer"], now["optimizer"]
    require(
        was == wanted,
        f"{folder} was trained with optimizer={was}, whose state optimizer={wanted} cannot use: "
        f"start from its weights by init_from={folder}",
    )
    for group in GROUPS:
        if before[group] != now[group]:
            saved.pop(group, None)  # the keys of another option
        elif now[group] is not None and not is_dataclass(OmegaConf.get_type(cfg, group)):
            saved[group].pop(OPTION)
            OmegaConf.set_struct(cfg[group], False)  # the file may have keys from +key=value
    # data.overwrite deletes a folder: only the command line may ask for that, not a file.
    (saved.get("data") or {}).pop("overwrite", None)
    try:
        cfg = cast(DictConfig, OmegaConf.merge(cfg, map_text(guard, saved)))
    except OmegaConfBaseException as error:
        raise Refused(f"{folder}/config.yaml: {str(error).splitlines()[0]}") from None
    for key in typed_keys(of_hydra):
        require(
            key not in ("experiment", "sweep", "run.name", "run.dir"),
            f"{key}= cannot be combined with resume=",
        )
        if before.get(key) is None or before[key] != now[key]:
            OmegaConf.update(cfg, key, OmegaConf.select(composed, key), merge=False)
    if cfg.trainer.eval_only:  # evaluates the best weights of the folder and does not change it
        cfg.init_from, cfg.resume = guard(str(folder)), None
        cfg.run.name = cfg.run.dir = cfg.run.sweep = None
    else:
        cfg.run.name, cfg.run.dir = None, guard(str(folder))
    return cfg


def _require_files(folder: str, cfg: DictConfig, typed: Collection[str]) -> None:
    """Raise :class:`llm.errors.Refused` if a file of a run's data, whose path was not typed, is not
    where its ``config.yaml`` says.
    """
    from llm.data.corpus import expanded

    templates = [path.stem for path in (CONF / "templates").glob("*.yaml")]
    # The run's own checkpoints have the tokenizer of init_from.
    names = (*TOKENIZERS, *DOWNLOADED_NAMES, *templates, unguard(str(cfg.init_from)))
    for key in ("path", "mix_path", "tokenizer", "template"):
        path = unguard(str(cfg.data[key] or ""))
        full = f"data.{key}"
        require(
            not path or full in typed or path in names or expanded(path).exists(),
            f"{full}={path} in {folder}/config.yaml does not exist here: start the command in the "
            f"folder where the run was started, or say where it is now, {full}=PATH",
            key=full, suggestions=[f"{full}=PATH"],
        )  # fmt: skip


def _chosen_option(cfg: DictConfig, of_hydra: DictConfig | None, group: str) -> object:
    """The option of a composed configuration, as :func:`saved_option` names it."""
    if is_dataclass(OmegaConf.get_type(cfg, group)):  # its file begins with a built-in schema
        return None if group == "logger" else cfg[group].name
    return of_hydra and of_hydra.runtime.choices[group]
