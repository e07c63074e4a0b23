"""A first guess at the time of a run that has not started, from the speed of the CPU."""

import time

from llm.experiment.sweep import usable_cores
from llm.experiment.watch import Forecast

# Training's FLOP/s over those of a large product in numpy, whose library is slower than torch's: a
# network of width 128 on a busy machine reaches the first, one of width 576 on an idle machine the
# second.
REACHED = (0.25, 1.25)


def guessed_seconds(known: Forecast) -> tuple[float, float] | None:
    """The least and the most seconds to expect of the training steps on this CPU in float32; None
    for a budget in minutes.
    """
    if not known.tokens or known.minutes is not None:
        return None
    operations = known.tokens * known.flops_per_token
    least, most = (operations / (share * product_flops()) for share in reversed(REACHED))
    return least, most


def product_flops(n: int = 1024, repeats: int = 3) -> float:
    """FLOP/s of all cores in products of (n, n) matrices in float32, at the fastest of some.

    Counts CPU seconds, not wall time, so that other programs do not change the result.
    """
    import numpy as np  # its library starts threads, and most commands need none

    a = np.ones((n, n), dtype=np.float32)
    fastest = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        start = time.process_time()  # of all threads together
        a @ a
        fastest = min(fastest, time.process_time() - start)
    return 2 * n**3 * usable_cores() / max(fastest, 1e-9)
