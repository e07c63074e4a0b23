"""Settings in YAML that may be a stranger's: read in bounded time, and only plain values.

PyYAML's SafeLoader makes no objects, but a few lines of aliases stand for a billion values, a long
number takes minutes, and of a key that is there twice it silently takes the last.
"""

from pathlib import Path
from typing import Any

import yaml

from llm.sealed import read_bounded

LARGEST = 1 << 19  # bytes; ours have two thousand, unless there are long notes
MOST, DEEPEST, LONGEST_NUMBER = 5_000, 4, 40  # values, levels, characters; ours: 200, 4, 24
TEXT = "tag:yaml.org,2002:str"


def read_yaml(path: Path) -> Any:
    """The values in a file.

    Raises ``YAMLError``, ``ValueError`` or ``OSError`` for one that cannot be read, and
    :class:`llm.errors.Refused` for one that is too large or no regular file.
    """
    return yaml.load(read_bounded(path, LARGEST).decode("utf-8"), _PlainLoader)  # noqa: S506  (a SafeLoader)


class _PlainLoader(yaml.SafeLoader):
    """Values that are written out, under keys that name settings."""

    count = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Called for every key and value, before anything is made of it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # by its stubs
        self.count, self.depth = self.count + 1, self.depth + 1
        _refuse(event.anchor, event, "an anchor or alias")
        _refuse(event.tag, event, "a tag")
        _refuse(self.depth > DEEPEST, event, "a list or section inside too many others")
        _refuse(self.count > MOST, event, "one value too many")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Called for every section."""
        keys: set[str] = set()
        for key, _ in node.value:
            _refuse(key.tag != TEXT, key, "a key that is no name")
            _refuse(key.value in keys, key, f"{key.value!r:.40} for the second time")
            # _target_ names code for Hydra to call.
            name = f"{key.value!r:.40}"
            _refuse(key.value.startswith("_"), key, f"the key {name}, which is not a setting")
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Called for every text and number."""
        long = node.tag != TEXT and len(node.value) > LONGEST_NUMBER
        _refuse(long, node, "too long a number")
        return super().construct_scalar(node)


def _refuse(wrong: object, place: Any, what: str) -> None:
    if wrong:
        raise yaml.YAMLError(f"line {place.start_mark.line + 1} has {what}")
