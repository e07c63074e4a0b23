"""Plans of the same numbers on every machine."""

import pytest

from llm.planning import reserve


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is asked for its reserve."""
    reserve.ask_gpu.cache_clear()
    monkeypatch.setattr(reserve, "DRIVERS", ())
