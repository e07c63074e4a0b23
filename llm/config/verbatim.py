"""Free text and paths on the command line, taken exactly as they are typed.

In Hydra's grammar quotes, commas, brackets, ``${`` and others have a meaning, so free text is
quoted for it. Quotes do not protect two texts, an interpolation and OmegaConf's ``???`` for a
missing value: they are split by a code point that no text contains, and joined again afterwards.

Other values may be lists, choices or sweeps in Hydra's grammar. It allows only ASCII outside
quotes, so words with other letters are quoted, wherever they stand.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from llm.errors import require
from llm.settings.keys import ALL_KEYS

T = TypeVar("T")
# These texts are names or one of a few words, so they can be swept over: Hydra reads their values.
# All other texts are free.
WORDS = frozenset(
    [
        "model.norm", "model.mlp", "model.position", "model.loss", "data.name", "data.corpus",
        "data.tokenizer", "optimizer.name", "schedule.name", "precision.name",
        "trainer.activation_checkpointing", "trainer.device", "device", "memory.fit",
        "memory.largest", "logger.mode", "logger.project", "logger.entity", "run.name", "run.sweep",
    ]
)  # fmt: skip
NEVER_NULL = frozenset(key for key, kind in ALL_KEYS.items() if kind is str) - WORDS
OR_NULL = frozenset(key for key, kind in ALL_KEYS.items() if kind == str | None) - WORDS
FREE = NEVER_NULL | OR_NULL | {"stop"}
REFERENCE = re.compile(r"(?<!\\)\$\{[\w.\[\]-]+\}")  # to another key, as in ${model.n_embed}
# Text in quotes, or characters that have no meaning in Hydra's grammar.
WORD = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"\\,:=()\[\]{}]+""")
MOST_DIGITS = 4000  # of a number; Python itself refuses to read one of more than 4300
ENDLESS = re.compile(rf"[\d_]{{{MOST_DIGITS + 1}}}")
# Hydra reads these words as a number or a boolean, and writes them differently: 1e5 as 100000.0.
NUMBER = re.compile(
    r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)|true|false", re.IGNORECASE
)
BREAK = "\ufdd0"  # a noncharacter: Unicode reserves it for use inside programs


def quote_arguments(arguments: list[str]) -> list[str]:
    """``key=value`` arguments for Hydra. Several ``stop=TEXT`` become one list."""
    stops = [value for key, _, value in (one.partition("=") for one in arguments) if key == "stop"]
    if len(stops) < 2:
        return [quote_argument(argument) for argument in arguments]
    others = [argument for argument in arguments if not argument.startswith("stop=")]
    return [*map(quote_argument, others), f"stop=[{','.join(map(quoted, stops))}]"]


def quote_argument(argument: str) -> str:
    """``prompt=What's this`` -> ``prompt='What\\'s this'``; ``run.name=é`` -> ``run.name='é'``."""
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    if key in FREE:
        return argument if value == "null" and key not in NEVER_NULL else f"{key}={quoted(value)}"
    refuse_calls(key, value)
    require(not ENDLESS.search(value), f"{key} holds a number of more than {MOST_DIGITS} digits")
    if ALL_KEYS.get(key) is bool:
        for number in re.findall(r"[+-]?\d+", value):  # OmegaConf would take any number as true
            require(number in ("0", "1"), f"{key}={number} must be true or false")
    words = f"{key}={quote_words(value, key in WORDS)}"
    # A word that Hydra cannot read reaches the check of its key, which says what it may be.
    return f"{key}={quoted(value)}" if key in WORDS and not _is_readable(words) else words


def quote_words(value: str, numbers: bool = False) -> str:
    """``[a, ü]`` -> ``[a, 'ü']``: quotes around each word with letters that are not ASCII.

    With ``numbers``, around each number as well: the name ``1e5`` is not ``100000.0``.
    """
    numbers = numbers and not set("(:=") & set(value)  # as in range(1, 3) and cuda:0

    def quote(found: re.Match[str]) -> str:
        text, word = found[0], found[0].strip()
        is_number = numbers and NUMBER.fullmatch(word) is not None
        if text[0] in "'\"" or (text.isascii() and not is_number):
            return text
        return text.replace(word, f"'{word}'")

    return WORD.sub(quote, value)


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """``text`` between single quotes, such that Hydra reads it back unchanged."""
    return QuotedString(text=guard(text), quote=Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text of a value that may be :func:`quoted`; empty for null."""
    text = OverridesParser.create().parse_override(f"key={value}").value()
    return "" if text is None else unguard(str(text))


def shown(value: str) -> str:
    """A value of an override for a table or a folder's name: without quotes around all of it."""
    return unquoted(value) if value.startswith("'") else value


def as_typed(argument: str) -> str:
    """Undo :func:`quote_argument` for free text. Other arguments can be typed as they are."""
    key, _, value = argument.partition("=")
    return f"{key}={unquoted(value)}" if key in FREE and value != "null" else argument


def refuse_calls(key: str, value: object) -> None:
    """Raise :class:`llm.errors.Refused` for an interpolation that is not a plain reference.

    Others call functions, which may read the environment or files: a password might come into
    ``config.yaml`` and W&B. For the same reason the message does not repeat the value.
    """
    plain = not isinstance(value, str) or "${" not in REFERENCE.sub("", value)
    require(plain, f"{key} holds an interpolation other than ${{key}}: give the value itself")


def guard(text: str) -> str:
    """``text`` split by :data:`BREAK` where OmegaConf would see an interpolation or ``???``."""
    text = text.replace("${", "$" + BREAK + "{")
    return BREAK + text if text == "???" else text


def unguard(text: str) -> str:
    """Undo :func:`guard`."""
    return text.replace(BREAK, "")


def map_text(change: Callable[[str], str], value: T) -> T:
    """``value`` with every text in its lists, dicts and dataclasses changed."""
    found: Any = value
    if isinstance(found, dict):
        found = {key: map_text(change, item) for key, item in found.items()}
    elif isinstance(found, list):
        found = [map_text(change, item) for item in found]
    elif isinstance(found, str):
        found = change(found)
    elif is_dataclass(found) and not isinstance(found, type):
        new = {one.name: map_text(change, getattr(found, one.name)) for one in fields(found)}
        found = replace(found, **new)
    return found  # type: ignore[no-any-return]


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested plain lists and dicts, each with its dotted key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, key)
    else:
        yield key, value
