"""The commands of this program, for messages: a user can copy them."""

import ast
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent  # of run_*.py
SCRIPTS = [  # in order of use
    "run_prepare.py", "run_train.py", "run_sample.py", "run_plan.py", "run_report.py",
    "run_eval.py", "run_export.py",
]  # fmt: skip
TYPED: list[str] = []  # the command line as typed, before words are quoted for Hydra
OPTION_FOLDERS: list[str] = []  # the arguments that name folders of custom options


def command_line(name: str, *arguments: str) -> str:
    """``python run_sample.py ckpt=outputs/a``, quoted for a shell."""
    folders = OPTION_FOLDERS if name == "run_train.py" else []
    return for_shell(["python", _script(name), *folders, *arguments])


def typed_command(*more: str, name: str | None = None, without: Iterable[str] = ()) -> str:
    """This command as it was typed, with ``more`` arguments, quoted for a shell.

    ``name``: another script with the same arguments. ``without``: prefixes of arguments to omit.
    """
    started, *typed = TYPED or sys.argv
    arguments = [word for word in typed if not word.startswith(tuple(without))]
    return for_shell(["python", _script(name or Path(started).name), *arguments, *more])


def overrides_of(words: list[str]) -> list[str]:
    """The ``key=value`` words of a command line that are settings: not Hydra's, nor ``json=``."""
    others = ("-", "+hydra", "hydra", "json=")
    return [word for word in words if "=" in word and not word.startswith(others)]


def for_shell(words: Iterable[str]) -> str:
    """A command that a shell reads as ``words``, in characters that any terminal can show.

    A path may have control characters, or bytes that are not text, which Python keeps as lone
    surrogates (PEP 383). Both are written as ``$'\\xff'``, which bash, zsh and others read.
    """
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    quoted = ""
    for character in word:
        if character.isprintable() and character not in "\\'":
            quoted += character
        else:
            raw = character.encode("utf-8", "surrogateescape")
            quoted += "".join(f"\\x{byte:02x}" for byte in raw)
    return f"$'{quoted}'"


def _script(name: str) -> str:
    """The path of a script, relative to the current folder if the script lies below it."""
    started = Path(sys.argv[0])
    if started.name.startswith("run_"):
        path = started.with_name(name)
    else:  # python -m llm, a notebook, a test
        path = FOLDER / name if (FOLDER / name).exists() else Path(name)
    try:
        return str(path.relative_to(Path.cwd()) if path.is_absolute() else path)
    except (ValueError, FileNotFoundError):  # not below it, or the current folder was deleted
        return str(path)


def purposes() -> dict[str, str]:
    """The first line of each script's docstring, in the order of use."""
    return {name: _first_line(FOLDER / name) for name in SCRIPTS if (FOLDER / name).exists()}


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("python run_")[0].splitlines()[0].strip().rstrip(":")
