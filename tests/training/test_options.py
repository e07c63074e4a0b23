"""Settings of the loop that make no sense are refused by name."""

import pytest

from llm.errors import Refused
from llm.options import validate
from llm.training.options import TrainerOptions


@pytest.mark.parametrize("size", [3, 8])
def test_micro_batches_must_divide_the_batch(size: int) -> None:
    named = rf"trainer\.micro_batch_size={size} does not divide"
    with pytest.raises(Refused, match=named):
        validate(TrainerOptions(batch_size=4, micro_batch_size=size), "trainer.")
