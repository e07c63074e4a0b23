"""Settings under which a run fits its budget, those that cost least speed first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from llm.functional.sizes import LARGE_VOCABULARY
from llm.memory.predict import Lines, Prediction, Setup, predict
from llm.model.config import GPTConfig
from llm.options import bounds_of

# What the levers cost: time per token against the same step without, measured on a CPU by
# python -m benchmarks.memory --only levers,few_tokens.
CHUNKED_LOSS = 1.00  # 0.95 there, within noise; a small vocabulary has no time to save
CHECKPOINTED = {"none": 1.0, "every_2": 1.12, "full": 1.18}
IN_BACKWARD = 1.52  # the backward pass runs twice
EIGHT_BIT = 1.40
FEW_TOKENS = 65  # in a forward pass: so many cost as much again in what does not depend on them


@dataclass(frozen=True)
class Fitted:
    """A setup with its peak, what was changed for it (overrides to type), and what that costs."""

    setup: Setup
    prediction: Prediction
    changes: tuple[str, ...] = ()
    slowdown: float = 1.0  # time per token against the setup as it was, estimated


def fit(setup: Setup, budget: int, reserve: Lines, eight_bit: bool = True) -> Fitted | None:
    """``setup``, changed as little as costs speed so that it fits ``budget`` bytes; None: nothing
    does.

    What fits as it is stays so. AdamW's state is cut to 8 bits, which changes the result, only
    where nothing else is enough, and if that is there (``eight_bit``).
    """
    as_it_is = Fitted(setup, predict(setup, reserve))
    if as_it_is.prediction.total <= budget:
        return as_it_is
    for bits in _bits(setup) if eight_bit else [setup.state_bits]:
        best: Fitted | None = None
        for candidate in sorted(levers(replace(setup, state_bits=bits)), key=cost):
            if best and cost(candidate) / cost(setup) > best.slowdown:
                break
            found = _largest_portions(setup, candidate, budget, reserve)
            if found and (best is None or _preference(found) < _preference(best)):
                best = found
        if best:
            return best
    return None


def _preference(fitted: Fitted) -> tuple[float, int]:
    return fitted.slowdown, len(fitted.changes)


def cheapest_changes(
    setup: Setup, budget: int, reserve: Lines, eight_bit: bool = True, count: int = 3
) -> list[Fitted]:
    """Up to ``count`` ways to make ``setup`` fit, cheapest first; none contains another."""
    every = [
        fitted
        for bits in (_bits(setup) if eight_bit else [setup.state_bits])
        for candidate in levers(replace(setup, state_bits=bits))
        for whole in ([True, False] if candidate.micro_batch > 1 else [True])
        if (fitted := _largest_portions(setup, candidate, budget, reserve, whole))
    ]
    found: list[Fitted] = []
    for one in sorted(every, key=lambda one: (len(one.changes), one.slowdown)):
        keys = _keys(one)
        if not any(_keys(other) <= keys for other in found):
            found.append(one)
    return sorted(found, key=lambda one: one.slowdown)[:count]


def _keys(fitted: Fitted) -> set[str]:
    return {change.partition("=")[0] for change in fitted.changes}


def _bits(setup: Setup) -> list[int]:
    own = setup.kept is not None  # the user's class, which has no 8-bit state of ours
    return [setup.state_bits] if own else sorted({setup.state_bits, 8}, reverse=True)


def levers(setup: Setup) -> Iterator[Setup]:
    """All ways to run ``setup`` with less memory and, while all gradients are finite, the same
    result, but for its micro-batch.
    """
    given = CHECKPOINTED[setup.activation_checkpointing]
    stronger = [name for name, cost in CHECKPOINTED.items() if cost >= given]
    losses = [setup.model.loss] if _is_chunked(setup) else [setup.model.loss, "chunked"]
    whole = setup.micro_batch == setup.batch_size and not setup.compile and setup.kept is None
    backward = sorted({setup.step_in_backward, whole})
    for loss, checkpointing, in_backward in product(losses, stronger, backward):
        yield replace(
            setup, model=replace(setup.model, loss=loss), activation_checkpointing=checkpointing,
            step_in_backward=in_backward,
        )  # fmt: skip


def _is_chunked(setup: Setup) -> bool:
    loss, V = setup.model.loss, setup.model.vocab_size or 0
    return loss == "chunked" or (loss == "auto" and V >= LARGE_VOCABULARY)


def _largest_portions(
    before: Setup, setup: Setup, budget: int, reserve: Lines, whole: bool | None = None
) -> Fitted | None:
    """``setup`` with the largest micro-batch that fits, if one does. ``whole``: only the one it has
    (or, if false, only smaller ones).
    """
    sizes = [n for n in range(1, setup.micro_batch + 1) if setup.batch_size % n == 0]
    if whole or setup.step_in_backward:
        sizes = sizes[-1:]
    elif whole is False:
        sizes = sizes[:-1]

    def fits(count: int) -> bool:
        return predict(replace(setup, micro_batch=sizes[count - 1]), reserve).total <= budget

    # The whole batch may fit where a part does not: gradients are kept between parts.
    last = len(sizes)
    count = last if last and fits(last) else bisected(fits, last - 1)
    if not count:
        return None
    setup = replace(setup, micro_batch=sizes[count - 1])
    slowdown = cost(setup) / cost(before)
    return Fitted(setup, predict(setup, reserve), changes(before, setup), slowdown)


def cost(setup: Setup) -> float:
    """Time per token, as a multiple of that without any lever."""
    chunked = CHUNKED_LOSS if setup.model.loss == "chunked" else 1.0
    backward = IN_BACKWARD if setup.step_in_backward else 1.0
    bits = EIGHT_BIT if setup.state_bits == 8 else 1.0
    few = 1 + FEW_TOKENS / (setup.micro_batch * setup.model.block_size)
    return chunked * CHECKPOINTED[setup.activation_checkpointing] * backward * few * bits


def changes(before: Setup, after: Setup) -> tuple[str, ...]:
    """What to type to get from one to the other."""
    found = {
        "trainer.micro_batch_size": (before.micro_batch, after.micro_batch),
        "model.loss": (before.model.loss, after.model.loss),
        "trainer.activation_checkpointing": (
            before.activation_checkpointing, after.activation_checkpointing,
        ),
        "trainer.step_in_backward": (before.step_in_backward, after.step_in_backward),
        "optimizer.state_bits": (before.state_bits, after.state_bits),
    }  # fmt: skip
    return tuple(f"{key}={str(new).lower()}" for key, (old, new) in found.items() if old != new)


def largest(
    setup: Setup, key: str, budget: int, reserve: Lines, levers: bool = False,
    eight_bit: bool = True,
) -> int | None:  # fmt: skip
    """The largest value of ``key`` (of :data:`SIZES`) that fits; None: not even the smallest.

    With ``levers``, what :func:`fit` may change is changed. Halves are tried, as memory grows with
    every size but where layers begin to compute again what they do not keep (RECOMPUTED_FROM): what
    is found fits and the next one does not, and beyond such a point there may be more.
    """

    def fits(number: int) -> bool:
        changed = with_size(setup, key, number)
        if levers:
            fitted = fit(changed, budget, reserve, eight_bit)
            kept = fitted is not None and fitted.setup.micro_batch == changed.micro_batch
            return kept if key == "trainer.micro_batch_size" else fitted is not None
        return predict(changed, reserve).total <= budget

    if key == "trainer.micro_batch_size":
        # From the top: the whole batch may fit where a part does not, whose gradients are kept.
        sizes = [n for n in range(setup.batch_size, 0, -1) if setup.batch_size % n == 0]
        sizes = sizes[:1] if setup.step_in_backward else sizes  # which wants the batch whole
        return next((size for size in sizes if fits(size)), None)
    first, step = _sizes(setup, key)
    most = int(bounds_of(GPTConfig, key).at_most or 0)
    count = bisected(lambda n: fits(first + (n - 1) * step), (most - first) // step + 1)
    return first + (count - 1) * step if count else None


def following(setup: Setup, key: str, size: int | None) -> int | None:
    """The next larger value that ``key`` can have; None: there is none."""
    if key == "trainer.micro_batch_size":
        smallest = setup.batch_size if setup.step_in_backward else 1
        larger = range(max(smallest, (size or 0) + 1), setup.batch_size + 1)
        return next((n for n in larger if setup.batch_size % n == 0), None)
    first, step = _sizes(setup, key)
    number = first if size is None else size + step
    return number if bounds_of(GPTConfig, key).allow(number) else None


def bisected(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1 ... ``most`` that fits, where all below one that fits do; 0: none."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _sizes(setup: Setup, key: str) -> tuple[int, int]:
    """The smallest value that a size of the model can have, and in what steps it grows."""
    config = setup.model
    if key == "n_embed":
        assert config.head_size
        return config.head_size, config.head_size
    return (max(2, config.smear) + 1 if config.smear and key == "block_size" else 1), 1


def with_size(setup: Setup, key: str, number: int) -> Setup:
    """``setup`` with another size; :class:`llm.errors.Refused` if there is no such model."""
    if key == "trainer.micro_batch_size":
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
