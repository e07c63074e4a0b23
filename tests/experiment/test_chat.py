"""A chat through a pipe and on a terminal: answers, commands, Ctrl-C, and what is saved."""

import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm.data.conversations import read_conversations
from llm.data.template import Message
from llm.errors import Refused
from llm.experiment import chat as module
from llm.experiment.chat import Chat
from llm.sampling.options import SamplingOptions
from llm.signals import listener, raised
from tests.command_line import here
from tests.conftest import HANGS, ROOT, TINY_RUN
from tests.sampling.test_conversation import MARKED, conversation, network


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    with raised():
        yield
    listener.stop_listening()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with the run ``outputs/a``, which has seen no conversations."""
    folder = tmp_path_factory.mktemp("trained")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    done = here("train", *data, *TINY_RUN, "model.block_size=1024", "run.name=a", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chatting(
    monkeypatch: pytest.MonkeyPatch, typed: str | bytes, block_size: int = 64, **options: Any
) -> Chat:
    """A chat with a network that answers ``xxxxxx``; ``typed`` comes through a pipe."""
    raw = typed if isinstance(typed, bytes) else typed.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    talk = conversation(network(block_size, favourite=ord("x")), **options)
    return Chat(talk, SamplingOptions(temperature=0, max_new_tokens=6), seed=0)


def at_terminal(monkeypatch: pytest.MonkeyPatch, *events: Any) -> Chat:
    """The same on a terminal: each event is a line, or an exception that ends ``input()``."""
    left = list(events)

    def typed(prompt: str) -> str:
        print(prompt, end="")
        event = left.pop(0) if left else EOFError
        if event == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, str):
            return event
        raise event

    chat = chatting(monkeypatch, "")
    chat.is_terminal = True
    monkeypatch.setattr(module, "input", typed, raising=False)
    return chat


def contents(chat: Chat) -> list[str]:
    return [one.content for one in chat.conversation.messages]


def test_a_pipe_gives_a_message_per_line_and_gets_only_the_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = chatting(monkeypatch, "one\n\n两行\\\nof it\r\nlast", system="sys").run()
    said = [one["content"] for one in messages]
    assert said == ["sys", "one", "xxxxxx", "两行\nof it", "xxxxxx", "last", "xxxxxx"]
    printed = capsys.readouterr()
    assert printed.out == "xxxxxx\n" * 3
    assert printed.err == "(cut: max_new_tokens=6)\n" * 3


def test_mistakes_take_one_line_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (
        "/dance\n/exit x\n/reset x\n/temperature hot\n/temperature -1\n/save\n/save a\n"
        + "a" * 99
        + "\nhello\n"
    )
    monkeypatch.setattr(module, "LONGEST_LINE", 400)
    long = "c" * 300
    typed += "b" * 1000 + f"\n/save ~nobody/a\n/save {long}\n"
    chat = chatting(monkeypatch, typed.encode() + b"\xff\n/temperature 0.5\n/system be kind\n")
    chat.run()
    printed = capsys.readouterr()
    assert printed.out == "xxxxxx\n"
    assert printed.err.splitlines() == [
        "/dance is unknown: /help lists the commands",
        *(f"/{c} takes no text, as in /{c} x: type /{c} alone" for c in ("exit", "reset")),
        "/temperature hot must be a number, such as 0.7",
        "/temperature=-1.0 must be at least 0",
        "/save needs a file: /save chat.jsonl",
        "/save: there is no answer yet",
        "the message needs 101 tokens, with the system text and the template, "
        "and there is room for 58: shorten it",
        "(cut: max_new_tokens=6)",
        "a message has more than 400 bytes: shorten it",
        "/save ~nobody/a: No such file or directory",
        f"/save {long}: File name too long",
        "the message is not UTF-8: offset 0",
        "temperature: 0.5",
        "system: be kind",
    ]
    assert contents(chat) == ["be kind", "hello", "xxxxxx"]
    assert chat.options.temperature == 0.5


def test_every_command_is_in_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chatting(monkeypatch, "/help\n/exit\nnever read\n")
    chat.run()
    help_text = capsys.readouterr().err
    assert all(f"/{name}" in help_text for name in chat.commands if name != "help")
    assert contents(chat) == []


def test_forgotten_messages_are_mentioned_once_and_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [f"message {number}" for number in range(9)]
    chat = chatting(monkeypatch, "\n".join([*lines, f"/save {tmp_path}/chat 1.jsonl"]))
    chat.run()
    assert capsys.readouterr().err.count("the oldest messages no longer fit") == 1
    row = json.loads((tmp_path / "chat 1.jsonl").read_text(encoding="utf-8"))
    assert [one["content"] for one in row["messages"][::2]] == lines
    assert {one["role"] for one in row["messages"][1::2]} == {"assistant"}


def test_only_a_file_of_this_chat_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("precious", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    typed = "a\n/save mine\nb\n/save mine\n/save other\n/save no/folder\n/reset\nc\n/save mine\n"
    chat = chatting(monkeypatch, typed)
    chat.run()
    said = capsys.readouterr().err
    assert "/save other exists already: take another name\n" in said
    assert "/save no/folder: No such file or directory\n" in said
    assert (tmp_path / "other").read_text(encoding="utf-8") == "precious"
    saved = [json.loads(line) for line in (tmp_path / "mine").read_text("utf-8").splitlines()]
    assert [len(one["messages"]) for one in saved] == [4, 2], "a line for each conversation"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other"}


def test_a_saved_conversation_is_data_even_if_an_answer_was_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = chatting(monkeypatch, f"a\nb\n/save {tmp_path}/chat\n", system="brief")
    answer = chat.conversation.answer

    def empty_at_first(prompt: list[int], *others: Any) -> Iterator[str]:
        answered = answer(prompt, *others)
        if len(chat.conversation.history) > 1:
            yield from answered
        else:
            chat.conversation.history.append(Message("assistant", " "))

    monkeypatch.setattr(chat.conversation, "answer", empty_at_first)
    chat.run()
    (saved,) = read_conversations(tmp_path / "chat")
    assert [one.content for one in saved.messages] == ["brief", "b", "xxxxxx"]
    assert contents(chat) == ["brief", "a", " ", "b", "xxxxxx"]


def test_reset_starts_anew_and_a_message_may_start_with_a_slash_after_a_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = chatting(monkeypatch, "one\n/reset\n /usr is a folder\n")
    chat.run()
    assert contents(chat) == [" /usr is a folder", "xxxxxx"]


def test_another_adapter_answers_the_same_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chatting(monkeypatch, "one\n/adapter b\ntwo\n/adapter\n/adapter c\n/adapter runs/a\n")
    networks = {"runs/a": chat.conversation.model, "b": network(64, favourite=ord("y"))}
    ended = replace(MARKED, end="yyy")
    adapters: Any = lambda name: (networks[name], MARKED if name == "runs/a" else ended)  # noqa: E731
    chat = Chat(chat.conversation, chat.options, 0, [*networks], adapters)
    chat.run()
    assert contents(chat) == ["one", "xxxxxx", "two", ""]
    said = capsys.readouterr().err.splitlines()
    listed = ["  runs/a", "* b"]
    assert said == ["(cut: max_new_tokens=6)", *listed, *listed,
                    "/adapter c is unknown: take one of runs/a, b", "* runs/a", "  b"]  # fmt: skip
    with pytest.raises(Refused, match="without adapters="):
        Chat(chat.conversation, chat.options, 0).take("/adapter b")


def test_ctrl_c_stops_an_answer_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = at_terminal(monkeypatch, "one", "two")
    model, seen = chat.conversation.model, list[int]()
    logits = model.logits

    def interrupted(x: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # an impatient user
        return logits(x)

    model.logits = interrupted  # type: ignore[method-assign]
    chat.run()
    assert contents(chat) == ["one", "xxx", "two", "xxxxxx"]
    assert listener.received is None


def test_a_second_ctrl_c_at_the_prompt_ends_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = at_terminal(monkeypatch, "Ctrl-C", "one", "Ctrl-C", "Ctrl-C")
    with pytest.raises(KeyboardInterrupt):
        chat.run()
    assert contents(chat) == ["one", "xxxxxx"]
    assert capsys.readouterr().err.count("Ctrl-C again, /exit or Ctrl-D ends the chat") == 2
    assert listener.on_ctrl_c is None


def test_ctrl_d_ends_the_chat_below_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_terminal(monkeypatch).run()
    assert capsys.readouterr().out == "> \n"


def test_a_chat_of_the_command_streams_answers_to_the_lines_of_a_pipe(trained: Path) -> None:
    typed = ["outputs/a", "chat=true", "max_new_tokens=3", "device=cpu"]
    done = here("sample", *typed, cwd=trained, stdin=b"hi\n")
    assert done.returncode == 2 and "not trained on conversations: give a temp" in done.stderr
    done = here("sample", *typed, "template=plian", cwd=trained)
    assert done.returncode == 2 and " template=plian is neither one of " in done.stderr
    done = here("sample", *typed, "template=chatml", cwd=trained)
    assert " template needs the special tokens <|im_start|>" in done.stderr
    assert done.returncode == 2 and done.stderr.endswith(": take template=alpaca or plain\n")
    done = here("sample", *typed, "template=plain", "prompt=hi", cwd=trained)
    assert done.returncode == 2 and "leave out prompt and prompt_file" in done.stderr
    done = here("sample", "outputs/a", "template=plain", "prompt=hi", cwd=trained)
    assert done.returncode == 2 and "template is only for a chat: add chat=true" in done.stderr
    for word in ("num_samples=3", "logprobs=true", "echo=false", "stream=false", "adapters=[]"):
        done = here("sample", *typed, "template=plain", word, cwd=trained)
        assert done.returncode == 2
        assert f"{word} has no effect in a chat" in done.stderr or "adapters is emp" in done.stderr
    plain = [*typed, "template=plain", "json=true"]
    done = here("sample", *plain, cwd=trained, stdin=b"/temperature 0\nhi\n")
    assert done.returncode == 0, done.stderr
    user, assistant = json.loads(done.stdout)["conversation"]
    assert user == {"role": "user", "content": "hi"} and assistant["role"] == "assistant"
    assert here("sample", *plain[:-1], cwd=trained, stdin=b"/temperature 0\nhi\n").stdout == (
        assistant["content"] + "\n"
    )


@pytest.mark.slow
def test_ctrl_c_on_a_real_terminal_stops_the_answer_and_then_ends_the_chat(trained: Path) -> None:
    ours, theirs = pty.openpty()
    words = [
        "outputs/a", "chat=true", "template=plain", "max_new_tokens=100000", "device=cpu",
        "temperature=0",  # an answer that is drawn may end before Ctrl-C comes
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_sample.py"), *words], cwd=trained, stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    never_longer = threading.Timer(HANGS, process.kill)
    never_longer.start()
    os.close(theirs)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(ours, 1024)
        seen = seen.partition(text)[2]

    def press_ctrl_c_at_the_prompt() -> None:
        time.sleep(0.5)  # Python's input() misses a signal between its prompt and its first wait
        os.write(ours, b"\x03")

    try:
        wait_for(b"> ")
        for question in ("你好\n", "more\n"):  # the second is asked after the first was stopped
            os.write(ours, question.encode())
            wait_for(b"\r\n")
            while len(seen) < 40:  # the answer has begun: the codes of the line editor are shorter
                seen += os.read(ours, 1024)
            os.write(ours, b"\x03")
            wait_for(b"\n> ")
        press_ctrl_c_at_the_prompt()
        wait_for(b"ends the chat")
        wait_for(b"> ")
        press_ctrl_c_at_the_prompt()
        assert process.wait(HANGS) == 130
    finally:
        never_longer.cancel()
        process.kill()
        process.wait()
        os.close(ours)
