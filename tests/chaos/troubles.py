"""An optimizer that fails in some jobs of a sweep, as its key ``job`` says."""

from typing import Any

import torch

# After the steps in which an optimizer is tried before a run. A job that is continued is too short
# to reach the end before it fails again.
AT_STEP = 30
OUT_OF_MEMORY, DIVERGES, RAISES = 3, 7, 12  # the jobs that fail


class Troubled(torch.optim.AdamW):
    """AdamW, until the step at which the job fails."""

    def __init__(self, params: Any, lr: float, job: int) -> None:
        super().__init__(params, lr=lr)
        self.job, self.steps = job, 0

    def step(self, closure: Any = None) -> Any:
        """One step of AdamW."""
        self.steps += 1
        if self.steps >= AT_STEP:
            if self.job == OUT_OF_MEMORY:
                torch.empty(1 << 60)
            if self.job == RAISES:
                raise RuntimeError("a fault of the optimizer")
            if self.job == DIVERGES:
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.data.fill_(1e30)
        return super().step(closure)
