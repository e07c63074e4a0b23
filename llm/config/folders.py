"""Folders with a user's own option files, given by ``--config-dir``."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from llm.errors import require


def use_folders(hydra: DictConfig) -> None:
    """Let Python find modules in a user's folder of options and in its parent folder.

    Both come last in ``sys.path``, so that nothing there replaces an installed module. Raises
    :class:`llm.errors.Refused` for a chosen option in such a folder that a built-in one hides.
    """
    files = [source for source in hydra.runtime.config_sources if source.schema == "file"]
    built_in = [Path(source.path) for source in files if source.provider == "main"]
    for folder in (Path(source.path) for source in files if source.provider != "main"):
        for group, option in hydra.runtime.choices.items():
            _refuse_hidden(folder, built_in, f"{group}/{option}")
        for place in (str(folder), str(folder.parent)):
            if place not in sys.path:
                sys.path.append(place)


def _refuse_hidden(folder: Path, built_in: list[Path], option: str) -> None:
    own, others = folder / f"{option}.yaml", [place / f"{option}.yaml" for place in built_in]
    hiding = [file for file in others if own.is_file() and file.is_file()]
    group, _, name = option.rpartition("/")
    require(
        not hiding or any(own.samefile(file) for file in hiding),
        f"{group}={name} is a built-in option, which hides {own}: take another name",
    )
