"""The state that the built-in optimizers store, and the temporaries of their steps."""

from llm.functional.sizes import BLOCK_8BIT, PORTION, SMALLEST_8BIT, STACKED
from llm.memory.weights import Weight

# Bytes of float32 copies of a portion: on a CPU bitsandbytes makes five (two means, the gradient,
# two buffers), and bfloat16 weights need two more.
EIGHT_BIT_COPIES = 7 * 4 * PORTION


def uses_muon(optimizer: str, weight: Weight) -> bool:
    """Whether Muon orthogonalises the updates of ``weight``, a matrix of a layer."""
    return optimizer == "muon" and weight.name.startswith("blocks.") and len(weight.shape) == 2


def state_bytes(optimizer: str, bits: int, weight: Weight) -> int:
    """Bytes of the state of a weight of one layer."""
    if uses_muon(optimizer, weight):
        return 4 * weight.numbers
    if bits == 8 and weight.numbers >= SMALLEST_8BIT:
        return 2 * (weight.numbers + 4 * -(-weight.numbers // BLOCK_8BIT))
    return 8 * weight.numbers


def step_bytes(optimizer: str, weights: list[Weight], width: int) -> int:
    """Bytes of temporaries at the peak of an update; ``width``: bytes per element of a weight."""
    stacks: dict[tuple[int, ...], int] = {}
    most = 0
    for one in weights:
        if uses_muon(optimizer, one):
            stacks[one.shape] = stacks.get(one.shape, 0) + one.layers
        else:
            most = max(most, _rounding_bytes(one.numbers, width))
    return max([most, *(_muon_bytes(shape, count, width) for shape, count in stacks.items())])


def _muon_bytes(shape: tuple[int, ...], count: int, width: int) -> int:
    rows, columns = shape
    numbers = rows * columns
    count = min(count, max(1, STACKED // numbers))
    # Newton-Schulz has old and new matrices and two squares. Then each matrix is written in turn.
    iterating = 4 * count * 2 * (numbers + min(shape) ** 2)
    transposed = 4 * numbers if rows > columns else 0
    return max(iterating, 4 * count * numbers + transposed + _rounding_bytes(numbers, width))


def _rounding_bytes(numbers: int, width: int) -> int:
    # For each portion of bfloat16 weights: a float32 copy, random bits in two forms, a mask.
    return 11 * min(numbers, PORTION) if width == 2 else 0
