"""Folders with option files of the user's own, given by ``--config-dir``."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from llm import commands
from llm.errors import require
from llm.settings.own import TARGET


def refuse_typed_targets(arguments: Iterable[str]) -> None:
    """Raise :class:`llm.errors.Refused` for a ``_target_`` on the command line."""
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        typed = key.rpartition(".")[2] == TARGET and not key.startswith("hydra.")
        require(
            not typed,
            f"{key} cannot be typed: name the class in a file, as docs/extending.md shows",
        )


def _refuse_hidden(folder: Path, ours: list[Path], choices: Any) -> None:
    """Raise :class:`llm.errors.Refused` where an option of ours was taken for one in ``folder``."""
    for group, option in choices.items():
        files = [place / group / f"{option}.yaml" for place in (folder, *ours)]
        both = files[0].is_file() and any(file.is_file() for file in files[1:])
        require(
            not both or any(files[0].samefile(file) for file in files[1:] if file.is_file()),
            f"{group}={option} is an option of ours, which hides {files[0]}: take another name",
        )


def use_folders(of_hydra: DictConfig) -> None:
    """Let Python find modules in a folder of options of the user's, and in the one above it; and
    let every command that is told name the folder.

    They come last, so that nothing there takes the place of an installed module. Raises
    :class:`llm.errors.Refused` for an option in such a folder that one of ours hides.
    """
    given = []
    sources = [one for one in of_hydra.runtime.config_sources if one.schema == "file"]
    ours = [Path(source.path) for source in sources if source.provider == "main"]
    for source in sources:
        if source.provider != "main":
            _refuse_hidden(Path(source.path), ours, of_hydra.runtime.choices)
            given += ["--config-dir", source.path] * (source.provider == "command-line")
            for place in (source.path, str(Path(source.path).parent)):
                if place not in sys.path:
                    sys.path.append(place)
    typed = [str(one) for one in of_hydra.overrides.hydra]
    commands.of_training[:] = [*given, *(o for o in typed if o.startswith("hydra.searchpath="))]
