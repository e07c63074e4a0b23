"""``config.yaml`` of a run: written from its settings, and read again to continue the run.

The file may come from a stranger: :mod:`llm.plain_yaml` reads it in bounded time.
"""

import os
import re
from dataclasses import asdict
from pathlib import Path

import yaml

from llm.checkpoint.find import FOLDER, newest_folders, newest_runs
from llm.errors import Refused, require
from llm.experiment.rundir import CONFIG
from llm.plain_yaml import read_yaml, unreadable
from llm.sealed import Plain
from llm.settings.custom import GROUPS, OPTION, Custom
from llm.settings.schema import TrainSettings

SECTIONS = ("model", "data", "optimizer", "schedule", "precision", "trainer", "finetune")
NAME_OF_OPTION = r"\w[\w.-]*(/\w[\w.-]*)*"
NOT_INHERITED = ("resume", "verify", "typed")  # keys that a resumed run must not inherit


def to_plain(settings: TrainSettings) -> Plain:
    """The plain values of ``config.yaml``, without ``_target_``: a run folder names no code."""
    plain = {key: value for key, value in asdict(settings).items() if key not in NOT_INHERITED}
    del plain["model"]["default_head_size"]  # it was only needed to choose head_size
    for key in ("dry_run", "retry"):  # they say what to do once
        del plain["run"][key]
    for name, section in plain.items():
        if isinstance(custom := getattr(settings, name), Custom):
            plain[name] = custom.plain()
        elif isinstance(section, dict):
            section.pop("_target_", None)
    return plain


def to_yaml(settings: TrainSettings) -> str:
    """The text of ``config.yaml``, in ASCII: PyYAML would not escape U+0085, and lose it later."""
    return yaml.safe_dump(to_plain(settings), sort_keys=False, width=100)


def load_plain(folder: Path) -> Plain:
    """The values in ``folder/config.yaml``.

    Raises :class:`llm.errors.Refused` if the folder is not a run, or if no run can have written it.
    """
    path = folder / CONFIG
    try:
        path.stat()  # fails here if `folder` is not a run
        _refuse_links(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not os.path.lexists(path):  # or the name is too long
            raise not_a_run(folder) from None
        raise unreadable(path, error) from None
    plain = read_plain(path)
    return {key: value for key, value in plain.items() if key not in NOT_INHERITED}


def read_plain(path: Path) -> Plain:
    """The values in a ``config.yaml``, which must exist.

    Raises :class:`llm.errors.Refused` if no run can have written it.
    """
    plain = read_yaml(path)
    for section in SECTIONS:
        values = plain.get(section)
        is_section = isinstance(values, dict | None)
        require(is_section, f"{path}: {section} is {values!r:.60}, not a section")
    return plain


def not_a_run(folder: Path) -> Refused:
    """The refusal of ``resume=folder`` where ``folder`` has no config.yaml."""

    def refused(why: str, *words: str) -> Refused:
        return Refused(f"resume={folder} {why}", key="resume", suggestions=words)

    newest = [f"resume={run}" for run in newest_folders()]
    if not os.path.exists(folder):  # Path.exists raises where a name is too long
        return refused(f"does not exist{newest_runs()}", *newest)
    for run in (folder, *list(folder.parents)[:2]):
        if run != folder and (run / CONFIG).exists() and (run / FOLDER).is_dir():
            whole = f"resume={run}"
            return refused(f"is part of a run: continue the whole run by {whole}", whole)
    if not (folder / FOLDER).is_dir():
        return refused(f"is not a run folder: it has no config.yaml{newest_runs()}", *newest)
    return refused(
        "has checkpoints but no config.yaml, so their settings are unknown: use their "
        f"weights by ckpt={folder} or init_from={folder}",
        f"init_from={folder}",
    )


def _refuse_links(folder: Path) -> None:
    # A continued run appends to files in its folder and deletes old ones. Through a link it would
    # do so to files elsewhere.
    for path in sorted(folder.iterdir()):
        plain = not path.is_symlink() and (path.is_file() or path.is_dir())
        require(plain, f"{path} is neither a file nor a folder, so this run is not continued")


def saved_groups(folder: Path) -> list[str]:
    """The options of a run: ``["optimizer=adamw", "schedule=cosine"]``."""
    plain = load_plain(folder)
    names = {group: saved_option(plain, group) for group in GROUPS}
    for group, name in names.items():
        built_in = group == "logger" and name is None
        require(
            built_in or (isinstance(name, str) and re.fullmatch(NAME_OF_OPTION, name)),
            f"{folder}/{CONFIG}: {group}.name={name!r:.60} is not the name of an option",
        )
    return [f"{group}={name}" for group, name in names.items() if name is not None]


def saved_option(plain: Plain, group: str) -> object:
    """The option of a group in ``config.yaml``; None for a built-in logger, which has no name."""
    section = plain.get(group)
    if not isinstance(section, dict):
        return None
    return section.get(OPTION, None if group == "logger" else section.get("name"))
