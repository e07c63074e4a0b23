"""The lists that ``--help`` prints: the options of each group, and the named sweeps, each with its
title and the question it answers.

A sweep file says both in a comment at its top: ``# Depth: does depth pay at this width?``
"""

import re
from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.cells import cell_len, set_cell_size

from llm import commands
from llm.config.compose import CONF

# "# Depth: does depth pay?", also in full-width punctuation
QUESTION = re.compile(r"# *([^@:\uff1a]+)(?:: |\uff1a ?)(.+[?\uff1f])\s*")

# Files of conf/ that are no option of a group: a key names one of them.
FOLDER_OF = {"data.template": "templates"}


def question_of(path: Path) -> tuple[str, str] | None:
    """The title and the question of a sweep file; None if no comment at its top has them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a folder, or a file of somebody else: the sweep itself will be refused
        return None
    comments = takewhile(lambda line: line.startswith("#"), lines)
    match = next(filter(None, map(QUESTION.fullmatch, comments)), None)
    return None if match is None else (match[1].strip(), match[2])


def list_sweeps() -> str:
    """A line for each sweep, of this program and of ``--config-dir``: name, title and question."""
    flags = commands.OPTION_FOLDERS
    own = [Path(flags[flags.index("--config-dir") + 1])] if "--config-dir" in flags else []
    paths = {path.stem: path for folder in (*own, CONF) for path in folder.glob("sweep/*.yaml")}
    width = max(map(cell_len, paths), default=0)
    lines = []
    for name, path in sorted(paths.items()):
        title, question = question_of(path) or ("", "")
        text = f"{title}: {question}" if title else ""
        lines.append(f"{set_cell_size(name, width)}  {text}".rstrip())
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in the words after a $


def list_groups(*keys: str, _root_: DictConfig) -> str:
    """A line for each of ``keys`` with the options that it takes, also those in a user's folder.

    Hydra's own list has every folder of ``conf/``, also those that a command does not take.
    """
    sources = _root_.hydra.runtime.config_sources
    folders = [Path(one.path) for one in sources if one.schema == "file"]
    lines = []
    for key in keys:
        place = FOLDER_OF.get(key, key)
        options = {path.stem for folder in folders for path in folder.glob(f"{place}/*.yaml")}
        lines.append(f"{key}: {', '.join(sorted(options))}")
    return "\n".join(lines).replace("$", "$$")


OmegaConf.register_new_resolver("list_groups", list_groups, replace=True)
OmegaConf.register_new_resolver("list_sweeps", list_sweeps, replace=True)  # for conf/training.yaml
