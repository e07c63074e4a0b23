"""Read a ``.wandb`` file back: blocks of 32 KiB with chunks of protobuf records in them."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.command_line import wait_until

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Its records in order; the end may be torn, as a kill leaves it."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    position, waiting = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:  # too small for the header of a chunk
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0 or position + 7 + size > len(data):
            return
        chunk = data[position + 7 : position + 7 + size]
        position += 7 + size
        waiting = chunk if kind in (1, 2) else waiting + chunk  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(waiting)
            yield record


def read(folder: Path) -> dict[str, Any]:
    """The only run in ``folder/wandb``, once W&B's service has written its end.

    The service writes in a process of its own: ``finish()`` may return earlier.
    """
    (path,) = wait_until(lambda: list(folder.glob("wandb/*run-*/*.wandb")))
    wait_until(lambda: read_file(path)["exit_code"] is not None)
    return read_file(path)


def read_file(path: Path) -> dict[str, Any]:
    """``run`` (its record), ``config``, ``history`` (rows), ``metrics``, ``exit_code``, ``raw``."""
    found: dict[str, Any] = {"history": [], "metrics": [], "exit_code": None, "config": {}}
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                found["run"] = record.run
                found["config"] |= _values(record.run.config.update)
            case "history":
                found["history"].append(_values(record.history.item))
            case "metric":
                found["metrics"].append(record.metric)
            case "exit":
                found["exit_code"] = record.exit.exit_code
    found["raw"] = path.read_bytes()
    return found


def _values(items: Any) -> dict[str, Any]:
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
