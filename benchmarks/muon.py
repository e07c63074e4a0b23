"""A step of our Muon beside torch.optim.Muon's: python -m benchmarks.muon [--json FILE]

Both update the same matrices: those of a network with 4 layers of width 128, and of one with 6
layers of width 384. torch iterates in bfloat16, one matrix at a time; ours in the float32 of the
weights, all matrices of a shape at once.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.rows import Parser, Row, alternate, report, row, seconds_per_call
from llm.model.gpt import GPT
from llm.training.muon import split
from llm.training.optimizer import muon

SHAPES = {"0.8M": (4, 128, 32), "10.7M": (6, 384, 64)}  # layers, width, head size


def matrices(size: str) -> tuple[GPT, list[Tensor]]:
    """A network, and the matrices of its layers with random gradients."""
    n_layer, n_embed, head_size = SHAPES[size]
    model = GPT(n_layer=n_layer, n_embed=n_embed, head_size=head_size, vocab_size=65)
    found = split(model)[0]
    for matrix in found:
        matrix.grad = torch.randn_like(matrix)
    return model, found


def steps(size: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """One step of ours and one of torch's."""
    model, _ = matrices(size)
    _, other = matrices(size)
    theirs = torch.optim.Muon(other, lr=0.02, weight_decay=0.0)
    return muon(model, lr=0.02, weight_decay=0.0, betas=[0.8, 0.95]).step, theirs.step


def milliseconds(step: Callable[[], object]) -> Callable[[int], float]:
    """A function that measures ``step``, for :func:`benchmarks.rows.alternate`."""
    return lambda _: 1e3 * seconds_per_call(lambda: void(step()), 1.0)


def void(_: object) -> None:
    """Drop a result."""


def measure(repeats: int) -> Iterator[Row]:
    """A row for each size."""
    for size in SHAPES:
        ours, theirs = steps(size)
        pairs = alternate(milliseconds(ours), milliseconds(theirs), repeats)
        what = f"milliseconds of a step for the matrices of {size} weights; ours; torch.optim.Muon"
        yield row(f"muon_{size}", what, pairs, lambda ours, other: other / ours)


def main() -> None:
    """Measure and print a table."""
    typed = Parser("Muon's step, beside torch's", repeats=5).parse_args()
    report(measure(typed.repeats), typed.json)


if __name__ == "__main__":
    main()
