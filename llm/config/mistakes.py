"""What a user needs to know of an error of ours, of Hydra's or of YAML's, in one line."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from llm.config.compose import CONF
from llm.errors import Stop, did_you_mean, require
from llm.settings.keys import is_key, meant

WIDE_EQUALS = "\uff1d"  # as a Chinese or Japanese keyboard may give it
GLOBAL = "# @package _global_"  # the first line of a file whose keys are not its group's
FLOAT = re.compile(r"Value '(-?\d+)\.0' of type 'float' could not be converted to Integer")


def one_line(error: BaseException) -> str:
    """What is wrong, where, and what to type instead."""
    if isinstance(error, Stop):
        return str(error)
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return unreadable_file(error) or str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    chain = list(_chain(error))
    if (ours := next((link for link in chain if isinstance(link, Stop)), None)) is not None:
        return str(ours)  # raised by what Hydra was making
    file = _file_of(error)
    for link in chain:
        if isinstance(link, ConfigAttributeError | ConfigKeyError) and link.key is not None:
            return _unknown_key(link, file)
    # The first line of each link says it; OmegaConf goes on with the key and the schema's class.
    links = chain
    if file is not None:  # which its own line names first: "In 'model/mine': Could not load ..."
        links = chain[1:] or [type(error)(str(error).partition(": ")[2])]
    lines = [str(link).strip().splitlines()[0].strip() for link in links if str(link).strip()]
    text = ": ".join(dict.fromkeys(lines[:1] if file else lines))
    text = text.removeprefix("Error merging override ")
    key = next((k for link in links if (k := getattr(link, "full_key", None))), None)
    if file is not None:
        return _wrong_value(file, key, text)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        text = f"{error.full_key}: {text}"
    if text.startswith("Ambiguous value"):
        text += ": add -m to sweep over it, or put a list into [ ]"
    if (whole := FLOAT.search(text)) is not None:
        text += f": take {whole[1]}"
    return text


def refuse_dashes(arguments: list[str]) -> None:
    """Raise :class:`llm.errors.Refused` for ``--n_layer=4``: settings have no dashes here."""
    from hydra._internal.utils import get_args_parser

    flags = get_args_parser()._option_string_actions  # Hydra's own; it takes beginnings of them too
    for word in arguments:
        flag, key = word.partition("=")[0], word.partition("=")[0].lstrip("-")
        known = not flag.startswith("-") or any(name.startswith(flag) for name in flags)
        hint = "" if known or is_key(key) else meant(key)
        require(known, f"{flag} is unknown: settings are typed without dashes, as in seed=1{hint}")


def unreadable_file(error: BaseException) -> str | None:
    """What is wrong with the text of an option file; None for an error about something else."""
    path = _file_being_read(error)
    if path is None:
        return None
    if isinstance(error, UnicodeDecodeError):
        return f"{path} is not UTF-8: byte {error.object[error.start]:#04x}: save it as UTF-8"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{path} cannot be read: {str(error).splitlines()[0]}"
    line, problem = error.problem_mark.line + 1, str(error.problem)
    hints = {
        r"'\\t'": "indent with spaces, not with tabs",
        "mapping values": "is a colon missing in the line before, or a key indented too far?",
        "expected ':'": "is a colon missing?",
        "simple key": "is a colon missing?",
        "duplicate key": "give it once",
    }
    hint = next((f": {hint}" for words, hint in hints.items() if re.search(words, problem)), "")
    return f"{path}, line {line}: {problem}{hint}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, or in the handling of."""
    while error is not None:
        yield error
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    group = group or "option"
    if error.options:
        return (
            f"{group}={option} is unknown: take one of {', '.join(error.options)}"
            + did_you_mean(option, error.options)
            + "; a run with an option of your own needs its --config-dir" * _resumes()
        )
    place = _file_of(error) or "a defaults list"
    own = group.rpartition("/")[2]
    return (
        f"{place} asks for {group}/{option}, which does not exist: another option of a group is "
        f"chosen by the line '- override /{own}: {option}' in its defaults"
    )


def _resumes() -> bool:
    return any(word.startswith("resume=") for word in sys.argv[1:])


def _unreadable_override(error: OverrideParseException) -> str:
    typed = str(error.override)
    key, equals, _ = typed.lstrip("+~").partition("=")
    if equals and not is_key(key):
        return f"{key} is unknown: there is no key {key}{meant(key)}"
    said = str(error).splitlines()
    reason = [line for line in said if not line.startswith(("Error parsing", "See http"))]
    why = re.sub(r" expecting \{.*\}", "", (reason or said)[0].strip())
    if not equals or "missing EQUAL" in why:
        why = "there is no = in it (or spaces around it)"
        why += f"; {WIDE_EQUALS} is another character" * (WIDE_EQUALS in typed)
    return f"{typed} cannot be read as key=value: {why}"


def _unknown_key(link: Any, file: "OptionFile | None") -> str:
    key, full = str(link.key), str(link.full_key)
    known = [str(key) for key in link.parent_node] if link.parent_node is not None else []
    if file is not None and file.lacks_package(full):
        return f"{file} lacks the line '{GLOBAL}': put it first, or its keys are under {full}"
    place = full.rpartition(".")[0]
    where = f"{place} has" if place else "there is"
    before = f"{file}{file.line_of(full)}: " if file is not None else ""
    return f"{before}{full} is unknown: {where} no key {key}{meant(full, known)}"


def _wrong_value(file: "OptionFile", key: str | None, text: str) -> str:
    if key:
        return f"{file}{file.line_of(key)}: {key}: {text}"
    if (wrong := file.kind_of_text()) is not None:
        return f"{file} must hold lines 'key: value', and it holds {wrong}"
    section = file.flat_section()
    if section is not None:
        name, line, value = section
        return (
            f"{file}, line {line}: {name} must be followed by lines 'key: value', and there is "
            f"{value!r}: is a colon missing, or the space after it?"
        )
    return f"{file}: {text}"


class OptionFile:
    """A file under ``conf/`` or a user's ``--config-dir``, known by its group and option."""

    def __init__(self, option: str) -> None:
        self.group = option.rpartition("/")[0]
        folders = [CONF, *map(Path, _config_dirs())]  # the first that has the file counts
        paths = [folder / f"{option}.yaml" for folder in folders]
        self.path = next((path for path in paths if path.is_file()), paths[0])

    def __str__(self) -> str:
        return _as_seen_from_here(self.path)

    def lacks_package(self, full_key: str) -> bool:
        """Whether its keys are under the name of its group, where no section is called so."""
        return full_key == self.group and GLOBAL not in self._text()

    def line_of(self, full_key: str) -> str:
        """``", line 3"`` for the line that gives ``full_key``; nothing if there is none."""
        parts = full_key.split(".")
        found = [
            (len(path), node.start_mark.line + 1)
            for path, node in self._keys()
            if path == parts[-len(path) :]
        ]
        return f", line {max(found)[1]}" if found else ""

    def flat_section(self) -> tuple[str, int, str] | None:
        """A section with a plain value in place of keys: its name, the line, the value."""
        root = yaml.compose(self._text(), Loader=yaml.SafeLoader)
        for name, value in root.value if isinstance(root, yaml.MappingNode) else []:
            if isinstance(value, yaml.ScalarNode) and is_key(name.value) and value.value:
                return name.value, value.start_mark.line + 1, value.value
        return None

    def kind_of_text(self) -> str | None:
        """What it holds in place of keys; None where it has keys, or nothing."""
        root = yaml.compose(self._text(), Loader=yaml.SafeLoader)
        kinds = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
        return kinds.get(type(root)) if root is not None else None

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8") if self.path.is_file() else ""

    def _keys(self) -> Iterator[tuple[list[str], yaml.Node]]:
        root = yaml.compose(self._text(), Loader=yaml.SafeLoader)
        pending: list[tuple[list[str], yaml.Node | None]] = [([], root)]
        while pending:
            path, node = pending.pop()
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    yield [*path, str(key.value)], key
                    pending.append(([*path, str(key.value)], value))


def _as_seen_from_here(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _config_dirs() -> Iterator[str]:
    """What was typed after ``--config-dir``."""
    flags, words = ("--config-dir", "-cd"), sys.argv[1:]
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in flags:
            yield value if equals else after


def _file_of(error: BaseException) -> OptionFile | None:
    """The option file that Hydra names in an error."""
    found = re.match(r"In '([^']+)': ", str(error))
    return OptionFile(found[1]) if found and isinstance(error, ConfigCompositionException) else None


def _file_being_read(error: BaseException) -> str | None:
    """The option file that Hydra was reading when an error was raised in it."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "load_config" and "full_path" in frame.f_locals:
            return _as_seen_from_here(Path(frame.f_locals["full_path"]))
        trace = trace.tb_next
    return None


# Hydra's users know these. A run makes its own folder, once nothing can be refused any more.
OF_HYDRA = {
    "hydra.run.dir": "take run.dir=FOLDER or run.name=NAME",
    "hydra.sweep.dir": "take run.sweep=NAME, for multirun/NAME",
    "hydra.sweep.subdir": "the folder of a job is named after what differs between the jobs",
    "hydra.output_subdir": "config.yaml in the run folder holds the settings",
    "hydra.job.chdir": "a run stays in the folder that it was started from",
}


def refuse_folders_of_hydra(arguments: list[str]) -> None:
    """Raise :class:`llm.errors.Refused` for a key of Hydra's that would have no effect."""
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+")
        require(key not in OF_HYDRA, f"{key}= has no effect: {OF_HYDRA.get(key)}")
