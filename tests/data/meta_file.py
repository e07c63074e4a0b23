"""Edit ``meta.json`` as a program would that means something else."""

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
    """Change the values in ``meta.json`` and their digest with them."""
    meta = saved_meta(folder)
    change(meta)
    (folder / "meta.json").write_text(sealed(meta), encoding="utf-8")
