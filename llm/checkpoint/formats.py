"""The manifest of a checkpoint, and how those of earlier versions become one of today.

Nothing on the disk is changed by that: a checkpoint is read anew each time.
"""

from collections.abc import Callable
from pathlib import Path

from llm.errors import Refused, require
from llm.sealed import Plain, opened

MANIFEST = "checkpoint.json"  # in a checkpoint
FORMAT_VERSION = 2
KINDS = {
    "format_version": int, "step": int, "model": dict, "tokenizer": dict, "state": dict,
    "identity": dict, "files": dict,
}  # fmt: skip


class TooNew(Refused):
    """A checkpoint of a later version of this program: whole, but not for this one to read."""


def current(manifest: Plain, where: Path) -> Plain:
    """The manifest in today's format, its keys and their types checked.

    Raises :class:`TooNew`, and :class:`llm.errors.Refused` for one that no version has written.
    """
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise Refused(f"{where} has format_version={version!r}: it is none of this program's")
    if version >= 2:  # first of all: a flipped bit may have made it a later one
        manifest = opened(manifest, where)
    if version > FORMAT_VERSION:
        raise TooNew(
            f"{where} has format_version={version}, and this version reads up to {FORMAT_VERSION}: "
            "update the program"
        )
    extra = sorted(set(manifest) - set(KINDS))
    require(not extra, f"{where} has an unknown key {extra[0] if extra else ''}")
    for key, kind in KINDS.items():
        require(type(manifest.get(key)) is kind, f"{where} has no usable {key}")
    require(manifest["step"] >= 0, f"{where} has no usable step")
    for step in range(version, FORMAT_VERSION):
        manifest = MIGRATIONS[step](manifest)
    return manifest


def _from_1(manifest: Plain) -> Plain:
    """Version 1 had no digest of its own, and knew neither skipped steps nor a row put off."""
    state, progress = manifest["state"], manifest["state"].get("progress")
    later: Plain = {
        "row": None,
        "environment": {},
        "guard": {"in_a_row": 0, "losses": [], "norms": []},
    }
    if isinstance(progress, dict):
        known = {"skipped": 0, "rollbacks": 0, "best_bits_per_byte": None}
        later["progress"] = known | progress
    return manifest | {"format_version": 2, "state": state | later}


MIGRATIONS: dict[int, Callable[[Plain], Plain]] = {1: _from_1}
