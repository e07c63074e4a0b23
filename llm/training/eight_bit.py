"""AdamW with running means in 8 bits, by bitsandbytes (arXiv:2110.02861).

Each number is stored as one of 256 values between -1 and 1, denser near 0, times a scale: the
largest absolute value of its block.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from llm.errors import Refused
from llm.functional.sizes import BLOCK_8BIT
from llm.memory.options import EIGHT_BIT_NEEDS
from llm.training.rounding import in_float32, portions

MEANS = ("exp_avg", "exp_avg_sq")


class EightBit:
    """bitsandbytes, which takes seconds to import, and its tables of 256 values.

    Raises :class:`llm.errors.Refused` if it is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        # Silences a warning about a kernel that is not used here.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        try:
            import bitsandbytes.functional
        except (ImportError, OSError, RuntimeError) as error:  # missing, or broken
            why = str(error).partition("\n")[0]
            raise Refused(f"{EIGHT_BIT_NEEDS} ({why})") from None
        library: Any = bitsandbytes.functional
        self.update_portion = library.optimizer_update_8bit_blockwise
        # In another thread, because under FakeTensorMode, which is per thread, this would fail.
        with ThreadPoolExecutor(1) as other:
            tables = [table.tolist() for table in other.map(library.create_dynamic_map, [1, 0])]
        self.signed, self.unsigned = (torch.tensor(table, device=device) for table in tables)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of the state of a parameter, without its count of steps."""
        scales = ((-(-math.prod(shape) // BLOCK_8BIT),), torch.float32)
        return {n: (shape, torch.uint8) for n in MEANS} | {f"{n}_scale": scales for n in MEANS}

    def update(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One step from the gradient of a parameter; changes its ``state`` in place.

        In portions, because on a CPU the library makes five float32 copies of its input.
        """
        assert parameter.grad is not None
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        parts = portions(parameter, parameter.grad, *(state[name] for name in MEANS))
        scales = portions(*(state[f"{name}_scale"] for name in MEANS), block=BLOCK_8BIT)
        for (weights, gradient, mean, square), two_scales in zip(parts, scales, strict=True):
            with in_float32(weights) as wide:
                self.update_portion(
                    "adam", gradient.float(), wide, mean, square, beta1, beta2, 0.0, 0.0,
                    group["eps"], step, group["lr"], self.signed, self.unsigned,
                    *two_scales, group["weight_decay"],
                )  # fmt: skip
