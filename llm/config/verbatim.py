"""What is typed on the command line, before Hydra sees it.

Free text and paths are taken as they are typed: Hydra's grammar gives a meaning to quotes, commas,
brackets, ``${`` and more, so their values are quoted for it. Two things that quotes do not protect,
an interpolation and the mark for a missing value, are broken up with a code point that no text has;
it is taken out again on the way in.

All other values are Hydra's to read: they can be swept, chosen, listed. Its grammar only knows
ASCII outside quotes, so words with other letters are quoted, wherever they stand.
"""

import re
from dataclasses import fields, is_dataclass
from typing import Any

from llm.errors import require
from llm.settings.keys import ALL_KEYS

# Keys that hold a choice from a few words, or a name, can be swept: their values are Hydra's to
# read. Any other key that holds text is free text or a path.
WORDS = frozenset(
    [
        "model.norm", "model.mlp", "model.position", "model.loss", "data.name", "data.corpus",
        "data.tokenizer", "optimizer.name", "schedule.name", "precision.name",
        "trainer.activation_checkpointing", "trainer.device", "device", "memory.fit",
        "memory.largest", "logger.mode", "logger.project", "logger.entity", "run.name", "run.sweep",
    ]
)  # fmt: skip
LISTS = frozenset(["stop"])  # may be typed several times: each adds to a list
TEXT = frozenset(key for key, kind in ALL_KEYS.items() if kind is str) - WORDS  # never null
KEYS = TEXT | LISTS | {key for key, kind in ALL_KEYS.items() if kind == str | None} - WORDS
REFERENCE = re.compile(r"(?<!\\)\$\{[\w.\[\]-]+\}")  # to another key, as in ${model.n_embed}
# What stands in quotes, or a run of characters that have no meaning in Hydra's grammar.
WORD = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"\\,:=()\[\]{}]+""")
MOST_DIGITS = 4000  # of a number; Python itself refuses to read one of more than 4300
ENDLESS = re.compile(rf"[\d_]{{{MOST_DIGITS + 1}}}")
# What Hydra would read as a number or as true, and write in another way: 1e5 as 100000.0.
NUMBER = re.compile(
    r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)|true|false", re.IGNORECASE
)
BREAK = "\ufdd0"  # a noncharacter: Unicode reserves it for use inside programs


def quote_arguments(arguments: list[str]) -> list[str]:
    """Command-line arguments with the values of :data:`KEYS` quoted for Hydra; others unchanged."""
    lists: dict[str, list[str]] = {key: [] for key in LISTS}
    for key, equals, value in (argument.partition("=") for argument in arguments):
        if key in LISTS and equals:
            lists[key].append(value)
    joined = {
        key: f"{key}=[{','.join(map(quoted, values))}]"
        for key, values in lists.items()
        if len(values) > 1
    }
    several = [argument for argument in arguments if argument.partition("=")[0] not in joined]
    return [*map(quote_argument, several), *joined.values()]


def quote_argument(argument: str) -> str:
    """``prompt=What's this`` -> ``prompt='What\\'s this'``; ``run.name=é`` -> ``run.name='é'``."""
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    if key in KEYS:
        return argument if value == "null" and key not in TEXT else f"{key}={quoted(value)}"
    refuse_calls(key, value)
    require(not ENDLESS.search(value), f"{key} holds a number of more than {MOST_DIGITS} digits")
    text = key in WORDS and not _is_readable(argument)  # it will be refused, by a check of ours
    return f"{key}={quoted(value) if text else quote_words(value, key in WORDS)}"


def quote_words(value: str, numbers: bool = False) -> str:
    """``[a, ü]`` -> ``[a, 'ü']``: quotes around each word with letters that are not ASCII's.

    With ``numbers``, around each number as well: ``1e5`` as a name is not ``100000.0``.
    """
    numbers = numbers and not set("(:=") & set(value)  # as in range(1, 3) and cuda:0
    return WORD.sub(lambda word: _quoted_word(word[0], numbers), value)


def _quoted_word(found: str, numbers: bool) -> str:
    word = found.strip()
    is_number = numbers and NUMBER.fullmatch(word) is not None
    if found[0] in "'\"" or (found.isascii() and not is_number):
        return found
    return found.replace(word, f"'{word}'")


def bare_words(value: str) -> str:
    """Undo :func:`quote_words`."""
    return WORD.sub(lambda word: _bare_word(word[0]), value)


def _bare_word(found: str) -> str:
    word = found[1:-1]
    ours = found == f"'{word}'" and WORD.fullmatch(word) is not None
    return word if ours and (not word.isascii() or NUMBER.fullmatch(word)) else found


def _is_readable(argument: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(quote_words(argument))
    except HydraException:
        return False
    return True


def quoted(value: str) -> str:
    """``value`` between single quotes, such that Hydra reads it back unchanged."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=guard(value), quote=Quote.single).with_quotes()


def refuse_calls(key: str, value: object) -> None:
    """Raise :class:`llm.errors.Refused` for an interpolation that is no plain reference.

    Others call functions, which may read the environment or files: what they find, a password
    perhaps, would be in ``config.yaml`` and in W&B. For the same reason the value is not repeated.
    """
    plain = not isinstance(value, str) or "${" not in REFERENCE.sub("", value)
    require(plain, f"{key} holds an interpolation other than ${{key}}: give the value itself")


def guard(value: str) -> str:
    """Break up what OmegaConf would interpret."""
    value = value.replace("${", "$" + BREAK + "{")
    return BREAK + value if value == "???" else value


def guard_all(value: Any) -> Any:
    """:func:`guard` every string in plain lists and dicts."""
    if isinstance(value, dict):
        return {key: guard_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [guard_all(item) for item in value]
    return guard(value) if isinstance(value, str) else value


def unguarded(value: Any) -> Any:
    """Undo :func:`guard_all`."""
    if isinstance(value, dict):
        return {key: unguarded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unguarded(item) for item in value]
    return value.replace(BREAK, "") if isinstance(value, str) else value


def unguard_all(settings: Any) -> None:
    """:func:`unguarded` for every field of nested dataclasses, in place."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            unguard_all(value)
        else:
            setattr(settings, field.name, unguarded(value))


def unquote(value: str) -> str:
    """The text of a value that :func:`quoted` made (or that was never quoted)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={value}").value()
    return str(parsed).replace(BREAK, "") if parsed is not None else ""


def as_typed(arguments: list[str]) -> list[str]:
    """Undo :func:`quote_arguments`."""
    pairs = [argument.partition("=") for argument in arguments]
    return [
        f"{k}={unquote(v)}" if k in KEYS and v != "null" else f"{k}{e}{bare_words(v)}"
        for k, e, v in pairs
    ]
