"""The page of a report: one HTML file that works offline, with plotly.min.js beside it."""

import base64
import hashlib
import json
import math
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm.disk import replaced
from llm.errors import Refused
from llm.experiment.rundir import replace_text
from llm.experiment.sweep_answer import REPORT
from llm.sealed import Plain

PLOTLY = "plotly.min.js"
# In the order in which they run.
SCRIPTS = ("page.js", "table.js", "plots.js", "curves.js", "pictures.js", "endings.js")
DIGITS = 6  # that the page keeps of each number: report.json has all of them


def page(document: Plain, extra: Plain) -> str:
    """The HTML of a report. ``document`` is report.json's; ``extra``: curves, samples and notes.

    Everything is in it except plotly.min.js, which has to lie in the same folder.
    """
    script = "\n".join(_read(name) for name in SCRIPTS)
    parts = {
        "title": _as_text(str(document.get("title") or "Report")),
        # The browser runs this script and files beside the page, and nothing that a name contains.
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": _read("page.css"),
        "data": _as_json({"document": document, "extra": extra}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def write_page(folder: Path, document: Plain, extra: Plain) -> Path:
    """Write report.html, and plotly.min.js if it is not there yet; returns the path of the page.

    Raises :class:`llm.errors.Refused` if plotly is not installed.
    """
    source, copy = _plotly(), folder / PLOTLY
    if not copy.is_file() or copy.stat().st_size != source.stat().st_size:
        with source.open("rb") as original, replaced(copy) as file:
            shutil.copyfileobj(original, file)
    replace_text(folder / REPORT, page(document, extra))
    return folder / REPORT


def _plotly() -> Path:
    """The script in the installed plotly, which is found without the long import."""
    package = find_spec("plotly")
    script = Path((package and package.origin) or "").parent / "package_data" / PLOTLY
    if not script.is_file():
        raise Refused("the report's page needs plotly: pip install -c constraints.txt plotly")
    return script


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _as_text(text: str) -> str:
    """``text`` for the inside of an HTML element."""
    text = text.encode(errors="replace").decode()
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _as_json(value: Any) -> str:
    """JSON that cannot end its ``<script>`` element, and that can be written as UTF-8."""
    text = json.dumps(_short(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # All of these occur only inside strings, where an escape means the same.
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _short(value: Any) -> Any:
    """``value`` with rounded numbers; NaN and infinity become null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    return value
