"""Settings under which a run fits its budget, those that cost least speed first."""

from dataclasses import dataclass

from llm.memory.predict import Lines, Prediction, Setup, predict

# Keys whose largest fitting value can be asked for: memory.largest=...
SIZES = ("n_layer", "n_embed", "block_size", "trainer.micro_batch_size")


@dataclass(frozen=True)
class Fitted:
    """A setup with its peak, what was changed for it (overrides to type), and what that costs."""

    setup: Setup
    prediction: Prediction
    changes: tuple[str, ...] = ()
    slowdown: float = 1.0  # time per token against the setup as it was, estimated


def fit(setup: Setup, budget: int, reserve: Lines) -> Fitted | None:
    """``setup``, changed as little as costs speed so that it fits ``budget`` bytes; None: nothing
    does.
    """
    prediction = predict(setup, reserve)  # to come: the levers
    return Fitted(setup, prediction) if prediction.total <= budget else None


def cheapest_changes(setup: Setup, budget: int, reserve: Lines, count: int = 3) -> list[Fitted]:
    """Up to ``count`` ways to make ``setup`` fit, cheapest first; none contains another."""
    return []


def largest(setup: Setup, key: str, budget: int, reserve: Lines) -> int | None:
    """The largest value of ``key`` (of :data:`SIZES`) that fits; None: not even the smallest."""
    return None
