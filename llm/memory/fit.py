"""Changes that make a run fit its memory budget, fastest first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from llm.functional.sizes import LARGE_VOCABULARY
from llm.memory.predict import Lines, Prediction, Setup, predict
from llm.model.config import GPTConfig
from llm.options import bounds_of

MICRO_BATCH = "trainer.micro_batch_size"
# Time per token with each lever, relative to the same step without it; measured on a CPU by
# python -m benchmarks.memory --only levers,few_tokens.
CHUNKED_LOSS = 1.00  # measured: 0.95, within noise
CHECKPOINTING = {"none": 1.0, "every_2": 1.12, "full": 1.18}
IN_BACKWARD = 1.52  # the backward pass runs twice
EIGHT_BIT = 1.40
FEW_TOKENS = 65  # the fixed cost of a micro-batch, as a number of tokens


@dataclass(frozen=True)
class Fitted:
    """A setup with its peak, the overrides that lead to it, and their cost."""

    setup: Setup
    prediction: Prediction
    changes: tuple[str, ...] = ()  # as typed on the command line
    slowdown: float = 1.0  # estimated time per token, relative to the setup before the changes


def fit(setup: Setup, budget: int, reserve: Lines, eight_bit: bool = True) -> Fitted | None:
    """``setup`` with the fastest changes that fit ``budget`` bytes; None if no changes do.

    A setup that fits is not changed. 8-bit AdamW changes the result, so it is the last resort, and
    only with ``eight_bit``.
    """
    unchanged = Fitted(setup, predict(setup, reserve))
    if unchanged.prediction.total <= budget:
        return unchanged
    for bits in _state_bits(setup, eight_bit):
        ways: list[Fitted] = []
        for candidate in sorted(levers(replace(setup, state_bits=bits)), key=cost):
            if any(cost(candidate) / cost(setup) > way.slowdown for way in ways):
                break  # this candidate is slower, even at its largest micro-batch
            fitted = _with_largest_micro_batch(setup, candidate, budget, reserve)
            if fitted:
                ways.append(fitted)
        if ways:
            return min(ways, key=lambda way: (way.slowdown, len(way.changes)))
    return None


def cheapest_changes(
    setup: Setup, budget: int, reserve: Lines, eight_bit: bool = True, count: int = 3
) -> list[Fitted]:
    """Up to ``count`` ways to make ``setup`` fit, fastest first.

    No way changes all the keys that another one changes.
    """
    ways = [
        fitted
        for bits in _state_bits(setup, eight_bit)
        for candidate in levers(replace(setup, state_bits=bits))
        for sizes in (_divisors(setup)[-1:], _divisors(setup)[:-1])  # given, smaller
        if (fitted := _with_largest_micro_batch(setup, candidate, budget, reserve, sizes))
    ]
    minimal: list[Fitted] = []
    for way in sorted(ways, key=lambda way: (len(way.changes), way.slowdown)):
        if not any(_keys(other) <= _keys(way) for other in minimal):
            minimal.append(way)
    return sorted(minimal, key=lambda way: way.slowdown)[:count]


def _keys(fitted: Fitted) -> set[str]:
    return {change.partition("=")[0] for change in fitted.changes}


def _state_bits(setup: Setup, eight_bit: bool) -> list[int]:
    """The values of ``optimizer.state_bits`` to try."""
    can_shrink = eight_bit and setup.custom is None and setup.state_bits == 32
    return [32, 8] if can_shrink else [setup.state_bits]


def levers(setup: Setup) -> Iterator[Setup]:
    """All ways to run ``setup`` with less memory, the same result and the same micro-batch."""
    typed = CHECKPOINTING[setup.activation_checkpointing]
    stronger = [name for name, cost in CHECKPOINTING.items() if cost >= typed]
    loss, V = setup.model.loss, setup.model.vocab_size or 0
    is_chunked = loss == "chunked" or (loss == "auto" and V >= LARGE_VOCABULARY)
    losses = [loss] if is_chunked else [loss, "chunked"]
    whole = setup.micro_batch == setup.batch_size and not setup.compile and setup.custom is None
    backward = sorted({setup.step_in_backward, whole})
    for loss, checkpointing, in_backward in product(losses, stronger, backward):
        model = replace(setup.model, loss=loss)
        yield replace(
            setup, model=model, activation_checkpointing=checkpointing, step_in_backward=in_backward
        )


def _divisors(setup: Setup) -> list[int]:
    """The micro-batches that divide the batch, up to the current one."""
    return [n for n in range(1, setup.micro_batch + 1) if setup.batch_size % n == 0]


def _with_largest_micro_batch(
    before: Setup, setup: Setup, budget: int, reserve: Lines, sizes: list[int] | None = None
) -> Fitted | None:
    """``setup`` with the largest of ``sizes`` (all, if None) that fits; None if none does."""
    sizes = _divisors(setup) if sizes is None else sizes
    if setup.step_in_backward:
        sizes = [size for size in sizes if size == setup.batch_size]

    def fits(count: int) -> bool:
        return predict(replace(setup, micro_batch=sizes[count - 1]), reserve).total <= budget

    # The whole batch may fit where half of it does not: halves keep gradients between them.
    last = len(sizes)
    count = last if last and fits(last) else bisected(fits, last - 1)
    if not count:
        return None
    setup = replace(setup, micro_batch=sizes[count - 1])
    slowdown = cost(setup) / cost(before)
    return Fitted(setup, predict(setup, reserve), changes(before, setup), slowdown)


def cost(setup: Setup) -> float:
    """Time per token, relative to a step of many tokens without any lever."""
    chunked = CHUNKED_LOSS if setup.model.loss == "chunked" else 1.0
    backward = IN_BACKWARD if setup.step_in_backward else 1.0
    bits = EIGHT_BIT if setup.state_bits == 8 else 1.0
    few = 1 + FEW_TOKENS / (setup.micro_batch * setup.model.block_size)
    return chunked * CHECKPOINTING[setup.activation_checkpointing] * backward * few * bits


def changes(before: Setup, after: Setup) -> tuple[str, ...]:
    """The overrides that turn ``before`` into ``after``."""
    pairs = {
        MICRO_BATCH: (before.micro_batch, after.micro_batch),
        "model.loss": (before.model.loss, after.model.loss),
        "trainer.activation_checkpointing": (
            before.activation_checkpointing, after.activation_checkpointing,
        ),
        "trainer.step_in_backward": (before.step_in_backward, after.step_in_backward),
        "optimizer.state_bits": (before.state_bits, after.state_bits),
    }  # fmt: skip
    return tuple(f"{key}={str(new).lower()}" for key, (old, new) in pairs.items() if old != new)


def largest(
    setup: Setup, key: str, budget: int, reserve: Lines, levers: bool = False,
    eight_bit: bool = True,
) -> int | None:  # fmt: skip
    """The largest value of ``key`` (of :data:`llm.memory.options.SIZES`) that fits, or None.

    With ``levers``, :func:`fit` may change other settings. The binary search assumes that memory
    grows with the size. It does not where tensors get large enough to be recomputed: the next value
    after the result does not fit, but a much larger one may.
    """

    def fits(number: int) -> bool:
        changed = with_size(setup, key, number)
        if not levers:
            return predict(changed, reserve).total <= budget
        fitted = fit(changed, budget, reserve, eight_bit)
        if fitted is None:
            return False
        return key != MICRO_BATCH or fitted.setup.micro_batch == number

    values = _values(setup, key)
    if key == MICRO_BATCH:
        # Not a binary search: the whole batch may fit where half of it does not.
        return next((size for size in reversed(values) if fits(size)), None)
    count = bisected(lambda n: fits(values[n - 1]), len(values))
    return values[count - 1] if count else None


def next_larger(setup: Setup, key: str, size: int | None) -> int | None:
    """The next larger value of ``key``, or the smallest; None if ``size`` is the largest."""
    return next((value for value in _values(setup, key) if value > (size or 0)), None)


def _values(setup: Setup, key: str) -> range | list[int]:
    """All values that ``key`` can have, smallest first."""
    if key == MICRO_BATCH:
        sizes = _divisors(replace(setup, micro_batch=setup.batch_size))
        return sizes[-1:] if setup.step_in_backward else sizes
    step = (setup.model.head_size or 1) if key == "n_embed" else 1
    most = bounds_of(GPTConfig, key).at_most
    assert most
    return range(step, int(most) + 1, step)


def bisected(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1 ... ``most`` that fits, if all smaller ones do; 0 if none does."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def with_size(setup: Setup, key: str, number: int) -> Setup:
    """``setup`` with another size. Raises :class:`llm.errors.Refused` for an impossible model."""
    if key == MICRO_BATCH:
        return replace(setup, micro_batch=number)
    config = setup.model
    if key == "n_embed":
        assert config.head_size and config.n_head and config.n_kv_head
        shared = config.n_head // config.n_kv_head
        heads = number // config.head_size
        config = replace(
            config, n_embed=number, n_head=heads, intermediate_size=None,
            n_kv_head=heads // shared if heads % shared == 0 else heads,
        )  # fmt: skip
    else:
        config = replace(config, **{key: number})  # type: ignore[arg-type]  # a size
    return replace(setup, model=config.resolve())
