"""The random generators of the process, seeded together and saved together.

Dropout draws from torch's generator. Nothing here draws from Python's or numpy's, but custom code
may.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm.errors import Refused

NUMPY_WORDS = 624  # of the Mersenne Twister


def seed_everything(seed: int) -> None:
    """Seed the generators of torch (all devices), Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The state of each generator, as ``random/<library or device>``.

    ``random/gauss`` holds the normal number that Python and numpy each may have drawn in advance:
    whether there is one, and its value.
    """
    _, words, python_gauss = random.getstate()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    inner = numpy["state"]
    gauss = [python_gauss is not None, python_gauss or 0.0, numpy["has_gauss"], numpy["gauss"]]
    tensors = {
        "random/cpu": torch.get_rng_state(),
        "random/python": torch.tensor(words),
        "random/numpy": torch.tensor([*inner["key"].tolist(), inner["pos"]]),
        "random/gauss": torch.tensor(gauss, dtype=torch.float64),
    }
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        tensors["random/mps"] = torch.mps.get_rng_state()
    return tensors


def restore_random(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Restore :func:`random_tensors`. The generator of the device may be missing, since the run may
    come from another device.

    Raises :class:`llm.errors.Refused` for values that are not a generator's state.
    """
    try:
        has_python, python_gauss, has_numpy, numpy_gauss = tensors["random/gauss"].tolist()
        words = tuple(tensors["random/python"].tolist())
        random.setstate((3, words, python_gauss if has_python else None))
        *key, position = tensors["random/numpy"].tolist()
        if len(key) != NUMPY_WORDS or not 0 <= position <= NUMPY_WORDS:
            raise ValueError("numpy would read out of bounds")
        np.random.set_state(("MT19937", np.array(key), position, int(has_numpy), numpy_gauss))
        torch.set_rng_state(tensors["random/cpu"])
        if device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], device)
        elif device.type == "mps" and "random/mps" in tensors:
            torch.mps.set_rng_state(tensors["random/mps"])
    except (KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"the checkpoint holds no usable random state: {reason}") from None
