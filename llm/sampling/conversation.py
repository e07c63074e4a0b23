"""A conversation with a model: its messages, and answers that are read and written in one cache."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from llm.data.template import Message, Template
from llm.data.tokenizer import Tokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from llm.sampling.cache import ContinuedCache
from llm.sampling.generate import generate_batch
from llm.sampling.options import SamplingOptions
from llm.sampling.text import SampleText


class Conversation:
    """Messages of a user and answers of ``model``, in the format of ``template``.

    The oldest messages are forgotten once the model cannot see all: the prompt starts with message
    ``first``. An answer ends at any special token, at the end that the template gives it, or at one
    of ``stops``, which are not part of its text.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, template: Template, system: str = "",
        stops: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.tokenizer, self.system, self.own_stops = tokenizer, system, stops
        self.switch(model, template)
        self.reset()

    def switch(self, model: GPT, template: Template) -> None:
        """Answer with another network of the same tokenizer from now on; the messages stay."""
        self.model, self.template = model, template
        ends = [template.end] if template.end and template.end not in template.markers else []
        self.stops = [*self.own_stops, *ends]
        self.cache = ContinuedCache(model)

    def reset(self) -> None:
        """Forget all messages; the system text stays."""
        self.history: list[Message] = []  # in turn of the user and of the model
        self.first = 0
        self.ended_by = ""  # why the last answer ended

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, with the system text if there is one."""
        return self._with_system(self.history)

    def ask(self, text: str, max_new_tokens: int) -> list[int]:
        """Add a message of the user; returns the prompt of its answer, at most ``block_size`` ids.

        If less than a quarter of the window would be left for the answer, the oldest exchanges are
        forgotten until the prompt fills half of it, so that this is rare: the model has to read the
        rest again. Raises :class:`llm.errors.Refused`, and adds nothing, if the message alone is
        too long or has characters outside the vocabulary.
        """
        size = self.model.config.block_size
        most = size - min(max_new_tokens, max(1, size // 4))
        first, asked = self.first, [*self.history, Message("user", text)]
        prompt = self._prompt(asked[first:])
        if len(prompt) > most:
            while len(prompt) > size // 2 and first + 2 < len(asked):
                first += 2
                prompt = self._prompt(asked[first:])
        if len(prompt) > most:
            raise Refused(
                f"the message needs {len(prompt):,} tokens, with the system text and the template, "
                f"and there is room for {most:,}: shorten it"
            )
        self.first, self.history = first, asked
        return prompt

    def answer(self, prompt: list[int], options: SamplingOptions, seed: int) -> Iterator[str]:
        """Yield the answer to :meth:`ask` as it comes, and add it to the messages.

        If the caller stops early, the part so far stays the answer.
        """
        room = self.model.config.block_size - len(prompt)
        within = replace(options, max_new_tokens=min(options.max_new_tokens, room))
        sample = SampleText(self.stops)
        self.history.append(Message("assistant", ""))
        special = set(self.tokenizer.special_ids.values())
        self.ended_by = "interrupted"
        drawn = generate_batch(
            self.cache, [prompt], within, [seed], self.tokenizer.vocab_size,
            is_stopped=lambda row: sample.stopped,
        )  # fmt: skip
        with closing(drawn):
            for (pair,) in drawn:
                if pair is None or pair[0] in special:
                    self.ended_by = "end"
                    break
                yield self._add(sample.add(self.tokenizer.token_bytes(pair[0])))
            else:
                limit = "window" if within.max_new_tokens == room else "max_new_tokens"
                self.ended_by = "stop" if sample.stopped else limit
        yield self._add(sample.rest())

    def _add(self, text: str) -> str:
        """Add ``text`` to the answer, and return it."""
        self.history[-1] = replace(self.history[-1], content=self.history[-1].content + text)
        return text

    def _prompt(self, messages: list[Message]) -> list[int]:
        ids = self.template.prompt(self.tokenizer, self._with_system(messages))
        return [int(token) for token in ids]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *messages]
