"""``config.yaml`` of a run: written from its settings, and read again by whoever continues it."""

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import cast

import yaml

from llm.checkpoint.find import FOLDER, newest_runs
from llm.errors import Refused, require
from llm.sealed import Plain
from llm.settings.own import GROUPS, OPTION
from llm.settings.plain_yaml import read_yaml
from llm.settings.schema import TrainSettings
from llm.settings.values import leaves

SECTIONS = ("model", "data", "optimizer", "schedule", "precision", "trainer")
NAME_OF_OPTION = r"\w[\w.-]*(/\w[\w.-]*)*"
OF_THIS_START = ("resume", "verify", "typed")  # of one start of a run, no settings of it


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
    for section in SECTIONS:
        found = plain.get(section)
        require(isinstance(found, dict | None), f"{path}: {section} is {found!r}, not a section")
    for key, value in leaves(plain):
        require(isinstance(value, str | int | float | None), f"{path}: {key} is no plain value")
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


def saved_groups(folder: Path) -> list[str]:
    """``optimizer=adamw schedule=cosine``: what to compose with before the folder's values."""
    plain = load_plain(folder)
    names = {group: saved_option(plain, group) for group in GROUPS}
    for group, name in names.items():
        known = group == "logger" and name is None
        require(
            known or (isinstance(name, str) and re.fullmatch(NAME_OF_OPTION, name)),
            f"{folder}/config.yaml: {group}.name={name!r} is not the name of an option",
        )
    return [f"{group}={name}" for group, name in names.items() if name is not None]


def saved_option(plain: Plain, group: str) -> object:
    """The option of ``config.yaml``; None for a logger of ours, whose keys say all there is."""
    section = plain.get(group)
    if not isinstance(section, dict):
        return None
    return section.get(OPTION, None if group == "logger" else section.get("name"))
