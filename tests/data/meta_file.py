"""``meta.json`` as a program would write it that means something else, or that is older."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.sealed import DIGEST, sealed


def saved_meta(folder: Path) -> dict[str, Any]:
    """The values in ``meta.json``, unchecked, without their digest."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    del meta[DIGEST]
    return meta


def edit_meta(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the values in ``meta.json``, whose digest becomes theirs."""
    meta = saved_meta(folder)
    change(meta)
    (folder / "meta.json").write_text(sealed(meta), encoding="utf-8")


def as_version_1(folder: Path) -> None:
    """Make ``meta.json`` what it was before it had a digest."""
    meta = saved_meta(folder) | {"format_version": 1}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
