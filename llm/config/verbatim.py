"""Free text and paths on the command line reach a run exactly as they are typed.

Quotes, commas, brackets and ``${`` have a meaning in Hydra's grammar, so free text is put between
quotes. These do not protect ``${`` and ``???`` (a missing value) from OmegaConf, so a code point
that no text contains splits them, until the settings are composed.

Other values may be lists, choices or sweeps. Hydra's grammar allows only ASCII outside quotes, so
each word with other letters is quoted.
"""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from llm.errors import require
from llm.settings.keys import ALL_KEYS

T = TypeVar("T")
# Hydra reads the values of these keys, so they can be swept over: names, and one of a few words.
# All other texts are free.
WORDS = frozenset(
    [
        "model.norm", "model.mlp", "model.position", "model.loss", "data.name", "data.corpus",
        "data.tokenizer", "optimizer.name", "schedule.name", "precision.name",
        "trainer.activation_checkpointing", "trainer.device", "device", "split", "format", "dtype",
        "memory.fit", "memory.largest", "metric", "logger.mode", "logger.project", "logger.entity",
        "run.name", "run.sweep",
    ]
)  # fmt: skip
TEXTS = frozenset(key for key, kind in ALL_KEYS.items() if kind in (str, str | None))
FREE = (TEXTS - WORDS) | {"stop", "runs"}
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
    """``key=value`` arguments for Hydra. Several ``stop=TEXT``, and ``runs=PATH``, become lists."""
    texts: dict[str, list[str]] = {"stop": [], "runs": []}
    others = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in texts:
            texts[key].append(value)
        else:
            others.append(quote_argument(argument))
    if len(texts["stop"]) == 1:  # may be null
        others.append(quote_argument(f"stop={texts.pop('stop')[0]}"))
    lists = {key: ",".join(map(quoted, values)) for key, values in texts.items() if values}
    return [*others, *(f"{key}=[{values}]" for key, values in lists.items())]


def quote_argument(argument: str) -> str:
    """``prompt=What's this`` -> ``prompt='What\\'s this'``; ``run.name=é`` -> ``run.name='é'``."""
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    if key in FREE:
        is_null = value == "null" and ALL_KEYS[key] is not str
        return argument if is_null else f"{key}={quoted(value)}"
    refuse_calls(value, key)
    require(not ENDLESS.search(value), f"{key} holds a number of more than {MOST_DIGITS} digits")
    if ALL_KEYS.get(key) is bool:
        for number in re.findall(r"[+-]?\d+", value):  # OmegaConf would take any number as true
            require(number in ("0", "1"), f"{key}={number} must be true or false")
    return f"{key}={_quote_words(value, numbers=key in WORDS)}"


def quote_param(key: str, values: object) -> str:
    """``key=values`` of a sweep file for Hydra. Free text can be swept over there: its words are
    quoted where they are not ASCII, but a comma separates values.
    """
    return f"{key}={_quote_words(str(values), numbers=key in WORDS)}"


def _quote_words(value: str, numbers: bool) -> str:
    """``[a, ü]`` -> ``[a, 'ü']``: quotes around each word with letters that are not ASCII.

    With ``numbers``, around each number as well: the name ``1e5`` is not ``100000.0``.
    """
    numbers = numbers and not set("(:=") & set(value)  # but not in range(1, 3) and cuda:0

    def quote(match: re.Match[str]) -> str:
        text, word = match[0], match[0].strip()
        is_number = numbers and NUMBER.fullmatch(word) is not None
        if text[0] in "'\"" or (text.isascii() and not is_number):
            return text
        return text.replace(word, f"'{word}'")

    return WORD.sub(quote, value)


def quoted(text: str) -> str:
    """``text`` between single quotes, which Hydra reads back unchanged."""
    return QuotedString(text=guard(text), quote=Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text of a value that may be :func:`quoted`; empty for null."""
    text = OverridesParser.create().parse_override(f"key={value}").value()
    return "" if text is None else unguard(str(text))


def displayed(value: str) -> str:
    """The value of an override for a table or the name of a folder: without outer quotes."""
    return unquoted(value) if value.startswith("'") else value


def as_typed(argument: str) -> str:
    """Undo :func:`quote_argument` for free text. Other arguments can be typed as they are."""
    key, _, value = argument.partition("=")
    return f"{key}={unquoted(value)}" if key in FREE and value != "null" else argument


def refuse_calls(value: object, key: str = "") -> None:
    """Raise :class:`llm.errors.Refused` for an interpolation in ``value`` that calls a function.

    A function may read the environment or a file, and a password would reach ``config.yaml`` and
    W&B. For the same reason the message does not repeat the value. Lists and dicts are searched.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_calls(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            refuse_calls(item, key)
    elif isinstance(value, str):
        plain = "${" not in REFERENCE.sub("", value)
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
    new: Any = value
    if isinstance(value, dict):
        new = {key: map_text(change, item) for key, item in value.items()}
    elif isinstance(value, list):
        new = [map_text(change, item) for item in value]
    elif isinstance(value, str):
        new = change(value)
    elif is_dataclass(value) and not isinstance(value, type):
        items = {one.name: map_text(change, getattr(value, one.name)) for one in fields(value)}
        new = replace(value, **items)
    return new  # type: ignore[no-any-return]  # of the type of value
