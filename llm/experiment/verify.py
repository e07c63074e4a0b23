"""Whether the files of a run are still what was written: ``resume=FOLDER verify=true``."""

import contextlib
from pathlib import Path

from llm.checkpoint.checkpoint import MANIFEST, Checkpoint
from llm.checkpoint.folder import FOLDER
from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import folder_of
from llm.errors import Refused, require
from llm.experiment.console import gib, say


def verify_run(run: Path, data: DataConfig) -> None:
    """Compare every checkpoint of ``run``, and its dataset where it is, with their digests.

    Prints a line for each; raises :class:`llm.errors.Refused` if one is not intact.
    """
    paths = sorted(p for kind in ("step", "best") for p in (run / FOLDER).glob(f"{kind}-*"))
    require(paths, f"{run} holds no checkpoints")
    wrong = [path.name for path in paths if not _is_intact(path)]
    folder = _data_folder(data)
    if folder is not None and not _is_the_data(folder, paths):
        wrong.append(str(folder))
    require(not wrong, f"{run}: {', '.join(wrong)} cannot be used")


def _data_folder(data: DataConfig) -> Path | None:
    """Where the run's dataset is, if it is; the text that names its folder may be gone, too."""
    try:
        folder = folder_of(data)
    except Refused as refusal:
        say(f"dataset  not there: {refusal}")
        return None
    if not folder.exists():
        say(f"dataset  not there: {folder}")
        return None
    return folder


def _is_the_data(folder: Path, checkpoints: list[Path]) -> bool:
    """Whether the dataset is intact, and the one that the checkpoints were trained on."""
    try:
        dataset = Dataset.open(folder)
        dataset.verify()
    except Refused as refusal:
        say(f"{folder}  {refusal}")
        return False
    for path in checkpoints:
        with contextlib.suppress(Refused):
            if Checkpoint.open(path).identity.get("data_digest") != dataset.digest:
                say(f"{folder}  is not what {path.name} was trained on")
                return False
    say(f"{folder}  intact  {gib(dataset.size)}")
    return True


def _is_intact(path: Path) -> bool:
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.verify()
    except Refused as refusal:
        say(f"{path}  {refusal}")
        return False
    size = sum((path / name).stat().st_size for name in [*checkpoint.files, MANIFEST])
    say(f"{path}  intact  {gib(size)}")
    return True
