"""YAML that may come from a stranger, read as plain values in bounded time.

PyYAML's safe loader creates no objects, but a few lines with aliases stand for a billion values, a
number can take minutes to read, and a key that occurs twice silently has its last value. So each of
PyYAML's nodes is checked before its value is read.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from llm.errors import Refused, reason_for, require
from llm.sealed import Plain, read_bounded

LARGEST = 1 << 17  # bytes; the config.yaml of a run has 2,500
LONGEST_NUMBER = 40  # characters
DEEPEST = 50  # sections and lists within each other
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may lack libyaml
STRING = "tag:yaml.org,2002:str"
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
TAGS |= {"tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}


def read_yaml(path: Path) -> Plain:
    """The section of keys in ``path``, which must exist.

    Raises :class:`llm.errors.Refused` for anything else.
    """
    try:
        text = read_bounded(path, LARGEST).decode("utf-8")
        node = _composed(text)
        plain: Any = None if node is None else _value(node, set())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise unreadable(path, error) from None
    require(isinstance(plain, dict), f"{path} holds no settings")
    return dict(plain)


def unreadable(path: Path, error: Exception) -> Refused:
    """The refusal of a file, with the first line of the error."""
    return Refused(f"{path} cannot be read: {reason_for(path, error).splitlines()[0]}")


def _composed(text: str) -> yaml.Node | None:
    """The nodes of a YAML text; by libyaml, which takes a tenth of the time, where that is safe."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=FAST_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # libyaml's own nodes would overflow the stack of the process
                raise yaml.YAMLError
        return yaml.compose(text, Loader=FAST_LOADER)
    except yaml.YAMLError:  # PyYAML's message names the line
        return yaml.compose(text, Loader=yaml.SafeLoader)


def _value(node: yaml.Node, seen: set[int]) -> Any:
    _require(id(node) not in seen, node, "an alias")
    _require(node.tag in TAGS, node, "a tag, or a value that is not text, a number or a boolean")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, seen) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        values: Plain = {}
        for key, item in node.value:
            name = f"{key.value!r:.40}"
            _require(key.tag == STRING, key, f"the key {name}, which is not a name")
            _require(key.value not in values, key, f"the key {name} for the second time")
            # A _target_ would name code for Hydra to call.
            _require(not key.value.startswith("_"), key, f"the key {name}, which is not a setting")
            values[key.value] = _value(item, seen)
        return values
    is_short = node.tag == STRING or len(node.value) <= LONGEST_NUMBER
    _require(is_short, node, "a number that is too long")
    return SafeConstructor().construct_object(node)


def _require(condition: bool, node: yaml.Node, fault: str) -> None:
    if not condition:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1} has {fault}")
