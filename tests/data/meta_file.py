"""Edit ``meta.json`` as another program could, with a right digest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.sealed import DIGEST, sealed


def edit_meta(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply ``change`` to the values in ``meta.json`` and renew their digest."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    del meta[DIGEST]
    change(meta)
    path.write_text(sealed(meta), encoding="utf-8")
