"""A chat in the terminal, or through a pipe: one message per line, answers on standard output."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llm.data.template import Message, Template, read_template
from llm.data.tokenizer import Tokenizer
from llm.disk import replaced
from llm.errors import Refused, as_line, require
from llm.model.gpt import GPT
from llm.options import validate
from llm.sampling.conversation import Conversation
from llm.sampling.options import SamplingOptions
from llm.sealed import Plain
from llm.signals import ctrl_c_calls

LONGEST_LINE = 2**20  # bytes of a line from a pipe
ALONE = ("help", "exit", "reset")  # commands without text
HELP = """\
/reset             forget all messages; the system text stays
/system TEXT       set the system text; without TEXT: show it
/temperature 0.7   0: always the most likely token; 1: the model's probabilities
/adapter NAME      answer with another adapter; without NAME: list them
/save FILE         write the conversation as a line of JSONL, which data=chat reads
/exit              end the chat, as Ctrl-D does
Ctrl-C stops an answer. A \\ at the end of a line continues the message on the next one.
A message that starts with / needs a space before it."""


class Chat:
    """Reads messages and commands from standard input, and prints the answers as they come.

    ``adapters``: the places of the adapters that can answer, the current one first. ``network``
    returns the network and the template of one of these places.
    """

    def __init__(
        self, conversation: Conversation, options: SamplingOptions, seed: int,
        adapters: Sequence[str] = (), network: Callable[[str], tuple[GPT, Template]] | None = None,
    ) -> None:  # fmt: skip
        self.conversation, self.options, self.seed = conversation, options, seed
        self.adapters, self.network = list(adapters), network
        self.current = self.adapters[0] if self.adapters else ""
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.is_answering = self.is_stopped = self.is_over = False
        self.number = 0  # of the conversation: /reset starts the next one
        self.saved = dict[Path, dict[int, str]]()  # lines of the files that this chat has written
        self.commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: say(HELP), "exit": self.exit, "reset": self.reset,
            "system": self.system, "temperature": self.temperature, "save": self.save,
            "adapter": self.adapter,
        }  # fmt: skip

    def run(self) -> list[Plain]:
        """Chat until the input ends; returns the whole conversation as plain values.

        A first Ctrl-C at the prompt only says how to end the chat. A second one, or one while a
        pipe is read, raises ``KeyboardInterrupt``.
        """
        if self.is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input() then edits lines and remembers them)
            say("/help lists the commands, Ctrl-D ends the chat")
        was_interrupted = False
        with ctrl_c_calls(self._on_ctrl_c):
            while not self.is_over:
                try:
                    self.take(self._message())
                    was_interrupted = False
                except EOFError:
                    break
                except KeyboardInterrupt:
                    if was_interrupted or not self.is_terminal:
                        raise
                    was_interrupted = True
                    say("\nCtrl-C again, /exit or Ctrl-D ends the chat")
                except Refused as refusal:
                    say(as_line(str(refusal)))
        if self.is_terminal and not self.is_over:
            print()  # the line of the prompt
        return self.plain()

    def plain(self) -> list[Plain]:
        """The messages as JSON has them."""
        return _plain(self.conversation.messages)

    def take(self, line: str) -> None:
        """Obey a command, or answer a message. Raises :class:`llm.errors.Refused`."""
        if line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            require(name in self.commands, f"/{name} is unknown: /help lists the commands")
            alone = not rest.strip() or name not in ALONE
            require(alone, f"/{name} takes no text, as in {line:.40}: type /{name} alone")
            self.commands[name](rest.strip())
        elif line.strip():
            self.answer(line)

    def answer(self, text: str) -> None:
        """Print the answer to ``text``. From here on Ctrl-C stops the answer, not the chat."""
        self.is_stopped, self.is_answering = False, True
        try:
            self._print_answer(text)
        finally:
            self.is_answering = False

    def _print_answer(self, text: str) -> None:
        talk, options = self.conversation, self.options
        forgotten = talk.first
        prompt = talk.ask(text, options.max_new_tokens)
        if talk.first and not forgotten:
            say("(the oldest messages no longer fit: the model sees "
                f"{talk.model.config.block_size:,} tokens)")  # fmt: skip
        # Each answer has its own seed, so a question that is asked again may get another answer
        for piece in talk.answer(prompt, options, self.seed + len(talk.history)):
            print(piece, end="", flush=True)
            if self.is_stopped:
                break
        print(flush=True)
        if talk.ended_by in ("window", "max_new_tokens"):
            limit = f"max_new_tokens={options.max_new_tokens}"
            size = f"the model sees {talk.model.config.block_size:,} tokens"
            say(f"(cut: {size if talk.ended_by == 'window' else limit})")

    def exit(self, _: str) -> None:
        """End the chat."""
        self.is_over = True

    def reset(self, _: str) -> None:
        """Forget all messages."""
        self.conversation.reset()
        self.number += 1
        say("forgotten")

    def system(self, text: str) -> None:
        """Set or show the system text; it counts from the next answer."""
        if text:
            self.conversation.system = text
        say("system: " + (self.conversation.system or "(as the template has it)"))

    def temperature(self, text: str) -> None:
        """Set or show the temperature."""
        if text:
            try:
                options = replace(self.options, temperature=float(text))
            except ValueError:
                raise Refused(f"/temperature {text} must be a number, such as 0.7") from None
            validate(options, "/")
            self.options = options
        say(f"temperature: {self.options.temperature:g}")

    def adapter(self, name: str) -> None:
        """Answer with another adapter, named by its place or the last part of it; without a name,
        list all adapters.
        """
        require(self.adapters, "/adapter: the chat was started without adapters=[A,B]")
        if name:
            found = [one for one in self.adapters if name in (one, Path(one).name)]
            known = ", ".join(self.adapters)
            require(len(found) == 1, f"/adapter {name} is unknown: take one of {known}")
            assert self.network is not None
            self.conversation.switch(*self.network(found[0]))
            self.current = found[0]
        for one in self.adapters:
            say(f"{'*' if one == self.current else ' '} {one}")

    def save(self, name: str) -> None:
        """Write the conversation to a file, below the earlier ones that this chat saved there.

        Questions without an answer are left out: data=chat refuses empty messages.
        """
        require(name, "/save needs a file: /save chat.jsonl")
        history = self.conversation.history
        messages = [one for one in self.conversation.messages if one.role == "system"]
        for question, reply in zip(history[::2], history[1::2], strict=False):
            if reply.content.strip():
                messages += [question, reply]
        require(messages and messages[-1].role == "assistant", "/save: there is no answer yet")
        path = Path(os.path.expanduser(name)).absolute()
        require(
            path in self.saved or not os.path.lexists(path),
            f"/save {name} exists already: take another name",
        )
        line = json.dumps({"messages": _plain(messages)}, ensure_ascii=False)
        lines = self.saved.get(path, {}) | {self.number: line}
        try:
            with replaced(path) as file:
                file.writelines(f"{one}\n".encode() for one in lines.values())
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise Refused(f"/save {name}: {reason}") from None
        self.saved[path] = lines
        say(f"saved: {name}")

    def _on_ctrl_c(self) -> None:
        if not self.is_answering:
            raise KeyboardInterrupt
        self.is_stopped = True

    def _message(self) -> str:
        """The next line with its continuation lines; ``EOFError`` at the end of the input."""
        lines = [self._line("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            try:
                lines.append(self._line("  "))
            except EOFError:
                break
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        try:
            if self.is_terminal:
                return input(prompt)
            raw = sys.stdin.buffer.readline(LONGEST_LINE + 1)
            if not raw:
                raise EOFError
            if len(raw) > LONGEST_LINE:
                while raw and not raw.endswith(b"\n"):  # the rest of the line is not a message
                    raw = sys.stdin.buffer.readline(LONGEST_LINE)
                raise Refused(f"a message has more than {LONGEST_LINE:,} bytes: shorten it")
            return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise Refused(f"the message is not UTF-8: offset {error.start}") from None


def _plain(messages: Sequence[Message]) -> list[Plain]:
    return [{"role": one.role, "content": one.content} for one in messages]


def choose_template(typed: str | None, saved: Plain, tokenizer: Tokenizer) -> Template:
    """The ``typed`` template, else the one ``saved`` in the checkpoint, else ChatML if its tokens
    are in the vocabulary. Raises :class:`llm.errors.Refused` if no template is left.
    """
    if typed is None and not saved:
        require(
            "<|im_start|>" in tokenizer.special_ids,
            "the model was not trained on conversations: give a template, as in template=plain "
            "(or chatml, alpaca, llama2, or a YAML file)",
            key="template",
            suggestions=["template=plain", "template=chatml"],
        )
        typed = "chatml"
    try:
        template = Template.from_plain(saved) if typed is None else read_template(typed)
        template.check(tokenizer, is_trained=True)
    except Refused as refusal:  # a dataset calls the same setting data.template
        message = str(refusal).replace("data.template", "template")
        better = [word.replace("data.template", "template") for word in refusal.suggestions]
        raise Refused(message, key="template", suggestions=better) from None
    return template


def say(text: str) -> None:
    """Print a line to standard error: standard output has only answers."""
    print(text, file=sys.stderr, flush=True)
