"""The folders that W&B writes for a run: one segment for each time that the run was started."""

import contextlib
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.disk import sync_folder
from llm.experiment.console import warn

BLOCK, HEADER = 32768, 7  # bytes
CLOSING = 5.0  # seconds to wait until W&B's service has written the end of a closed segment


class Segments:
    """The segments of one run; the newest replaces the others once it has all their rows.

    ``newest``: the ``.wandb`` file that is being written. ``sweep``: the folder of the sweep, if
    the run is one of its jobs. Its ``wandb/`` has one link per run, for `wandb leet run` and
    `wandb sync`.
    """

    def __init__(self, folder: Path, newest: Path, sweep: Path | None) -> None:
        self.newest, self.sweep = newest, sweep
        self.older: list[Path] = []
        if not (folder / "wandb").is_symlink():  # only segments of this run are deleted
            segments = folder.glob("wandb/offline-run-*/*.wandb")
            self.older = sorted(set(segments) - {newest})
        self.is_replacing = False
        self.last_step: int | None = None
        self.checked_size = -1

    def replace_older(self, last_step: int | None) -> None:
        """Delete the older segments as soon as the newest has the row of ``last_step``.

        A segment that ``wandb sync`` has uploaded completely is kept. A sync that was interrupted
        leaves no mark, so its segment counts as not uploaded.
        """
        uploaded = [path for path in self.older if path.with_suffix(".wandb.synced").exists()]
        self.older = [path for path in self.older if path not in uploaded]
        is_offline = self.newest.parent.name.startswith("offline-")
        for path in uploaded if is_offline else []:
            warn(
                f"W&B: {path.parent.name} was uploaded already and is kept; the new segment has "
                "all rows and replaces it at the next `wandb sync`"
            )
        self.last_step, self.is_replacing = last_step, True
        self.delete_older()

    def delete_older(self, is_closed: bool = False) -> None:
        """Delete the older segments if the newest has all rows on the disk by now.

        W&B's service writes every two seconds, so this is called again with each new row.
        """
        if not self.is_replacing:
            return
        end = time.monotonic() + (CLOSING if is_closed else 0)
        while not self._has_all_rows():
            if time.monotonic() >= end:
                return
            time.sleep(0.05)
        self._link()
        for path in self.older:
            shutil.rmtree(path.parent, ignore_errors=True)
        self.is_replacing = False

    def _has_all_rows(self) -> bool:
        if not self.older or self.last_step is None:
            return True
        size = self.newest.stat().st_size if self.newest.exists() else 0
        if size == self.checked_size:
            return False
        self.checked_size = size
        if not any(step == self.last_step for step in steps(self.newest)):
            return False
        with self.newest.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(self.newest.parent)
        return True

    def _link(self) -> None:
        """Let the sweep's link to this run lead to the newest segment."""
        if self.sweep is None:
            return
        links = self.sweep / "wandb"
        links.mkdir(exist_ok=True)
        target = Path(os.path.relpath(self.newest.parent, links))
        newest = links / target.name
        if not newest.is_symlink():
            newest.symlink_to(target)
        for link in links.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another job deletes its own links now
                is_of_this_run = link.is_symlink() and link.readlink().parent == target.parent
                if is_of_this_run and link != newest:
                    link.unlink()


def steps(path: Path) -> Iterator[int]:
    """The steps of the rows that are completely written to a ``.wandb`` file."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made at run time
    for raw in _records(path.read_bytes()):
        record = messages.Record.FromString(raw)
        if record.HasField("history"):
            yield record.history.step.num


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: LevelDB's log format, after a header of 7 bytes.

    Records are cut into chunks, because no chunk may cross the border of a block. The end may be
    torn: a killed process leaves it so.
    """
    position, record = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # the rest of the block is too small for a chunk
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + HEADER : position + HEADER + size]
        if kind == 0 or len(chunk) < size:
            return
        position += HEADER + size
        record = chunk if kind in (1, 2) else record + chunk  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            yield record
