"""What the optimizers of :mod:`llm.training` keep for a weight, and what a step takes besides."""

import math

from llm.functional.sizes import BLOCK_8BIT, PORTION, SMALLEST_8BIT, STACKED

Weight = tuple[str, tuple[int, ...], int]  # name, shape, bytes of a number

# On a CPU bitsandbytes makes float32 copies of a portion: both means, the gradient, two on the way;
# from bfloat16 weights we make two more.
COPIED = 7 * 4 * PORTION


def is_muons(optimizer: str, name: str) -> bool:
    """Whether a weight is orthogonalised: a matrix of a layer."""
    of_layer = name.startswith("blocks.") and name.endswith(".weight")
    return optimizer == "muon" and of_layer and "norm" not in name


def state_bytes(optimizer: str, bits: int, weight: Weight) -> int:
    """Bytes kept from step to step for one weight."""
    name, shape, _ = weight
    numbers = math.prod(shape)
    if is_muons(optimizer, name):
        return 4 * numbers
    if bits == 8 and numbers >= SMALLEST_8BIT:
        return 2 * (numbers + 4 * -(-numbers // BLOCK_8BIT))
    return 8 * numbers


def step_bytes(optimizer: str, weights: list[Weight], layers: int = 1) -> int:
    """Temporaries at the peak of updating ``weights``, those of a layer ``layers`` times."""
    together: dict[tuple[int, ...], int] = {}
    width = weights[0][2]
    most = 0
    for name, shape, _ in weights:
        if is_muons(optimizer, name):
            together[shape] = together.get(shape, 0) + layers
        else:
            most = max(most, _rounding(math.prod(shape), width))
    return max([most, *(_muon_bytes(shape, count, width) for shape, count in together.items())])


def _muon_bytes(shape: tuple[int, ...], count: int, width: int) -> int:
    numbers, (rows, columns) = math.prod(shape), shape
    count = min(count, max(1, STACKED // numbers))
    # Newton-Schulz: the old and the new matrices, and two squares. Then one is written at a time.
    iterating = 4 * count * 2 * (numbers + min(shape) ** 2)
    turned = 4 * numbers if rows > columns else 0
    return max(iterating, 4 * count * numbers + turned + _rounding(numbers, width))


def _rounding(numbers: int, width: int) -> int:
    # Of a portion of bfloat16 weights: their float32 copy, random bits in two forms, a mask.
    return 11 * min(numbers, PORTION) if width == 2 else 0
