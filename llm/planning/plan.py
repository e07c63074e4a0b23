"""The plan of one run: its memory, whether that fits, and the changes that make it fit."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from llm.errors import Refused
from llm.memory.fit import Fitted, cheapest_changes, fit, largest, next_larger, with_size
from llm.memory.fit import changes as changes_between
from llm.memory.options import EIGHT_BIT_NEEDS, MemoryOptions, has_eight_bit
from llm.memory.predict import Lines, Prediction, Setup, predict
from llm.memory.weights import n_parameters
from llm.sealed import Plain
from llm.units import format_bytes

BUDGET = "memory.budget_gib"  # the key that a run which does not fit is refused by


@dataclass(frozen=True)
class Largest:
    """The answer to ``memory.largest``."""

    key: str  # n_layer, n_embed, block_size or trainer.micro_batch_size
    value: int | None  # None: not even the smallest fits
    sentence: str


@dataclass(frozen=True)
class Plan:
    """The memory of one run, whether it fits, and the changes that make it fit."""

    setup: Setup
    reserve: Lines
    budget: int  # bytes
    memory: MemoryOptions
    is_resumed: bool = False  # then optimizer.state_bits cannot change
    typed: Setup | None = None  # as typed, if an earlier start of the run has changed it
    device: str = field(default="auto", compare=False)  # trainer.device
    values: dict[str, str] = field(default_factory=dict)  # of the keys that vary in a grid
    largest: Largest | None = None

    @property
    def label(self) -> str:
        """``model.n_layer=4 model.n_embed=384``"""
        return label(self.values)

    @property
    def limit(self) -> str:
        """The source of the budget: ``memory.budget_gib=4``, or a smaller GPU."""
        return self.memory.limit(self.budget)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return n_parameters(self.setup.model)

    @cached_property
    def prediction(self) -> Prediction:
        """The peak without any change."""
        return predict(self.setup, self.reserve)

    @property
    def fits(self) -> bool:
        """Whether the run fits without any change."""
        return self.prediction.total <= self.budget

    @cached_property
    def fitted(self) -> Fitted | None:
        """The run with the fastest changes that make it fit; None if no changes do."""
        return fit(self.setup, self.budget, self.reserve, self.allows_eight_bit)

    @cached_property
    def ways(self) -> list[Fitted]:
        """The fastest ways to make it fit, 8-bit state included even without its library."""
        return cheapest_changes(self.setup, self.budget, self.reserve, not self.is_resumed)

    @property
    def allows_eight_bit(self) -> bool:
        """Whether ``fitted`` may store the optimizer state in 8 bits."""
        return not self.is_resumed and (self.memory.fit != "auto" or has_eight_bit())

    @property
    def started(self) -> Fitted | None:
        """The run with the changes that ``memory.fit`` allows; None if it does not fit."""
        return self.fitted if self.fits or self.memory.fit == "auto" else None

    @property
    def final_setup(self) -> Setup:
        """The setup with those changes; without changes if it does not fit."""
        return self.started.setup if self.started else self.setup

    @property
    def taken(self) -> Prediction:
        """The peak of ``final_setup``."""
        return self.started.prediction if self.started else self.prediction

    @property
    def changes(self) -> tuple[str, ...]:
        """The overrides that turn the typed settings into ``final_setup``."""
        return changes_between(self.typed or self.setup, self.final_setup)

    @property
    def refusal(self) -> Refused:
        """The error that refuses the run, with the fastest changes that make it fit."""
        peak = self.prediction
        text = (
            f"the run would take {format_bytes(peak.total)} ({peak.peak}), more than {self.limit}; "
            f"the largest part is {largest_line(peak.lines)}"
        )
        if not self.ways:
            text += "; no setting of how it is run makes it fit: take a smaller model"
            return Refused(text, key=BUDGET)
        words = [" ".join(way.changes) for way in self.ways]
        ways = " | ".join(words)
        needs = "state_bits=8" in ways and not has_eight_bit()
        text += f"; it fits with, fastest first: {ways}" + f"; {EIGHT_BIT_NEEDS}" * needs
        return Refused(text, key=BUDGET, suggestions=words)

    @property
    def sentence(self) -> str:
        """The peak, the budget and the changes, for the panel at the start of a run."""
        text = (
            f"{format_bytes(self.taken.total)} predicted, of {format_bytes(self.budget)}; "
            f"the largest part is {largest_line(self.taken.lines)}"
        )
        return f"{text}; to fit: {' '.join(self.changes)}" if self.changes else text

    @property
    def facts(self) -> Plain:
        """For ``summary.json``."""
        return {"predicted_memory_bytes": self.taken.total, "memory_changes": [*self.changes]}

    def with_smaller_micro_batch(self) -> "Plan | None":
        """The same run with at most half the micro-batch, if that takes less memory.

        It may take more: gradients stay in memory between the parts of a batch.
        """
        setup = self.final_setup
        if setup.step_in_backward:  # needs the whole batch
            return None
        for size in range(setup.micro_batch // 2, 0, -1):
            smaller = replace(setup, micro_batch=size)
            plan = replace(self, setup=smaller, typed=self.typed or self.setup)
            if setup.batch_size % size == 0 and plan.prediction.total < self.taken.total:
                return plan
        return None


def find_largest(plan: Plan, key: str) -> Largest:
    """The largest value of ``key`` (of :data:`llm.memory.options.SIZES`) that fits.

    With ``memory.fit=auto``, other settings may change to make room for it.
    """
    is_auto = plan.memory.fit == "auto"
    value = largest(plan.setup, key, plan.budget, plan.reserve, is_auto, plan.allows_eight_bit)
    if value is None:
        sentence = f"no {key} fits"
    else:
        best = replace(plan, setup=with_size(plan.setup, key, value))
        takes = f"{best.parameters:,} parameters, {_mib(best.taken)}"
        sentence = f"largest {key} that fits: {value:,} ({takes})"
    larger = next_larger(plan.setup, key, value)
    if larger is None:
        sentence += "; there is no larger one"
    elif is_auto:
        sentence += f"; {larger:,} does not fit"
    else:
        further = replace(plan, setup=with_size(plan.setup, key, larger))
        sentence += f"; {larger:,} takes {_mib(further.prediction)}"
    return Largest(key, value, sentence)


def label(values: dict[str, str]) -> str:
    """``model.n_layer=4 model.n_embed=384``"""
    return " ".join(f"{key}={value}" for key, value in values.items())


def largest_line(lines: Lines) -> str:
    """``activations (3.35 GiB)``"""
    kind = max(lines, key=lambda kind: lines[kind])
    return f"{kind} ({format_bytes(lines[kind])})"


def _mib(prediction: Prediction) -> str:
    return f"{prediction.total / 2**20:,.1f} MiB"  # neighbours may be equal in GiB
