"""The networks of ``run_sample.py``: one, or with ``adapters=[A,B]`` a base with each adapter."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from llm.interchange.adapters import open_adapter, with_adapter
from llm.interchange.files import LONGEST_CONTEXT
from llm.interchange.source import CheckpointSource, Source, load_model, whole_model
from llm.model.gpt import GPT
from llm.sampling.layout import lay_out_for_decoding
from llm.sealed import Plain


def with_context(source: Source) -> Source:
    """``source`` with the context of the weights it started from, at most ``LONGEST_CONTEXT``.

    A run that continues ``init_from`` may have trained on shorter windows. Its network still reads
    what the base reads, unless positions are learned, which have been cut.
    """
    if not isinstance(source, CheckpointSource) or source.model.position != "rotary":
        return source
    block_size = max(source.model.block_size, min(source.context, LONGEST_CONTEXT))
    return replace(source, model=replace(whole_model(source), block_size=block_size))


class Networks:
    """The base ``source`` with each adapter in ``places``. A network is named by the place of its
    adapter; without adapters there is one network, with an empty name.

    In memory are the base and the matrices that the current adapter changes. Raises
    :class:`llm.errors.Refused` for an adapter of another base.
    """

    def __init__(self, source: Source, places: Sequence[str]) -> None:
        self.source, self.names = with_context(source), [*places] or [""]
        self.adapters = {
            place: with_context(open_adapter("adapters", place, source)) for place in places
        }
        self.base: GPT | None = None
        self.current: tuple[str, GPT] | None = None

    @property
    def block_size(self) -> int:
        """The tokens that every network sees: the smallest ``block_size``."""
        sources = [self.adapters[name] if name else self.source for name in self.names]
        return min(source.model.block_size for source in sources)

    def load(self, device: torch.device) -> None:
        """Read the weights of the base."""
        self.base = load_model(self.source, device)

    def take(self, name: str) -> GPT:
        """The network of this name, laid out for decoding; the previous one is dropped."""
        assert self.base is not None
        if self.current is None or self.current[0] != name:
            self.current = None
            network = with_adapter(self.base, self.adapters[name]) if name else self.base
            lay_out_for_decoding(network)
            self.current = name, network
        return self.current[1]

    def saved_template(self, name: str) -> Plain:
        """The template that the adapter was trained with, else the base's; empty without one."""
        for source in (self.adapters.get(name), self.source):
            manifest = getattr(source, "manifest", None)  # other people's weights have none
            if manifest is not None and manifest.template:
                return dict(manifest.template)
        return {}
