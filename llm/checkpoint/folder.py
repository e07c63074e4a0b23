"""The ``checkpoints/`` of one run: what is published in it, kept, found again and set aside.

A checkpoint is written under another name and renamed, so that one with its final name is whole.
The order is what makes it last (Pillai et al. 2014, on what file systems promise): files to the
disk, their folder, the new name, the folder that holds the name; only then is an older one deleted,
its manifest first, so that what a crash leaves of it is no checkpoint any more.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from llm.checkpoint.checkpoint import (
    TRAINING,
    WEIGHTS,
    Checkpoint,
    load_weights,
    require_fitting,
)
from llm.checkpoint.find import FOLDER, find_checkpoint
from llm.checkpoint.formats import FORMAT_VERSION, MANIFEST, TooNew
from llm.checkpoint.shapes import weight_shapes
from llm.checkpoint.writing import pieces
from llm.data.tokenizer import Tokenizer
from llm.disk import could_not_write, free_bytes, sync_folder, write_durably
from llm.errors import DiskError, Refused, require
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.sealed import Plain, sealed
from llm.units import format_bytes


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
        """Publish ``step-N``, point ``last`` at it, then drop what is too old.

        Raises :class:`llm.errors.DiskError`; what was there before is still there then.
        """
        path = self.folder / f"step-{step:08d}"
        with _reported(path):
            self._publish(path, {WEIGHTS: weights, TRAINING: training}, step, state)
            point(self.folder, "last", path)
            found = to_continue_from(self.folder)
            # What comes after it is of a try that was given up, and replaces nothing.
            for old in found[: found.index(path) + 1][: -self.keep_last]:
                remove(old)
        return path

    def save_best(self, step: int, weights: dict[str, Tensor], state: Plain) -> Path:
        """Publish ``best-N`` (weights only), point ``best`` at it, then drop the one before."""
        path = self.folder / f"best-{step:08d}"
        with _reported(path):
            self._publish(path, {WEIGHTS: weights}, step, state)
            point(self.folder, "best", path)
            for old in self.folder.glob("best-*"):
                if old != path:
                    remove(old)
        return path

    def check_room(self, weights: int, training: int) -> None:
        """Raise :class:`llm.errors.DiskError` unless all that a run keeps fits; sizes in bytes.

        While one is replaced there is one more of each: ``keep_last`` and the best one.
        """
        wanted = (self.keep_last + 1) * (weights + training) + 2 * weights
        there = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        free = free_bytes(self.folder)
        if free + there < wanted:
            raise DiskError(
                f"{self.folder} has {format_bytes(free)} free, and the checkpoints of this run "
                f"take up to {format_bytes(wanted)}: make room, or lower "
                f"trainer.keep_last={self.keep_last}"
            )

    def _publish(
        self, final: Path, files: dict[str, dict[str, Tensor]], step: int, state: Plain
    ) -> None:
        clean(self.folder)
        size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        if free_bytes(self.folder) < size:  # do not write half of it first
            free = format_bytes(free_bytes(self.folder))
            raise DiskError(
                f"{final} takes {format_bytes(size)}, and only {free} are free: make room"
            )
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        replaced = final.with_name(f"{final.name}.replaced")
        try:
            new = not self.folder.exists()
            # Not its parents: in a run folder that was deleted, nothing could continue from these.
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir()
            digests = {file: _write(temporary / file, files[file]) for file in files}
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
            sync_folder(temporary)
            if final.exists():  # the same step again: a kill leaves the one or the other
                remove(replaced)
                final.rename(replaced)
            temporary.rename(final)
            sync_folder(self.folder)
            if new:
                sync_folder(self.folder.parent)
            remove(replaced)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def point(folder: Path, name: str, target: Path) -> None:
    """Make ``folder/name`` lead to ``target``, which is in ``folder``."""
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, folder / name)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint if there is one; cut short, this leaves nothing that looks like one."""
    if checkpoint.is_symlink():  # what it leads to is not of this run
        checkpoint.unlink()
    elif checkpoint.exists():
        rest = checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}"))
        (rest / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(rest)


def clean(folder: Path) -> None:
    """Delete what a process has left that was killed while it wrote or deleted.

    Only for who holds the run's lock: nobody else is writing then.
    """
    for rest in folder.glob(".*.*"):
        if not re.fullmatch(r"\..+\.\d+", rest.name):  # the number of its process
            continue
        if rest.is_dir() and not rest.is_symlink():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


def to_continue_from(folder: Path) -> list[Path]:
    """The ``step-N`` in a folder, fewest steps first; before each, one that it replaces."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}(\.replaced)?", p.name)]
    return sorted(found, key=lambda p: (int(p.name[5:].partition(".")[0]), p.suffix == ""))


def newest_valid(run: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """What a run can continue from: the newest checkpoint that is whole, and of those that are
    newer what is wrong with each.

    Every digest of it is checked. Raises :class:`TooNew`, and :class:`llm.errors.Refused` if there
    are checkpoints, and none of them is whole: starting again would lose them without a word.
    """
    skipped: dict[Path, str] = {}
    for path in reversed(to_continue_from(run / FOLDER)):
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.require_training()
            checkpoint.verify()
            return checkpoint, skipped
        except TooNew:
            raise
        except Refused as refusal:
            skipped[path] = str(refusal)
    if skipped:
        listed = "; ".join(skipped.values())
        raise Refused(f"no checkpoint of {run} can be continued from ({listed}): take another run")
    return None, {}


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint another name, so that it neither counts nor gets lost."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def weights_digest(place: str) -> str:
    """The sha256 of the weights that ``init_from=place`` means, wherever they are."""
    return Checkpoint.open(find_checkpoint("init_from", place)).files[WEIGHTS]


def start_from(model: GPT, place: str, tokenizer: Tokenizer) -> Checkpoint:
    """Load the weights of ``init_from=place``, a run folder (its best) or a checkpoint, which is
    returned.

    ``tokenizer`` is that of the data: weights that learned other ids cannot read its text.
    Raises :class:`llm.errors.Refused` naming both, and for weights of another shape.
    """
    origin = Checkpoint.open(find_checkpoint("init_from", place))
    theirs, ours = origin.tokenizer, tokenizer
    require(
        theirs.digest() == ours.digest(),
        f"init_from={place} was trained on {theirs.described(ours)}, and data.tokenizer="
        f"{ours.kind} has {ours.described(theirs)}: take the data it was trained on, or train "
        "without init_from",
    )
    # Before all of a larger model's are read.
    require_fitting(model, weight_shapes(origin.model), str(origin.path))
    load_weights(model, origin.weights(), str(origin.path))
    return origin


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a tensor file and wait until it is on the disk; returns its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces(tensors):
            file.write(piece)
            digest.update(piece)
            del piece  # it may be a copy, and the next one needs as much memory
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise could_not_write(path, error) from error
