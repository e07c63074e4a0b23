"""All settings of ``run_sample.py``."""

from dataclasses import dataclass
from typing import Any

from llm.checkpoint.find import newest_folders
from llm.errors import Refused, require
from llm.options import option
from llm.sampling.options import SamplingOptions

MOST_SAMPLES = 1 << 16  # drawn together


@dataclass
class SampleSettings(SamplingOptions):
    """All settings of ``run_sample.py``."""

    ckpt: str | None = None
    prompt: str = ""
    prompt_file: str | None = None
    num_samples: int = option(1, at_least=1, at_most=MOST_SAMPLES)
    stop: Any = None  # a text or a list of them; OmegaConf has no type for that
    seed: int = option(1337, at_least=0)
    device: str = "auto"
    stream: bool = True
    logprobs: bool = False
    echo: bool = True
    verify_cache: bool = False
    benchmark: bool = False
    chat: bool = False
    template: str | None = None
    system: str = ""
    adapters: Any = None  # a place or a list of them

    def stops(self) -> list[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return self.stop if isinstance(self.stop, list) else [self.stop]

    def places(self) -> list[str]:
        """The places of the adapters."""
        if self.adapters is None:
            return []
        return self.adapters if isinstance(self.adapters, list) else [self.adapters]

    def seeds(self) -> list[int]:
        """The seed of each sample."""
        return [self.seed + number for number in range(self.num_samples)]

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work together."""
        newest = [] if self.ckpt else [f"ckpt={run}" for run in newest_folders()]
        require(
            self.ckpt,
            "ckpt is missing: give a run folder or a checkpoint, as in ckpt=outputs/<date>/<time>",
            key="ckpt",
            suggestions=newest,
        )
        require(
            not (self.prompt and self.prompt_file),
            "prompt and prompt_file are both given: take one",
        )
        for key in ("template", "system"):
            require(
                self.chat or not getattr(self, key),
                f"{key} is only for a chat: add chat=true",
                key=key,
                suggestions=["chat=true"],
            )
        require(
            not (self.chat and (self.prompt or self.prompt_file)),
            "chat=true reads messages from standard input: leave out prompt and prompt_file",
            key="chat",
        )
        ignored = ("num_samples", "logprobs", "echo", "stream") if self.chat else ()
        for key in (key for key in ignored if getattr(self, key) != getattr(SampleSettings, key)):
            typed = str(getattr(self, key)).lower()
            raise Refused(f"{key}={typed} has no effect in a chat: leave it out", key=key)
        require(
            self.adapters != [],
            "adapters is empty: name some, as in adapters=[outputs/a], or leave it out",
            key="adapters",
        )
        for place in self.places():
            valid = isinstance(place, str) and place
            require(valid, f"adapters={place!r} must be a path: put it between quotes")
            is_once = self.places().count(place) == 1
            require(is_once, f"adapters names {place} twice: leave one out")
        require(
            not (self.places() and (self.verify_cache or self.benchmark)),
            "adapters are for samples and chat=true: leave out verify_cache and benchmark",
            key="adapters",
        )
        for stop in self.stops():
            require(isinstance(stop, str), f"stop={stop!r} must be text: put it between quotes")
            require(stop, "stop is empty: give some text, or leave it out")
            # Python turns bytes of the command line that are not UTF-8 into surrogates (PEP 383).
            require(not any("\ud800" <= c <= "\udfff" for c in stop), "stop is not UTF-8")
