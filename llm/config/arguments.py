"""The command line, made ready for Hydra: keys without effect are refused, free text is quoted."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from hydra._internal.utils import get_args_parser

from llm import commands
from llm.config.verbatim import quote_arguments
from llm.errors import Refused, require
from llm.settings.custom import TARGET
from llm.settings.keys import is_key, suggestion
from llm.settings.saved import saved_groups

# Hydra's users know these keys. Here a run makes its own folder, once nothing can be refused.
NO_EFFECT = {
    "hydra.run.dir": "take run.dir=FOLDER or run.name=NAME",
    "hydra.sweep.dir": "take run.sweep=NAME, for multirun/NAME",
    "hydra.sweep.subdir": "the folder of a job is named after what differs between the jobs",
    "hydra.output_subdir": "config.yaml in the run folder holds the settings",
    "hydra.job.chdir": "a run stays in the folder that it was started from",
}


def parse(words: list[str]) -> Namespace:
    """Hydra's flags by name, and all other words as ``overrides``.

    Raises :class:`llm.errors.Refused` for a flag that Hydra does not have.
    """
    found, unknown = get_args_parser().parse_known_intermixed_args(words)
    for word in unknown:
        flag = word.partition("=")[0]
        key = flag.lstrip("-")
        if flag.startswith("-"):
            hint = "" if is_key(key) else suggestion(key)
            raise Refused(
                f"{flag} is unknown: settings are typed without dashes, as in seed=1{hint}"
            )
    return found


def for_hydra(words: list[str]) -> list[str]:
    """The command line as Hydra reads it: flags first, then quoted overrides.

    With ``resume=FOLDER`` the options that the run was started with stand before the typed ones, so
    that Hydra composes with them.
    """
    found = parse(words)
    flags = [word for word in words if word not in found.overrides]
    quoted = quote_arguments(found.overrides)
    _refuse_keys(found.overrides)
    searched = [word for word in found.overrides if word.startswith("hydra.searchpath=")]
    commands.OPTION_FOLDERS[:] = searched
    if found.config_dir:
        commands.OPTION_FOLDERS[:] = ["--config-dir", found.config_dir, *searched]
    resumed = [word.partition("=")[2] for word in found.overrides if word.startswith("resume=")]
    continues = resumed and resumed[-1] not in ("", "null")
    return [*flags, *(saved_groups(Path(resumed[-1])) if continues else []), *quoted]


def _refuse_keys(overrides: Iterable[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        require(key not in NO_EFFECT, f"{key}= has no effect: {NO_EFFECT.get(key)}")
        names_code = key.rpartition(".")[2] == TARGET and not key.startswith("hydra.")
        require(
            not names_code,
            f"{key} cannot be typed: name the class in a file, as docs/extending.md shows",
        )
