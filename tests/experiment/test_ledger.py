"""Each end of a run adds one line to ``outputs/ledger.jsonl``; trouble with it ends no run."""

import errno
import fcntl
import json
import multiprocessing
import os
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from llm.experiment import ledger
from llm.experiment.ledger import KEYS, LEDGER, append, finished_elsewhere, read

FINISHED = {
    "status": "finished", "config_digest": "a" * 64, "val_loss": 1.8261, "train_seconds": 2.0,
}  # fmt: skip


def lines() -> list[dict[str, object]]:
    return [json.loads(line) for line in LEDGER.read_text(encoding="ascii").splitlines()]


def test_a_line_has_all_keys_and_its_text_comes_back_as_it_was() -> None:
    note = "try relu2, (again)\nüber \udcff"
    append(Path("outputs/a"), {"status": "failed", "reason": "two\nlines", "note": note, "x": 1})
    (line,) = lines()
    assert tuple(line) == KEYS
    assert (line["folder"], line["reason"], line["note"]) == ("outputs/a", "two lines", note)
    assert str(line["time"]).endswith("+00:00")
    assert line["seed"] is None and "x" not in line


def append_many(process: int, count: int) -> None:
    for number in range(count):
        append(Path(f"{process}/{number}"), {"note": "x" * (number * 397 % 9000)})


@pytest.mark.parametrize("has_locks", [True, False])
def test_processes_that_append_at_once_lose_no_line(has_locks: bool) -> None:
    error = OSError(errno.ENOLCK, "No locks available")
    flock = fcntl.flock if has_locks else error
    with patch.object(fcntl, "flock", side_effect=flock):
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=append_many, args=(n, 50)) for n in range(6)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    # Without locks a process may see half of another's line, and put an empty line before its own.
    found = sorted(str(line["folder"]) for line in read())
    assert found == sorted(f"{process}/{number}" for process in range(6) for number in range(50))


def test_half_a_line_of_a_killed_process_costs_no_other_line() -> None:
    append(Path("first"), {})
    with LEDGER.open("ab") as file:
        file.write(b'{"time": "2026-')
    append(Path("second"), {})
    append(Path("third"), {})
    assert [line["folder"] for line in read()] == ["third", "second", "first"]


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"\xff\xfe", b"[" * 9000, b"[1]\n7\nnull", b"{" * 9])
def test_damaged_lines_are_skipped(raw: bytes) -> None:
    append(Path("first"), {})
    with LEDGER.open("ab") as file:
        file.write(raw + b"\n" + b"x" * (ledger.LONGEST + 1) + b"\n")
    append(Path("second"), {})
    assert [line["folder"] for line in read()] == ["second", "first"]


def test_only_the_end_of_an_endless_ledger_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        append(Path(str(number)), {})
    monkeypatch.setattr(ledger, "LARGEST", LEDGER.stat().st_size // 4)
    assert [line["folder"] for line in read()][:3] == ["19", "18", "17"]
    assert 3 <= len(list(read())) <= 5


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "file", "full", "short", "read-only"])
def test_a_ledger_that_cannot_be_written_is_a_warning(
    kind: str, cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cwd / "outputs").mkdir()
    (cwd / "precious").write_text("kept", encoding="utf-8")
    if kind == "folder":
        LEDGER.mkdir()
    elif kind == "link":
        LEDGER.symlink_to("../precious")
    elif kind == "pipe":
        os.mkfifo(LEDGER)
    elif kind == "file":
        LEDGER.parent.rmdir()
        LEDGER.parent.touch()
    elif kind == "full":
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(full))
    elif kind == "short":
        monkeypatch.setattr(os, "write", lambda handle, raw: len(raw) - 1)
    else:
        refused = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(refused))
    append(Path("run"), {})
    assert list(read()) == []
    monkeypatch.undo()
    said = capsys.readouterr().out
    assert said.startswith("warning: outputs/ledger.jsonl lacks the line of this run: ")
    assert (cwd / "precious").read_text(encoding="utf-8") == "kept"


def test_a_process_that_keeps_the_lock_delays_a_line_but_does_not_prevent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "WAIT_SECONDS", 0.05)
    append(Path("first"), {})
    with LEDGER.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        append(Path("second"), {})
    assert len(lines()) == 2


def test_the_newest_finished_run_in_another_folder_is_found() -> None:
    mine, digests = Path("outputs/mine"), [FINISHED["config_digest"]]
    assert finished_elsewhere(digests, mine) is None, "there is no ledger"
    for folder, changes in {
        "outputs/mine": {},
        "outputs/old": {"val_loss": 9.0},
        "outputs/new": {},
        "outputs/other": {"config_digest": "b" * 64},
        "outputs/mentions": {"config_digest": "b" * 64, "note": "a" * 64},
        "outputs/failed": {"status": "diverged"},
        "outputs/evaluated": {"train_seconds": 0.0},
        "outputs/hostile": {"val_loss": "1.0"},
    }.items():
        append(Path(folder), FINISHED | changes)
    found = finished_elsewhere(digests, mine)
    assert found is not None and found["folder"] == "outputs/new"
    absolute = finished_elsewhere(digests, Path.cwd() / "outputs/new")
    assert absolute is not None and absolute["folder"] == "outputs/old"
    new_run = finished_elsewhere(["c" * 64, *digests], None)
    assert new_run is not None and new_run["folder"] == "outputs/new"


def test_ten_thousand_lines_are_searched_in_little_time() -> None:
    append(Path("first"), FINISHED)
    line = {key: "x" * 64 for key in KEYS}
    with LEDGER.open("a") as file:
        for number in range(10_000):
            file.write(json.dumps(line | {"config_digest": f"{number:064x}"}) + "\n")
    parsed, loads = [], json.loads
    start = time.process_time()
    with patch.object(json, "loads", side_effect=lambda raw: parsed.append(raw) or loads(raw)):
        found = finished_elsewhere([FINISHED["config_digest"]], None)
    took = time.process_time() - start
    assert found is not None and found["folder"] == "first"
    assert len(parsed) == 1, "the lines of other runs are not parsed"
    print(f"{LEDGER.stat().st_size / 2**20:.1f} MiB in {took:.3f} s")
