"""``sweep.json`` in the folder of a sweep: the keys that vary, the fixed settings, and the jobs."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm.disk import check_name
from llm.errors import Refused
from llm.options import from_plain
from llm.sealed import Plain, read_json

SWEEP = "sweep.json"


@dataclass
class SweepFile:
    """``sweep.json``."""

    over: list[str]  # the keys that differ between its jobs
    fixed: Plain  # the settings that all jobs share and that change a result
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)  # the values of `over`, by folder
    default: dict[str, str] = field(default_factory=dict)  # the values of `over` without the sweep

    def text(self) -> str:
        """The contents of the file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_sweep_file(path: Path) -> SweepFile:
    """A ``sweep.json``, which may come from a stranger.

    Raises :class:`llm.errors.Refused` for a damaged one, and for a job outside the sweep's folder.
    """
    file = from_plain(SweepFile, read_json(path), f"{path}: ")
    for name in file.jobs:
        check_name(f"{path}: the name of a job", name)
    try:
        file.text().encode()
    except UnicodeEncodeError:  # half a pair of surrogates
        raise Refused(f"{path} contains characters that do not exist") from None
    return file
