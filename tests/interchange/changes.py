"""Changes to saved weights and to the JSON beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Change = Callable[[Path], Any]


def changed_json(name: str, **values: Any) -> Change:
    """Set keys of the file ``name`` in a folder."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def changed_tensors(name: str, edit: Callable[[dict[str, Tensor]], Any]) -> Change:
    """Let ``edit`` change the tensors of the file ``name`` in a folder."""

    def change(folder: Path) -> None:
        loaded = load_file(folder / name)
        edit(loaded)
        save_file(loaded, folder / name)

    return change
