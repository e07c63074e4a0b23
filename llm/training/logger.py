"""What the loop tells while it trains."""

from typing import Protocol

Row = dict[str, float | int | None]


class Logger(Protocol):
    """Where a run's numbers and samples go."""

    run_id: str

    def tick(self, step: int) -> None: ...
    def log(self, row: Row) -> None: ...
    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None: ...
