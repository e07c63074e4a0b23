"""Errors of Hydra, OmegaConf and PyYAML as one line: what is wrong, where, and what to type."""

import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from llm.config.arguments import WIDE_EQUALS, parse
from llm.config.compose import CONF
from llm.errors import Refused, Stop, did_you_mean
from llm.settings.keys import is_key, suggestion, words_instead

GLOBAL = "# @package _global_"  # the first line of a file with keys of several sections
HINTS = {
    r"'\\t'": "indent with spaces, not with tabs",
    "mapping values": "is a colon missing in the line before, or a key indented too far?",
    "expected ':'|simple key": "is a colon missing?",
    "duplicate key": "give it once",
    "^Ambiguous value": "add -m to sweep over it (from Python: llm.sweep), or put a list into [ ]",
    "^Config group override must": "take one of its options, as in model=small",
    r"Value '(-?\d+)\.0' of type 'float' could not be converted to Integer": r"take \1",
    "of type 'list' could not be converted": "several values are written without [ ], as in 2,4",
    "(list|str) is not a subclass of": "this section must be lines 'key: value': is a colon "
    "missing, or the space after it?",
}


def explained(error: BaseException) -> Refused | None:
    """The refusal of a mistake on the command line or in an option file; None for other errors.

    Hydra refuses ``model=1`` with a ValueError, all other values with exceptions of its own.
    """
    found: Refused | str | None
    if isinstance(error, HydraException | OmegaConfBaseException):
        found = _explained(error)
    elif str(error).startswith("Config group override"):
        found = _with_hint(str(error))
    else:
        found = _unreadable_file(error)
    return Refused(found) if isinstance(found, str) else found


def _explained(error: BaseException) -> Refused | str:
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    causes = list(_causes(error))
    file = _file_of(error)
    for cause in causes:
        if isinstance(cause, Stop):  # from the constructor of a sweeper or launcher
            return str(cause)
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.key is not None:
            return _unknown_key(cause, file)
        if found := re.match(r"Could not override '([\w@/.]+)'\. No match", str(cause)):
            return _unknown_word(found[1])
    if file is not None:
        return _wrong_value(causes, file)
    text = ": ".join(dict.fromkeys(_first_line(cause) for cause in causes))
    key = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) else ""
    return _with_hint(key + text.removeprefix("Error merging override "))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it, the first cause last, as a traceback would show them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _first_line(error: BaseException) -> str:
    # Further lines name the key and the class of the schema.
    return str(error).strip().partition("\n")[0].strip()


def _with_hint(text: str) -> str:
    for pattern, hint in HINTS.items():
        if (match := re.search(pattern, text)) is not None:
            return f"{text}: {match.expand(hint)}"
    return text


def _missing_option(error: MissingConfigException) -> Refused | str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    group = group or "option"
    if error.options:
        resumes = any(word.startswith("resume=") for word in sys.argv[1:])
        close = get_close_matches(option, error.options, n=1)
        return Refused(
            f"{group}={option} is unknown: take one of {', '.join(error.options)}"
            + did_you_mean(option, error.options)
            + "; a run with a custom option needs its --config-dir" * resumes,
            key=group,
            suggestions=[f"{group}={one}" for one in dict.fromkeys([*close, *error.options])],
        )
    place = _file_of(error) or "a defaults list"
    return (
        f"{place} asks for {group}/{option}, which does not exist: another option of a group is "
        f"chosen by the line '- override /{group.rpartition('/')[2]}: {option}' in its defaults"
    )


def _unreadable_override(error: OverrideParseException) -> Refused | str:
    typed = str(error.override)
    key, equals, value = typed.lstrip("+~").partition("=")
    if equals and not is_key(key):
        message = f"{key} is unknown: there is no key {key}{suggestion(key)}"
        return Refused(message, key=key, suggestions=words_instead(key, value))
    lines = [line for line in str(error).splitlines() if not line.startswith("Error parsing")]
    why = re.sub(r" expecting \{.*\}", "", lines[0].strip())
    if re.search(r"=\s*,|,\s*(,|$)", typed):
        why = "a value is missing before or after a comma"
    elif not equals or "missing EQUAL" in why:
        why = "there is no = in it (or spaces around it)"
        why += f"; {WIDE_EQUALS} is another character" * (WIDE_EQUALS in typed)
    elif why.startswith("LexerNoViableAlt"):
        why = "a quote is not closed, or a character needs quotes around it"
    return f"{typed} cannot be read as key=value: {why}"


def _unknown_key(
    error: ConfigAttributeError | ConfigKeyError, file: "OptionFile | None"
) -> Refused | str:
    full = str(error.full_key)
    if file is not None and not is_key(file.group.partition("/")[0]):
        return _unknown_word(file.group)  # +data=text for a command that has no data
    if file is not None and file.lacks_package(full):
        return f"{file} lacks the line '{GLOBAL}': put it first, or its keys are under {full}"
    if file is None and (longer := _typed_below(full)):
        return _unknown_word(longer)  # data.template=plain for a command that has no data
    siblings = [] if error.parent_node is None else [str(key) for key in error.parent_node]
    section = full.rpartition(".")[0]
    where = f"{section} has" if section else "there is"
    before = f"{file}{file.line_of(full)}: " if file is not None else ""
    message = f"{before}{full} is unknown: {where} no key {error.key}{suggestion(full, siblings)}"
    words = [] if file is not None else words_instead(full, _typed_value(full), siblings)
    return Refused(message, key=full, suggestions=words)


def _unknown_word(key: str) -> Refused:
    """The refusal of a key that Hydra took for a group: a folder of this name is in conf/."""
    message = f"{key} is unknown: there is no key {key}{suggestion(key)}"
    return Refused(message, key=key, suggestions=words_instead(key, _typed_value(key)))


def _typed_below(section: str) -> str | None:
    """The first key on the command line in ``section``."""
    keys = (word.lstrip("+~").partition("=")[0] for word in sys.argv[1:])
    return next((key for key in keys if key.startswith(f"{section}.")), None)


def _typed_value(key: str) -> str:
    """The value of ``key`` on the command line."""
    words = (word.lstrip("+~").partition("=") for word in sys.argv[1:])
    return next((value for name, _, value in words if name == key), "...")


def _wrong_value(causes: list[BaseException], file: "OptionFile") -> Refused:
    key = next((key for cause in causes if (key := getattr(cause, "full_key", None))), None)
    place = f"{file}: " if key is None else f"{file}{file.line_of(key)}: {key}: "
    text = _with_hint(_first_line(causes[-1]).removeprefix(f"In '{file.option}': "))
    return Refused(place + text, key=key)


def _unreadable_file(error: BaseException) -> str | None:
    """The message about an option file that is not UTF-8 or not YAML; None for other errors."""
    path = _file_being_read(error)
    if path is None or not isinstance(error, yaml.YAMLError | ValueError):
        return None
    if isinstance(error, UnicodeDecodeError):
        return f"{path} is not UTF-8: byte {error.object[error.start]:#04x}: save it as UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{path}, line {error.problem_mark.line + 1}: {_with_hint(str(error.problem))}"
    return f"{path} cannot be read: {_first_line(error)}"


def _file_being_read(error: BaseException) -> str | None:
    """The file that Hydra was loading: the error itself does not name it."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "load_config" and "full_path" in frame.f_locals:
            return _from_here(Path(frame.f_locals["full_path"]))
        trace = trace.tb_next
    return None


def _file_of(error: BaseException) -> "OptionFile | None":
    """The option file that Hydra names in an error, if it names one."""
    match = re.match(r"In '([^']+)': ", str(error))
    return OptionFile(match[1]) if match and isinstance(error, ConfigCompositionException) else None


class OptionFile:
    """A file below ``conf/`` or ``--config-dir``; ``option`` is its name for Hydra: model/small."""

    def __init__(self, option: str) -> None:
        self.option, self.group = option, option.rpartition("/")[0]
        folders = [CONF, parse(sys.argv[1:]).config_dir or CONF]  # in the order Hydra searches
        paths = [Path(folder) / f"{option}.yaml" for folder in folders]
        self.path = next((path for path in paths if path.is_file()), paths[0])

    def __str__(self) -> str:
        return _from_here(self.path)

    @cached_property
    def text(self) -> str:
        """The text; empty for a schema, which is not a file."""
        return self.path.read_text(encoding="utf-8") if self.path.is_file() else ""

    def lacks_package(self, full_key: str) -> bool:
        """Whether ``full_key`` is unknown because the file needs the line :data:`GLOBAL`."""
        return full_key == self.group and GLOBAL not in self.text

    def line_of(self, full_key: str) -> str:
        """``", line 3"`` for the line with ``full_key``; empty if no line has it."""
        parts = full_key.split(".")
        found = {len(path): line for path, line in self._keys() if path == parts[-len(path) :]}
        return f", line {found[max(found)]}" if found else ""

    def _keys(self) -> Iterator[tuple[list[str], int]]:
        """Each key as its path, and its line."""
        root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        pending: list[tuple[list[str], yaml.Node | None]] = [([], root)]
        for prefix, node in pending:
            for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
                path = [*prefix, str(key.value)]
                yield path, key.start_mark.line + 1
                pending.append((path, value))


def _from_here(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
