"""Whether the files of a run are still what was written: ``resume=FOLDER verify=true``."""

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
    try:
        dataset = Dataset.open(folder_of(data))
        dataset.verify()
        say(f"{dataset.folder}  intact  {gib(dataset.size)}")
    except Refused as refusal:  # the text that names its folder may be gone, too
        say(f"dataset  not checked: {refusal}")
    require(not wrong, f"{run}: {', '.join(wrong)} cannot be used")


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
