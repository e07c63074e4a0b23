"""``resume=FOLDER verify=true``: check that the files of a run are as they were written."""

from pathlib import Path

from llm.answer import answer, document
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import FOLDER, MANIFEST
from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import folder_of
from llm.errors import Refused, require
from llm.experiment.console import say
from llm.units import format_bytes


def verify_run(run: Path, data: DataConfig) -> None:
    """Compare every checkpoint of ``run`` and its dataset, if it exists, with their digests.

    Prints a line for each; raises :class:`llm.errors.Refused` unless all are intact.
    """
    answer(folder=run, files=[])
    paths = sorted(p for kind in ("step", "best") for p in (run / FOLDER).glob(f"{kind}-*"))
    require(paths, f"{run} holds no checkpoints")
    damaged, trained_on = list[str](), dict[str, str]()
    for path in paths:
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.verify()
            size = sum((path / name).stat().st_size for name in [*checkpoint.files, MANIFEST])
            _show(path, "intact", size)
            trained_on[path.name] = str(checkpoint.identity.get("data_digest"))
        except Refused as refusal:
            _show(path, str(refusal))
            damaged.append(path.name)
    try:
        folder = folder_of(data)  # reads the text, which may be deleted by now
        require(folder.exists(), str(folder))
    except Refused as refusal:
        _show("dataset", f"not there: {refusal}")
    else:
        if not _is_intact(folder, trained_on):
            damaged.append(str(folder))
    require(not damaged, f"{run}: {', '.join(damaged)} cannot be used")


def _is_intact(folder: Path, trained_on: dict[str, str]) -> bool:
    """Whether a dataset is intact and has the digests in ``trained_on``. Prints a line."""
    try:
        dataset = Dataset.open(folder)
        dataset.verify()
        for name, digest in trained_on.items():
            require(digest == dataset.digest, f"is not what {name} was trained on")
    except Refused as refusal:
        _show(folder, str(refusal))
        return False
    _show(folder, "intact", dataset.size)
    return True


def _show(path: Path | str, state: str, size: int | None = None) -> None:
    """Print a line, and add it to the ``files`` of the command's document."""
    say(f"{path}  {state}" + f"  {format_bytes(size or 0)}" * (size is not None))
    document.setdefault("files", []).append({"path": path, "state": state, "bytes": size})
