"""The ``checkpoints/`` of one run: saving, pruning, and finding one to continue from."""

import os
import re
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from llm.checkpoint.checkpoint import TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.find import FOLDER, FORMAT_VERSION, MANIFEST, TooNew
from llm.checkpoint.tensors import write_tensors
from llm.data.tokenizer import Tokenizer
from llm.disk import (
    REPLACED,
    TEMPORARY,
    delete,
    delete_temporary,
    free_bytes,
    published,
    sync_folder,
    withdraw,
    write_durably,
    writing,
)
from llm.errors import DiskError, Refused
from llm.model.config import GPTConfig
from llm.sealed import Plain, sealed
from llm.units import format_bytes

STEP = re.compile(rf"\.?step-(\d{{8,}})({re.escape(REPLACED)})?")


class CheckpointFolder:
    """Saves the checkpoints of one run, and keeps the newest ``keep_last``."""

    def __init__(
        self, run: Path, keep_last: int, model: GPTConfig, tokenizer: Tokenizer, identity: Plain
    ) -> None:
        self.folder, self.keep_last = run / FOLDER, keep_last
        self.model, self.tokenizer, self.identity = model, tokenizer, identity

    def save(
        self, step: int, weights: dict[str, Tensor], training: dict[str, Tensor], state: Plain
    ) -> Path:
        """Publish ``step-N``, link ``last`` to it, then delete the oldest.

        Raises :class:`llm.errors.DiskError`; the older checkpoints are still there then.
        """
        path = self.folder / f"step-{step:08d}"
        with writing(path):
            self._publish(path, "last", {WEIGHTS: weights, TRAINING: training}, step, state)
            saved = resumable(self.folder)
            # Later steps are from before a rollback, or damaged; this one replaces none of them.
            for old in saved[: saved.index(path) + 1][: -self.keep_last]:
                withdraw(old)
        return path

    def save_best(self, step: int, weights: dict[str, Tensor], state: Plain) -> Path:
        """Publish ``best-N`` (weights only), link ``best`` to it, then delete the one before."""
        path = self.folder / f"best-{step:08d}"
        with writing(path):
            self._publish(path, "best", {WEIGHTS: weights}, step, state)
            for old in self.folder.glob("best-*"):
                if old != path:
                    withdraw(old)
        return path

    def check_room(self, weights: int, training: int) -> None:
        """Raise :class:`llm.errors.DiskError` unless there is room for all checkpoints that the run
        keeps at once, given the bytes of the two files.

        While a checkpoint is replaced there is one more than ``keep_last``, and a second best one.
        """
        needed = (self.keep_last + 1) * (weights + training) + 2 * weights
        used = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        free = free_bytes(self.folder)
        if free + used < needed:
            raise DiskError(
                f"{self.folder} has {format_bytes(free)} free, and the checkpoints of this run "
                f"take up to {format_bytes(needed)}: make room, or lower "
                f"trainer.keep_last={self.keep_last}"
            )

    def _publish(
        self, path: Path, name: str, files: dict[str, dict[str, Tensor]], step: int, state: Plain
    ) -> None:
        # Not its parents: nothing could be resumed in a run folder that was deleted.
        self.folder.mkdir(exist_ok=True)
        sync_folder(self.folder.parent)
        with published(path) as temporary:
            digests = {file: write_tensors(temporary / file, files[file]) for file in files}
            manifest = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "model": asdict(self.model),
                "state": state,
                "identity": self.identity,
                "files": digests,
                "tokenizer": self.tokenizer.to_json(),
            }
            write_durably(temporary / MANIFEST, sealed(manifest).encode())
        link(self.folder, name, path)


def link(folder: Path, name: str, target: Path) -> None:
    """Make ``folder/name`` a link to ``target``, which is in ``folder``, in one step."""
    temporary = folder / f".{name}{TEMPORARY}"
    delete(temporary)
    temporary.symlink_to(target.name)
    os.replace(temporary, folder / name)


def resumable(folder: Path) -> list[Path]:
    """The ``step-N`` in a folder, fewest steps first; before each, the one that it replaces."""
    found = {}
    for path in folder.glob("*step-*"):
        if match := STEP.fullmatch(path.name):
            found[path] = int(match[1]), match[2] is None
    return sorted(found, key=found.__getitem__)


def newest_valid(run: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint of ``run`` that is whole, and each newer one with its fault.

    Every digest is compared. Raises :class:`TooNew`, and :class:`llm.errors.Refused` if there are
    checkpoints and none is whole: starting again would silently discard them.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(resumable(run / FOLDER)):
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.verify()
            return checkpoint, damaged
        except TooNew:
            raise
        except Refused as refusal:
            damaged[path] = str(refusal)
    if damaged:
        listed = "; ".join(damaged.values())
        raise Refused(f"no checkpoint of {run} can be continued from ({listed}): take another run")
    return None, {}


def repair(run: Path, newest: Checkpoint | None, damaged: dict[Path, str]) -> list[str]:
    """Make ``checkpoints/`` ready to continue from ``newest``; returns a line for each damaged one.

    Damaged checkpoints are renamed, so that they are kept but not found; temporary files of killed
    processes are deleted. The run must be locked.
    """
    for folder in (run, run / FOLDER):
        delete_temporary(folder)
    step, lines = newest.step if newest else 0, []
    for path, fault in damaged.items():
        kept = path.with_name(f"damaged-{path.name.lstrip('.')}")
        delete(kept)
        path.rename(kept)
        lines.append(f"{fault}: renamed to {kept.name}, continuing from step {step}")
    if newest is not None:
        link(newest.path.parent, "last", newest.path)
    return lines
