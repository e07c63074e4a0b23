"""The ``checkpoints/`` of one run: save, delete the oldest, and find one to continue from."""

import os
import re
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from llm.checkpoint.checkpoint import TRAINING, Checkpoint
from llm.checkpoint.find import FOLDER, FORMAT_VERSION, MANIFEST, WEIGHTS, Base, TooNew
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
from llm.model.finetune import FinetuneOptions
from llm.sealed import Plain, sealed
from llm.units import format_bytes

STEP = re.compile(rf"\.?step-(\d{{8,}})({re.escape(REPLACED)})?")


class CheckpointFolder:
    """Saves the checkpoints of one run, and keeps the newest ``keep_last``."""

    def __init__(
        self, run: Path, keep_last: int, model: GPTConfig, tokenizer: Tokenizer, identity: Plain,
        template: Plain | None = None, finetune: FinetuneOptions | None = None,
        base: Base | None = None, context: int | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.keep_last = run / FOLDER, keep_last
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        self.template, self.context = template or {}, context
        # None unless only a part of the weights is trained. An older version reads a manifest
        # without them.
        self.finetune = finetune or FinetuneOptions()
        parts = {"finetune": finetune, "base": base}
        self.partial = {key: asdict(one) for key, one in parts.items() if one is not None}

    def save(
        self, step: int, weights: dict[str, Tensor], training: dict[str, Tensor], state: Plain
    ) -> Path:
        """Publish ``step-N``, link ``last`` to it, then delete the oldest.

        Raises :class:`llm.errors.DiskError`, and leaves the older checkpoints then.
        """
        path = self.folder / f"step-{step:08d}"
        with writing(path):
            self._publish(path, "last", {WEIGHTS: weights, TRAINING: training}, step, state)
            saved = resumable(self.folder)
            # Later steps, damaged or from before a rollback, do not count towards keep_last.
            saved = saved[: saved.index(path) + 1]
            for old in saved[: -self.keep_last]:
                withdraw(old)
        return path

    def save_best(self, step: int, weights: dict[str, Tensor], state: Plain) -> Path:
        """Publish ``best-N`` (weights only), link ``best`` to it, then delete the previous one."""
        path = self.folder / f"best-{step:08d}"
        with writing(path):
            self._publish(path, "best", {WEIGHTS: weights}, step, state)
            for old in self.folder.glob("best-*"):
                if old != path:
                    withdraw(old)
        return path

    def check_room(self, weights: int, training: int) -> None:
        """Raise :class:`llm.errors.DiskError` unless all checkpoints of the run fit on the disk.

        The arguments are bytes of one file. During a save there is one checkpoint more than
        ``keep_last``, and a second best one.
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
        self.folder.mkdir(exist_ok=True)  # without parents: a deleted run folder stays deleted
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
                **self.partial,
            }
            if self.template:
                manifest["template"] = self.template
            if self.context:
                manifest["context"] = self.context
            write_durably(temporary / MANIFEST, sealed(manifest).encode())
        link(self.folder, name, path)


def link(folder: Path, name: str, target: Path) -> None:
    """Make ``folder/name`` a link to ``target``, a path in ``folder``, in one atomic step."""
    temporary = folder / f".{name}{TEMPORARY}"
    delete(temporary)
    temporary.symlink_to(target.name)
    os.replace(temporary, folder / name)


def resumable(folder: Path) -> list[Path]:
    """The ``step-N`` in a folder, oldest first; a copy that is being replaced counts as older."""
    ages = {}
    for path in folder.glob("*step-*"):
        if match := STEP.fullmatch(path.name):
            ages[path] = int(match[1]), match[2] is None
    return sorted(ages, key=ages.__getitem__)


def newest_valid(run: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest intact checkpoint of ``run``, and the faults of newer ones.

    Every digest is compared. Raises :class:`TooNew`, and :class:`llm.errors.Refused` if all
    checkpoints are damaged: starting again would silently discard them.
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

    Renames damaged checkpoints, so that no resume finds them, and deletes temporary files of killed
    processes. The run must be locked.
    """
    for folder in (run, run / FOLDER):
        delete_temporary(folder)
    step, lines = newest.step if newest else 0, []
    for path, fault in damaged.items():
        renamed = path.with_name(f"damaged-{path.name.lstrip('.')}")
        delete(renamed)
        path.rename(renamed)
        lines.append(f"{fault}: renamed to {renamed.name}, continuing from step {step}")
    if newest is not None:
        link(newest.path.parent, "last", newest.path)
    return lines
