"""The command line as Hydra reads it: free text quoted, and keys without effect refused."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from llm import commands
from llm.answer import FALSE, TRUE, is_json_word, requested
from llm.config.verbatim import quote_arguments
from llm.config.zipped import without_short_form
from llm.errors import Refused, require
from llm.settings.custom import TARGET
from llm.settings.keys import is_key, keys_here, suggestion, words_instead
from llm.settings.saved import saved_groups

# Keys that Hydra's users know. Here a run makes its own folder, after all checks.
NO_EFFECT = {
    "hydra.run.dir": "take run.dir=FOLDER or run.name=NAME",
    "hydra.sweep.dir": "take run.sweep=NAME, for multirun/NAME",
    "hydra.sweep.subdir": "the folder of a job is named after what differs between the jobs",
    "hydra.output_subdir": "config.yaml in the run folder holds the settings",
    "hydra.job.chdir": "a run stays in the folder that it was started from",
}

WIDE_EQUALS = "\uff1d"  # typed by a Chinese or Japanese keyboard
# The key of a path that is typed without one, for commands that read runs
PATH_KEYS = {"run_report": "runs", "run_sample": "ckpt", "run_eval": "ckpt", "run_export": "ckpt"}

SHELLS = ("bash", "fish", "zsh")  # whose completion Hydra knows

# Hydra takes one of these flags at a time.
EXCLUSIVE = {
    "run": "--run",
    "multirun": "-m",
    "cfg": "--cfg",
    "info": "--info",
    "shell_completion": "-sc",
}


def without_agents_word(words: list[str]) -> list[str]:
    """``words`` without ``_wandb={...}``.

    The agent of a W&B sweep adds this word when it runs a pre-empted job again (wandb issue 4237).
    """
    return [word for word in words if word.partition("=")[0].lstrip("-+") != "_wandb"]


def without_json_word(words: list[str]) -> list[str]:
    """``words`` without ``json=...``: no setting of a run, so Hydra does not see it.

    Raises :class:`llm.errors.Refused` for a value other than true or false.
    """
    value = requested(words)
    require(
        value in (TRUE[0], FALSE[0]), f"json={value} must be true or false",
        key="json", suggestions=["json=true", "json=false"],
    )  # fmt: skip
    return [word for word in words if not is_json_word(word)]


def parse(words: list[str]) -> Namespace:
    """Hydra's flags as attributes, and all other words as ``overrides``.

    Raises :class:`llm.errors.Refused` for a flag that Hydra does not have.
    """
    parser = get_args_parser()
    parser.error = _refuse_flag  # type: ignore[method-assign]  # it would print a page and exit
    parsed, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        flag, _, value = word.partition("=")
        key = flag.lstrip("-")
        if flag.startswith("-"):
            hint = "" if is_key(key) else suggestion(key)
            raise Refused(
                f"{flag} is unknown: settings are typed without dashes, as in seed=1{hint}",
                key=flag, suggestions=words_instead(key, value),
            )  # fmt: skip
    return parsed


def _refuse_flag(message: str) -> NoReturn:
    raise Refused(message)


def for_hydra(words: list[str]) -> list[str]:
    """The command line as Hydra reads it: flags first, then quoted overrides.

    With ``resume=FOLDER`` the options in ``FOLDER/config.yaml`` stand before the typed ones. A path
    without a key gets the key of :data:`PATH_KEYS`.
    """
    parsed = parse(words)
    typed = set(parsed.overrides)
    flags = [word for word in words if word not in typed]
    if parsed.info:  # without a value, Hydra would take the next override for it
        flags = [word for word in flags if word not in ("-i", "--info", parsed.info)]
        flags += [f"--info={parsed.info}"]
    parsed.overrides = with_path_keys(parsed.overrides)
    modes = [flag for flag in EXCLUSIVE if getattr(parsed, flag)]
    together = " and ".join(EXCLUSIVE[flag] for flag in modes)
    require(len(modes) < 2, f"{together} cannot be combined: leave one of them out")
    shows_keys = parsed.cfg or parsed.help
    require(shows_keys or not parsed.resolve, "--resolve needs --cfg or --help beside it")
    if parsed.shell_completion:
        _check_completion(parsed.overrides)
    shows = parsed.help or parsed.cfg or parsed.info  # prints settings, and runs nothing
    is_sweep = shows or parsed.multirun or "hydra.mode=MULTIRUN" in words
    quoted = quote_arguments(without_short_form(parsed.overrides, is_sweep))
    _refuse_keys(parsed.overrides)
    folder = ["--config-dir", parsed.config_dir] if parsed.config_dir else []
    searched = [word for word in parsed.overrides if word.startswith("hydra.searchpath=")]
    commands.OPTION_FOLDERS[:] = [*folder, *searched]
    resumed = [word.partition("=")[2] for word in parsed.overrides if word.startswith("resume=")]
    is_resume = resumed and resumed[-1] not in ("", "null")
    return [*flags, *(saved_groups(Path(resumed[-1])) if is_resume else []), *quoted]


def _check_completion(overrides: Iterable[str]) -> None:
    """``-sc`` takes one action, as in ``-sc install=bash``."""
    typed = [word.partition("=") for word in overrides]
    found = [value for key, _, value in typed if key in ("install", "uninstall", "query")]
    is_known = len(found) == 1 and found[0] in SHELLS
    shells = ", ".join(SHELLS)
    require(is_known, f"-sc needs install=, uninstall= or query= with one of {shells}", key="-sc")


def with_path_keys(words: Sequence[str]) -> list[str]:
    """``outputs/base`` -> ``ckpt=outputs/base`` for run_sample.py, ``runs=...`` for run_report.py.

    Other commands take no path without a key: Hydra refuses it, as it does if ckpt= is typed too.
    """
    key = PATH_KEYS.get(Path(sys.argv[0]).stem)
    if key is None or (key == "ckpt" and any(word.startswith("ckpt=") for word in words)):
        return list(words)
    paths = [word for word in words if is_path(word)]
    several = f"{len(paths)} words without a key ({', '.join(paths[:4])}): ckpt is one path"
    require(key != "ckpt" or len(paths) < 2, several)
    return [f"{key}={word}" if is_path(word) else word for word in words]


def is_path(word: str) -> bool:
    """Whether a word without a key is a path. The folder of a job may have ``=`` in its name.

    A key of the command is never a path: ``./seed=1`` names a folder ``seed=1``.
    """
    name, equals, _ = word.partition("=")
    if equals and name in keys_here():
        return False
    if os.path.lexists(word):
        return True
    if not equals:
        return WIDE_EQUALS not in word
    return "/" in name and not name.lstrip("+~").startswith("hydra/")  # a group of Hydra


def _refuse_keys(overrides: Iterable[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        require(key not in NO_EFFECT, f"{key}= has no effect: {NO_EFFECT.get(key)}")
        names_class = key.rpartition(".")[2] == TARGET and not key.startswith("hydra.")
        require(
            not names_class,
            f"{key} cannot be typed: name the class in a file, as docs/extending.md shows",
        )
