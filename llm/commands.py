"""Our commands as one types them: to be copied, from the folder one is in."""

import ast
import shlex
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent  # of run_*.py


of_training: list[str] = []  # what run_train.py needs to find options of the user's own


def command_line(name: str, *arguments: str) -> str:
    """``python run_sample.py ckpt=outputs/a``, quoted for a shell."""
    options = of_training if name == "run_train.py" else []
    return shlex.join(["python", script(name), *options, *arguments])


def script(name: str) -> str:
    """Where the script ``name`` is, seen from here: beside the one that was started."""
    started = Path(sys.argv[0])
    if not started.name.startswith("run_"):  # python -m llm, a notebook, a test
        return str(_from_here(FOLDER / name)) if (FOLDER / name).exists() else name
    return str(_from_here(started.with_name(name)))


def _from_here(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd()) if path.is_absolute() else path
    except (ValueError, FileNotFoundError):  # elsewhere, or the folder we were started in has gone
        return path


def purposes() -> dict[str, str]:
    """For each script, in the order of use, what it is for: the beginning of its docstring."""
    order = ["prepare", "train", "sample", "plan"]
    paths = {path.stem.removeprefix("run_"): path for path in sorted(FOLDER.glob("run_*.py"))}
    names = [name for name in order if name in paths] + [n for n in paths if n not in order]
    return {f"run_{name}.py": _first_line(paths[name]) for name in names}


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("python run_")[0].splitlines()[0].strip().rstrip(":")
