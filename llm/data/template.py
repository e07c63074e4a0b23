"""A chat template: the texts around each message of a conversation, and the end of an answer.

``conf/templates/chatml.yaml`` explains each key. A template is plain text and contains no code, so
a file from somebody else is safe to read.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from llm.data.corpus import expanded
from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, did_you_mean, require
from llm.options import from_plain
from llm.plain_yaml import read_yaml
from llm.sealed import Plain

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "conf" / "templates"
ROLES = ("system", "user", "assistant")
WITH_END = "data.tokenizer=byte or gpt2"  # have an end-of-text token
OF_WEIGHTS = (
    "data.tokenizer=smollm2 (or other weights that you will fine-tune; with init_from this happens "
    "by itself)"
)
LONGEST_PART = 10_000  # characters of a text in a template


@dataclass(frozen=True)
class Message:
    """One message of a conversation. ``input``: the input of an instruction, beside its content."""

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True)
class Around:
    """The texts before and after a message."""

    before: str = ""
    after: str = ""


# (text, is_special, is_learned). The special token "" is the end-of-text token of the tokenizer.
Piece = tuple[str, bool, bool]


@dataclass(frozen=True, kw_only=True)
class Template:
    """The values of a template's file."""

    user: Around
    assistant: Around
    system: Around | None = None
    input: Around = field(default_factory=lambda: Around("\n\n"))
    markers: tuple[str, ...] = ()
    start: str = ""
    default_system: str | None = None
    default_system_with_input: str | None = None
    system_in_user: bool = False
    end: str | None = None
    strip: bool = False

    @classmethod
    def from_plain(cls, values: Plain, where: str = "template: ") -> "Template":
        """The template with these values; ``where`` starts an error message.

        Raises :class:`llm.errors.Refused` for a wrong value, and if ``user`` or ``assistant`` is
        missing.
        """
        for role in ("assistant", "user"):
            require(
                isinstance(values.get(role), dict),
                f"{where}{role} is missing: give the texts around its messages, as in "
                f'{role}: {{before: "", after: ""}}',
            )
        template = from_plain(cls, values, where)
        longest = max(map(len, [*template.texts(), *template.markers]))
        require(
            longest <= LONGEST_PART,
            f"{where}a text has {longest:,} characters: give at most {LONGEST_PART:,}",
        )
        require(all(template.markers), f"{where}markers must not be empty")
        require(
            template.end != "",
            f"{where}end is empty, so an answer would never end: give a text, or null",
        )
        return template

    def plain(self) -> Plain:
        """The values of the file, for ``meta.json`` and a checkpoint's manifest."""
        return asdict(self) | {"markers": list(self.markers)}

    def check(self, tokenizer: Tokenizer, is_trained: bool = False) -> None:
        """Raise :class:`llm.errors.Refused` unless each marker is one id of ``tokenizer``.

        ``is_trained``: it belongs to a trained network, so that another one cannot be taken.
        """
        special = tokenizer.special_ids
        missing = [marker for marker in self.markers if marker not in special]
        anew = "train anew with" if is_trained else "take"
        if missing:
            few, fitting = ", ".join(list(special)[:5]), _fitting(tokenizer)
            needed = f"the special token{'s' * (len(missing) > 1)} {' and '.join(missing)}"
            has = f"has only {few}" if few else "has no special tokens"
            remedies = [f"data.template={' or '.join(fitting)}"] if fitting else []
            if not is_trained and "chatml" not in fitting:
                remedies.insert(0, OF_WEIGHTS)
            remedy = f"take {', or '.join(remedies)}" if remedies else f"{anew} {WITH_END}"
            raise Refused(
                f"data.template needs {needed}, and this tokenizer ({tokenizer.kind}) {has}: "
                f"{remedy}",
                key="data.template", suggestions=[f"data.template={name}" for name in fitting],
            )  # fmt: skip
        require(
            self.end is not None or tokenizer.end_of_text is not None,
            f"this tokenizer ({tokenizer.kind}) has no end-of-text token to end an answer: "
            f"{anew} {WITH_END}",
            key="data.template" if is_trained else "data.tokenizer",
            suggestions=[] if is_trained else ["data.tokenizer=byte", "data.tokenizer=gpt2"],
        )

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a conversation (uint32), and for each whether it is part of an answer or of
        its end (bool).
        """
        return _encoded(tokenizer, self._pieces(messages))

    def prompt(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
        """The ids (uint32) of a conversation up to the start of its next answer."""
        pieces = [*self._pieces(messages), *self._literal(self.assistant.before)]
        return _encoded(tokenizer, pieces)[0]

    def _pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """The pieces of a conversation in order."""
        system, turns = self._system(messages)
        yield from self._literal(self.start)
        if not self.system_in_user:
            yield from system
        for number, message in enumerate(turns):
            around = self.user if message.role == "user" else self.assistant
            yield from self._literal(around.before)
            if number == 0 and self.system_in_user:
                yield from system
            is_answer = message.role == "assistant"
            yield self._content(message.content), False, is_answer
            if message.input:
                yield from self._literal(self.input.before)
                yield self._content(message.input), False, False
                yield from self._literal(self.input.after)
            if is_answer:
                yield from self._literal(self.end, is_learned=True)
            yield from self._literal(around.after)

    def _system(self, messages: Sequence[Message]) -> tuple[list[Piece], Sequence[Message]]:
        """The pieces of the system message or of the default one, and the other messages."""
        if messages and messages[0].role == "system":
            require(
                self.system is not None,
                "the template has no system message: add one to it, as in "
                'system: {before: "", after: "\\n"}',
            )
            text, messages = messages[0].content, messages[1:]
        elif messages and messages[0].input and self.default_system_with_input is not None:
            text = self.default_system_with_input
        else:
            text = self.default_system or ""
        if self.system is None or not text:
            return [], messages
        before, after = self._literal(self.system.before), self._literal(self.system.after)
        return [*before, (self._content(text), False, False), *after], messages

    def _content(self, text: str) -> str:
        return text.strip() if self.strip else text

    def _literal(self, text: str | None, is_learned: bool = False) -> Iterator[Piece]:
        """The pieces of one of the template's own texts, in which markers are special tokens."""
        if text is None:
            yield "", True, is_learned
            return
        pattern = "|".join(map(re.escape, sorted(self.markers, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        for number, part in enumerate(parts):  # every second part is a marker
            if part:
                yield part, number % 2 == 1, is_learned

    def texts(self) -> list[str]:
        """All of the template's own texts, in any order."""
        arounds = [self.user, self.assistant, self.input, self.system or Around()]
        texts = [text for part in arounds for text in (part.before, part.after)]
        defaults = [self.default_system or "", self.default_system_with_input or ""]
        return [*texts, *defaults, self.start, self.end or ""]


def _encoded(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all pieces (uint32), and for each whether it is learned (bool).

    Neighbouring texts are encoded as one, as other programs do it: a token may cover the end of one
    and the start of the next. An answer is encoded by itself, because decoding starts there.
    """
    ids, learned = [np.zeros(0, np.uint32)], [np.zeros(0, bool)]
    for (is_special, is_learned), group in groupby(pieces, key=lambda piece: piece[1:]):
        texts = [text for text, *_ in group]
        if is_special:
            special = [tokenizer.special_ids.get(text, tokenizer.end_of_text) for text in texts]
            found = np.array(special, np.uint32)
        else:
            found = tokenizer.encode("".join(texts))
        ids.append(found)
        learned.append(np.full(len(found), is_learned))
    return np.concatenate(ids), np.concatenate(learned)


def _fitting(tokenizer: Tokenizer) -> list[str]:
    """The templates of conf/templates/ that ``tokenizer`` can write, those with markers first."""
    found = {}
    for path in sorted(TEMPLATES.glob("*.yaml")):
        template = Template.from_plain(read_yaml(path))
        has_end = template.end is not None or tokenizer.end_of_text is not None
        if has_end and set(template.markers) <= tokenizer.special_ids.keys():
            found[path.stem] = bool(template.markers)
    return sorted(found, key=lambda name: not found[name])


def read_template(typed: str) -> Template:
    """The template of ``data.template=typed``: a name in conf/templates/, or the path of a file.

    Raises :class:`llm.errors.Refused` for an unknown name and for a file that is not a template.
    """
    known = sorted(path.stem for path in TEMPLATES.glob("*.yaml"))
    path = TEMPLATES / f"{typed}.yaml" if typed in known else expanded(typed)
    if not os.path.isfile(path):  # Path.is_file raises if the name is too long
        raise Refused(
            f"data.template={typed} is neither one of {', '.join(known)} nor a file"
            f"{did_you_mean(typed, known)}",
            key="data.template", suggestions=[f"data.template={name}" for name in known],
        )  # fmt: skip
    return Template.from_plain(read_yaml(path), f"{path}: ")
