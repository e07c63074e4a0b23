"""A chat prints its answer while it is computed."""

import io
import sys
from typing import Any

import pytest

from tests.experiment.test_chat import chatting, listening

__all__ = ["listening"]  # a fixture that each test here uses


def test_each_piece_of_an_answer_is_written_before_the_next_token_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat, events = chatting(monkeypatch, "one\n"), list[str]()
    model = chat.conversation.model
    logits = model.logits

    def computed(x: Any) -> Any:
        events.append("token")
        return logits(x)

    class Recorded(io.StringIO):
        def write(self, text: str) -> int:
            events.extend([text] if text else [])
            return len(text)

        def flush(self) -> None:
            events.append("flush")

    model.logits = computed  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", Recorded())
    chat.run()
    answer = events[: events.index("\n")]
    assert [one for one in answer if one != "flush"] == ["token", "x"] * 6
    assert all(answer[place + 1] == "flush" for place, one in enumerate(answer) if one == "x")
