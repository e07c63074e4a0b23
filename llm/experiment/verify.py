"""Whether the files of a run are still what was written: ``resume=FOLDER verify=true``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import FOLDER
from llm.checkpoint.formats import MANIFEST
from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import folder_of
from llm.errors import Refused, require
from llm.experiment.console import say
from llm.units import format_bytes


def verify_run(run: Path, data: DataConfig) -> None:
    """Compare every checkpoint of ``run``, and its dataset where it is, with their digests.

    Prints a line for each; raises :class:`llm.errors.Refused` if one is not intact.
    """
    paths = sorted(p for kind in ("step", "best") for p in (run / FOLDER).glob(f"{kind}-*"))
    require(paths, f"{run} holds no checkpoints")
    wrong = [path.name for path in paths if not _is_intact(path, partial(_checkpoint, path))]
    folder = _data_folder(data)
    if folder is not None and not _is_intact(folder, partial(_dataset, folder, paths)):
        wrong.append(str(folder))
    require(not wrong, f"{run}: {', '.join(wrong)} cannot be used")


def _is_intact(place: Path, compare: Callable[[], int]) -> bool:
    """Whether ``compare``, which returns a number of bytes, refuses nothing. Prints one line."""
    try:
        say(f"{place}  intact  {format_bytes(compare())}")
    except Refused as refusal:
        say(f"{place}  {refusal}")
        return False
    return True


def _checkpoint(path: Path) -> int:
    checkpoint = Checkpoint.open(path)
    checkpoint.verify()
    return sum((path / name).stat().st_size for name in [*checkpoint.files, MANIFEST])


def _dataset(folder: Path, checkpoints: list[Path]) -> int:
    """It must also be the one that the checkpoints were trained on."""
    dataset = Dataset.open(folder)
    dataset.verify()
    for path in checkpoints:
        same = _data_digest(path) in (None, dataset.digest)
        require(same, f"is not what {path.name} was trained on")
    return dataset.size


def _data_digest(checkpoint: Path) -> str | None:
    """What a checkpoint says it was trained on; None if it is unreadable, which was said before."""
    try:
        return str(Checkpoint.open(checkpoint).identity.get("data_digest"))
    except Refused:
        return None


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
