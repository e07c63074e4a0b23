"""Chat templates of other programs: Jinja text, which is written and copied but never run here."""

import re
from pathlib import Path
from typing import NamedTuple

from llm.data.bpe import BPETokenizer
from llm.data.template import Template
from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, reason_for
from llm.interchange.tokenizer_writing import end_text
from llm.sealed import Plain, read_bounded, read_json

FILE, SETTINGS, KEY = "chat_template.jinja", "tokenizer_config.json", "chat_template"
LARGEST = 1 << 20  # bytes
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 cannot write
ESCAPES = str.maketrans({"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


class Chat(NamedTuple):
    """How other programs format messages for a network."""

    template: str  # Jinja
    end: int | None = None  # id that ends an answer; None: the tokenizer's end


def chat_in_folder(folder: Path) -> Chat | None:
    """The chat template in a folder of Hugging Face; None if it has none."""
    try:
        return as_chat(read_bounded(folder / FILE, LARGEST).decode("utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        path = folder / FILE
        raise Refused(f"{path} cannot be read: {reason_for(path, error)}") from None
    try:
        return as_chat(read_json(folder / SETTINGS).get(KEY))
    except FileNotFoundError:
        return None


def as_chat(value: object) -> Chat | None:
    """The template in a setting: its text, or the one named ``default`` in a list of several.

    None for anything else, and for a text that is empty, too long or not valid Unicode.
    """
    if isinstance(value, list):
        named = [one for one in value if isinstance(one, dict) and one.get("name") == "default"]
        value = named[0].get("template") if named else None
    if not isinstance(value, str) or SURROGATE.search(value):
        return None
    return Chat(value) if 0 < len(value) <= LARGEST else None


def chat_of(values: Plain, tokenizer: Tokenizer) -> Chat | None:
    """The template with these values (a checkpoint's) as Jinja; None without one, and if no Jinja
    gives the same ids.

    ``apply_chat_template`` returns the ids of :meth:`llm.data.template.Template.prompt`, except
    that an earlier answer must not start with white space. It raises an exception for a message
    with one of the template's markers, because transformers would read that as a special token.
    """
    if not values:
        return None
    template = Template.from_plain(values)
    if not _reads_texts_alike(template, tokenizer):
        return None
    end = template.end or ""
    ids = [tokenizer.special_ids.get(one) for one in template.markers if end.endswith(one)]
    return Chat(_jinja(template, tokenizer), ids[0] if ids else None)


def _reads_texts_alike(template: Template, tokenizer: Tokenizer) -> bool:
    """Whether transformers divides the template's own texts into the same tokens as we do."""
    for text in template.texts():
        for marker in sorted(template.markers, key=len, reverse=True):
            text = text.replace(marker, "\0")
        if any(special in text for special in tokenizer.special_ids):
            return False
    if not isinstance(tokenizer, BPETokenizer):
        return True
    strips = any(one["lstrip"] or one["rstrip"] for one in tokenizer.added if one["special"])
    # Text after a special token would start without the space that it has in ours.
    return not strips and '"prepend_scheme":"first"' not in tokenizer.definition.replace(" ", "")


def _jinja(template: Template, tokenizer: Tokenizer) -> str:
    end = (end_text(tokenizer) or "") if template.end is None else template.end
    # Our answers are encoded alone, and some tokenizers put a space in front of a text.
    space = " " * (tokenizer.encode("a").tolist() != tokenizer.encode_rest("a").tolist())
    trim = " | trim" if template.strip else ""
    content, around, system = "{{ message['content']" + trim + " }}", template.system, ""
    if around is not None:
        system = _text(around.before) + "{{ system" + trim + " }}" + _text(around.after)
        system = "{% if system %}" + system + "{% endif %}"
    first = "{% if loop.first %}" + system + "{% endif %}"
    starts_with_system = "messages and messages[0]['role'] == 'system'"
    if around is None:
        starts_with_system = "false"  # a system message is then refused like any unknown role
    return "".join([
        "{% for message in messages %}", _refusal(template, end), "{% endfor %}",
        "{% if ", starts_with_system, " %}",
        "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}{% else %}",
        "{% set system = ", _quoted(template.default_system or ""), " %}",
        "{% set turns = messages %}{% endif %}",
        _text(template.start), "" if template.system_in_user else system,
        "{% for message in turns %}{% if message['role'] == 'user' %}",
        _text(template.user.before), first if template.system_in_user else "",
        content, _text(template.user.after),
        "{% elif message['role'] == 'assistant' %}",
        _text(template.assistant.before + space), content, _text(end + template.assistant.after),
        "{% else %}{{ raise_exception('roles are system (first), user and assistant') }}",
        "{% endif %}{% endfor %}",
        "{% if add_generation_prompt %}", _text(template.assistant.before), "{% endif %}",
    ])  # fmt: skip


def _refusal(template: Template, end: str) -> str:
    """Jinja that raises an exception for a message with a special token of the template."""
    tokens = [*template.markers, *([end] if template.end is None else [])]
    if not tokens:
        return ""
    found = " or ".join(f"{_quoted(token)} in message['content']" for token in tokens)
    message = _quoted("a message contains a special token: " + " ".join(tokens))
    return "{% if " + found + " %}{{ raise_exception(" + message + ") }}{% endif %}"


def _text(text: str) -> str:
    """Jinja that writes ``text``."""
    return "{{ " + _quoted(text) + " }}" if text else ""


def _quoted(text: str) -> str:
    return "'" + text.translate(ESCAPES) + "'"
