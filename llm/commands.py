"""The commands of this program, as a user can copy them from a message in the current folder."""

import ast
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent  # of run_*.py
SCRIPTS = ["run_prepare.py", "run_train.py", "run_sample.py", "run_plan.py"]  # in order of use
TYPED: list[str] = []  # the whole command line, before anything in it is quoted for Hydra
of_training: list[str] = []  # arguments with which run_train.py finds the user's option files


def command_line(name: str, *arguments: str) -> str:
    """``python run_sample.py ckpt=outputs/a``, quoted for a shell."""
    return started_with(name, *(of_training if name == "run_train.py" else []), *arguments)


def started_with(name: str, *arguments: str) -> str:
    """The script ``name`` with these arguments and no others, quoted for a shell."""
    return for_shell(["python", script(name), *arguments])


def typed_command(*more: str, name: str | None = None) -> str:
    """This command as it was typed, for a shell, with ``more`` arguments; or the script ``name``
    with the same arguments.
    """
    started, *arguments = TYPED or sys.argv
    return started_with(name or Path(started).name, *arguments, *more)


def for_shell(words: Iterable[str]) -> str:
    """A command that a shell reads as ``words``, in characters that any terminal can show.

    A path may have control characters, or bytes that are not text, which Python keeps as lone
    surrogates (PEP 383). Both are written as ``$'\\xff'``, which bash, zsh and others read.
    """
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    shown = (c if c.isprintable() and c not in "\\'" else _escaped(c) for c in word)
    return f"$'{''.join(shown)}'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def script(name: str) -> str:
    """The path from the current folder to the script ``name``, beside the script that runs."""
    started = Path(sys.argv[0])
    if not started.name.startswith("run_"):  # python -m llm, a notebook, a test
        return str(_from_here(FOLDER / name)) if (FOLDER / name).exists() else name
    return str(_from_here(started.with_name(name)))


def _from_here(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd()) if path.is_absolute() else path
    except (ValueError, FileNotFoundError):  # elsewhere, or the current folder was deleted
        return path


def purposes() -> dict[str, str]:
    """The first line of each script's docstring, in the order of use."""
    return {name: _first_line(FOLDER / name) for name in SCRIPTS if (FOLDER / name).exists()}


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("python run_")[0].splitlines()[0].strip().rstrip(":")
