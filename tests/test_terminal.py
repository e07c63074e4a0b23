"""No failure of the terminal ends a run, and no text from a file controls a terminal."""

import contextlib
import errno
import io
import logging
import os
import pty
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from llm.errors import DiskError, as_line, printable
from llm.experiment import console
from llm.experiment.rundir import recording
from llm.terminal import flushed, require_output, safe
from tests.command_line import rows, summary
from tests.conftest import HANGS, ROOT, TINY_RUN, needs_linux

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b5md\re\u202ef\u2066g\x00"
READABLE = "床前明月光\u3000e\u0301 \u00e9 👩\u200d🔬 ❤\ufe0f می\u200cخواهم नमस्ते\u00a0x\n\ty\n"  # noqa: RUF001


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """Fails like a closed terminal (EIO), a full disk or a pipe without a reader."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.times = number, 0

    def write(self, text: str) -> int:
        self.times += 1
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        self.write("")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPIPE, errno.EAGAIN])
def test_output_that_cannot_be_written_is_dropped(number: int) -> None:
    broken = Broken(number)
    with redirect_stdout(safe(broken)), redirect_stderr(safe(broken)):
        print("a", flush=True)
        print("b", file=sys.stderr)
        console.say("c")
        console.panel("d", {"e": "f"})
        with console.TrainingScreen(max_steps=2) as screen:
            screen.tick(1)
            screen.show_sample(1, "g")
    assert broken.times > 5


def test_output_to_a_closed_file_is_dropped() -> None:
    file = io.StringIO()
    with redirect_stdout(safe(file)):
        file.close()
        print("a", flush=True)


def test_a_full_disk_ends_a_command_whose_only_result_is_its_output() -> None:
    with redirect_stdout(safe(Broken(errno.ENOSPC))):
        require_output()
        with pytest.raises(DiskError, match="standard output could not be written: No space"):
            print("a")
    with redirect_stdout(safe(Broken(errno.EPIPE))), pytest.raises(BrokenPipeError):
        require_output()
        print("a")


def test_a_buffer_that_cannot_be_written_at_the_end_is_an_error(tmp_path: Path) -> None:
    with (
        open("/dev/full", "w", encoding="utf-8") as full,
        redirect_stdout(safe(full)),
        pytest.raises(DiskError),
        flushed(),
    ):
        require_output()
        print("a")  # stays in the buffer
    assert list(tmp_path.iterdir()) == []


def test_characters_missing_from_an_encoding_are_escaped() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with redirect_stdout(safe(file)):
        print("中 \udcff", flush=True)
    assert raw.getvalue() == b"\\u4e2d \\udcff\n"


def test_a_terminal_gets_printable_text_and_a_pipe_unchanged_text() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for place in (terminal, pipe):
        with redirect_stdout(safe(place)):
            print(HOSTILE, end="")
            print(READABLE, end="")
    shown = "a\\x1b]0;title\\x07b\\x1b[2Jc\\x9b5md\\re\\u202ef\\u2066g\\x00"
    assert terminal.getvalue() == shown + READABLE
    assert pipe.getvalue() == HOSTILE + READABLE


def test_messages_keep_other_scripts_and_stay_on_one_line() -> None:
    assert as_line(READABLE) == READABLE.replace("\n", "\\n").replace("\t", "\\t")
    assert as_line("a" * 5000) == "a" * 4000 + " ..."


@pytest.mark.parametrize("place", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_panels_samples_and_tables_show_no_escape_sequence(place: Any) -> None:
    screen = console.Screen(file=place, highlight=False, soft_wrap=True, width=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "console", screen)
        console.panel("training", {"run folder": HOSTILE})
        console.title(HOSTILE)
        console.say(HOSTILE)
        console.warn(HOSTILE)
        console.TrainingScreen(2).show_sample(1, HOSTILE + READABLE)
        screen.print(HOSTILE)
    text = place.getvalue()
    assert text.count("title") >= 6
    for code in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\r", "\u202e", "\u2066", "\x00"):
        assert code not in text
    assert "床前明月光" in text and "👩\u200d🔬" in text


def test_a_live_line_moves_the_cursor_of_a_guarded_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with redirect_stdout(safe(terminal)), redirect_stderr(safe(terminal)):
        monkeypatch.setattr(console, "console", console.Screen(highlight=False, soft_wrap=True))
        with console.TrainingScreen(2) as live:
            live.tick(1)
            live.bar.refresh()
            live.warn("as text")
    assert "step 1/2" in terminal.getvalue() and "\x1b[2K" in terminal.getvalue()
    assert "\\x1b" not in terminal.getvalue() and "\\r" not in terminal.getvalue()


def test_the_log_of_a_run_can_be_shown_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with recording(tmp_path, {}, "", remove_if_refused=False):
        logging.getLogger("llm").info("sample: %s", HOSTILE + READABLE)
    text = (tmp_path / "run_train.log").read_text(encoding="utf-8")
    assert text.endswith(f"INFO sample: {printable(HOSTILE)}{READABLE}\n")


def options(text_file: Path) -> list[str]:
    return [
        "data=text", f"data.path={text_file}", "data.tokenizer=char", *TINY_RUN, "run.name=a",
        "trainer.sample_interval=2",
    ]  # fmt: skip


def command(name: str, *typed: str) -> list[str]:
    return [sys.executable, str(ROOT / f"run_{name}.py"), *typed]


@pytest.mark.slow
def test_a_run_outlives_full_output_in_an_encoding_without_its_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("床前明月光。疑是地上霜。\n" * 400, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "wb") as full:
        trained = subprocess.run(
            command("train", *options(text)), cwd=tmp_path, stdout=full, stderr=full,
            env=environment | {"PYTHONIOENCODING": "ascii"}, timeout=HANGS,
        )  # fmt: skip
        sampled = subprocess.run(
            command("sample", "ckpt=outputs/a", "max_new_tokens=5"), cwd=tmp_path, stdout=full,
            stderr=subprocess.PIPE, text=True, env=environment, timeout=HANGS,
        )  # fmt: skip
        planned = subprocess.run(
            command("plan"), cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True,
            env=environment, timeout=HANGS,
        )  # fmt: skip
    assert trained.returncode == 0
    assert summary(tmp_path / "outputs" / "a")["status"] == "finished"
    assert (tmp_path / "outputs" / "a" / "checkpoints" / "last").exists()
    # The output is the only result of these two.
    error = "standard output could not be written: No space left on device"
    assert (sampled.returncode, planned.returncode) == (5, 5)
    assert planned.stderr == f"run_plan.py: {error}\n"
    assert sampled.stderr.splitlines()[1:] == [f"run_sample.py: {error}"]


def test_a_run_outlives_its_terminal(tmp_path: Path, text_file: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("train", *options(text_file)), cwd=tmp_path, stdin=theirs, stdout=theirs,
        stderr=theirs, env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def read() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):  # the run has ended already
            while b"training" not in seen:  # the first panel
                seen += os.read(ours, 1000)
        os.close(ours)  # like closing the window

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=HANGS) == 0
    reader.join()
    assert summary(tmp_path / "outputs" / "a")["status"] == "finished"
    assert rows(tmp_path / "outputs" / "a")[-1]["step"] == 6


@needs_linux
def test_a_file_opened_later_does_not_become_a_closed_standard_output(tmp_path: Path) -> None:
    code = "import llm.start, os; print('a'); os.write(3, os.readlink('/proc/self/fd/1').encode())"
    with (tmp_path / "found").open("wb") as found:
        shell = f"exec 3>&{found.fileno()}; exec '{sys.executable}' -c \"{code}\" >&- 2>&-"
        done = subprocess.run(
            ["bash", "-c", shell], cwd=ROOT, pass_fds=[found.fileno()], timeout=HANGS
        )
    assert done.returncode == 0
    assert (tmp_path / "found").read_text(encoding="utf-8") == "/dev/null"
