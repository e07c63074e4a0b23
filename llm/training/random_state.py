"""The random generators of the process, seeded together and saved together.

Dropout draws from torch's. Nothing here draws from Python's or numpy's, but what somebody adds may.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm.errors import Refused


def seed_everything(seed: int) -> None:
    """Seed the generators of torch (all devices), Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Where each generator stands, as ``random/<whose>``.

    ``random/gauss`` has a normal number that Python and numpy each may have drawn ahead: whether
    there is one, and which.
    """
    _, words, ahead = random.getstate()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    inner = numpy["state"]
    gauss = [ahead is not None, ahead or 0.0, numpy["has_gauss"], numpy["gauss"]]
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
    """Undo :func:`random_tensors`; a generator that is missing in ``tensors`` stays as it is.

    Raises :class:`llm.errors.Refused` for what is no state of a generator.
    """
    try:
        if "random/gauss" in tensors:
            has_python, python, has_numpy, numpy = tensors["random/gauss"].tolist()
            words = tuple(tensors["random/python"].tolist())
            random.setstate((3, words, python if has_python else None))
            *key, position = tensors["random/numpy"].tolist()
            if len(key) != 624 or not 0 <= position <= 624:
                raise ValueError("numpy itself would read memory that is none of it")
            np.random.set_state(("MT19937", np.array(key), position, int(has_numpy), numpy))
        if "random/cpu" in tensors:
            torch.set_rng_state(tensors["random/cpu"])
        if device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], device)
        elif device.type == "mps" and "random/mps" in tensors:
            torch.mps.set_rng_state(tensors["random/mps"])
    except (KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"the checkpoint holds no usable random state: {reason}") from None
