"""The jobs of a sweep as their folders show them, whichever launcher runs them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Forecast:
    """What is known about a job before it starts."""

    parameters: int
    max_steps: int | None  # None: the job has a budget in minutes
    tokens: int | None  # to train on; None: the job has a budget in minutes
    minutes: float | None  # trainer.max_minutes
    flops_per_token: float  # forward and backward
    peak: int  # predicted bytes
    budget: int  # bytes that the job may take
    fits: bool  # with the changes that memory.fit=auto makes
