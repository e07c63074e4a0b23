"""A kill at any system call of a save loses at most that save."""

import contextlib
import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
import safetensors.torch
import torch

from llm.checkpoint.checkpoint import MANIFEST, TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.folder import CheckpointFolder, newest_valid, repair
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from tests.command_line import listing
from tests.conftest import TINY_MODEL

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]
CALLS = (
    "open,openat,creat,write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,"
    "link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
ANY_TRACER, SET_TRACER = -1, 0x59616D61  # for prctl(2): by default only an ancestor may trace
Call = tuple[str, str]  # name and arguments, as strace shows them


@dataclass(frozen=True)
class Case:
    """A save into a folder with checkpoints of the steps ``before``."""

    before: tuple[int, ...]
    step: int
    keep_last: int
    always: int  # intact checkpoints at any moment
    after: tuple[int, ...]  # steps of the checkpoints after the save


CASES = {
    "the first": Case((), 2, 2, 0, (2,)),
    "with two before": Case((2, 4), 6, 2, 2, (4, 6)),
    "with one before, keep_last=1": Case((4,), 6, 1, 1, (6,)),
    "the same step again": Case((4,), 4, 1, 1, (4,)),
}


class CannotTrace(Exception):
    """The system does not let strace attach to a process."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Fresh processes, which have no threads: a fork copies only the one that calls it."""
    with multiprocessing.get_context("spawn").Pool(2) as found:
        yield found


@pytest.fixture
def trace(pool: Pool, tmp_path: Path) -> Callable[[str], list[Call]]:
    """The system calls of a complete save in a case."""

    def inner(name: str) -> list[Call]:
        try:
            return pool.apply(calls_of_save, (CASES[name], tmp_path / name))
        except CannotTrace as error:
            pytest.skip(str(error))

    return inner


def test_a_kill_at_any_system_call_loses_at_most_the_save_in_progress(
    trace: Callable[[str], list[Call]],
    pool: Pool,
    tmp_path: Path,
    report: Callable[[str], None],
) -> None:
    points, lost = 0, []
    for name, case in CASES.items():
        work = [
            (case, tmp_path / f"{name} {n}", place) for n, place in enumerate(places(trace(name)))
        ]
        found = pool.starmap(valid_after_kill, work, chunksize=1)
        points += len(found)
        for valid, (_, _, place) in zip(found, work, strict=True):
            if len(valid) < case.always or max(valid, default=0) < max(case.before, default=0):
                lost.append((name, place, valid))
        # An old one is deleted only after the new one is published.
        assert max(map(len, found)) == len(case.before) + 1
    report(f"crash points: n={points} lost={len(lost)}")
    assert points > 80 and not lost


def test_files_are_synced_before_they_are_published_and_published_before_an_old_one_is_deleted(
    trace: Callable[[str], list[Call]], tmp_path: Path
) -> None:
    calls = trace("with two before")
    folder = tmp_path / "with two before" / "checkpoints"
    new = f"{folder}/.step-00000006.tmp"

    def only(name: str, *words: str) -> int:
        """The index of the only such call whose arguments have these words in this order."""
        pattern = ".*".join(map(re.escape, words))
        (index,) = (
            n for n, (c, args) in enumerate(calls) if c == name and re.search(pattern, args)
        )
        return index

    published = only("rename", new, f'"{folder}/step-00000006"')
    named, pointed = only("fsync", f"<{folder}>"), only("rename", f'"{folder}/last"')
    complete = published - 1
    assert re.fullmatch(rf"\(\d+<{re.escape(new)}>\)", calls[complete][1])
    assert calls[complete][0] == "fsync"  # of the folder, after all files
    written = [n for n, (call, args) in enumerate(calls) if call == "write" and new in args]
    for name in (WEIGHTS, TRAINING):  # safetensors writes under a temporary name
        renamed, synced = only("renameat", new, name), only("fsync", new, name)
        assert any(n < renamed for n in written) and renamed < synced < complete
    assert written[-1] < only("fsync", new, MANIFEST) < complete
    old = [n for n, (_, args) in enumerate(calls) if "step-00000002" in args]
    assert complete < published < named < pointed < min(old)
    withdrawn = only("rename", f'"{folder}/step-00000002"')
    deleted = [n for n in old if calls[n][0] == "unlinkat" and "safetensors" in calls[n][1]]
    assert len(deleted) == 2 and withdrawn < min(deleted)  # renamed, then deleted


def test_the_first_save_syncs_the_run_folder(
    trace: Callable[[str], list[Call]], tmp_path: Path
) -> None:
    synced = [arguments for name, arguments in trace("the first") if name == "fsync"]
    assert any(arguments.endswith(f"<{tmp_path / 'the first'}>)") for arguments in synced)


def calls_of_save(case: Case, run: Path) -> list[Call]:
    """The system calls of a save without a kill."""
    save = prepared(case, run)
    assert traced(partial(save, case.step), "-o", f"{run}.strace") == 0
    assert valid_steps(run) == list(case.after)
    lines = Path(f"{run}.strace").read_text(encoding="utf-8").splitlines()
    found = [re.match(r"(\w+)(\(.*\)) += \S", line) for line in lines]
    return [(match[1], match[2]) for match in found if match]


def places(calls: list[Call]) -> list[str]:
    """Strace's options that kill a process at each call: its name and its number of that name."""
    names = [name for name, _ in calls]
    return [
        f"inject={name}:signal=SIGKILL:when={names[: n + 1].count(name)}"
        for n, name in enumerate(names)
    ]


def valid_after_kill(case: Case, run: Path, place: str) -> list[int]:
    """The steps that can be resumed after a kill; asserts that repair and a save clean up."""
    save = prepared(case, run)
    assert traced(partial(save, case.step), "-e", place, "-o", os.devnull) == -signal.SIGKILL
    found = valid_steps(run)
    newest, skipped = newest_valid(run)
    assert not skipped and (newest.step if newest else 0) == max(found, default=0)
    repair(run, newest, skipped)
    save(8)
    kept = [f"step-{step:08d}" for step in [*sorted({*found}), 8][-case.keep_last :]]
    files = {f"{step}/{name}" for step in kept for name in (MANIFEST, WEIGHTS, TRAINING)}
    assert listing(run / "checkpoints") == {"last", *kept} | files, place
    return found


def valid_steps(run: Path) -> list[int]:
    """The steps of all intact checkpoints, hidden ones too."""
    found = []
    for path in sorted((run / "checkpoints").glob("*step-*")):
        with contextlib.suppress(Refused):
            checkpoint = Checkpoint.open(path)
            checkpoint.verify()
            found += [] if path.suffix == ".tmp" else [checkpoint.step]
    return found


def prepared(case: Case, run: Path) -> Callable[[int], object]:
    """Make a run with its checkpoints ``before``; returns a function that saves another."""
    torch.set_num_threads(1)
    run.mkdir()
    tokenizer = ByteTokenizer()
    model = GPT(**TINY_MODEL, vocab_size=tokenizer.vocab_size)
    training = {"random/cpu": torch.get_rng_state()}
    safetensors.torch.save(training)  # imports modules before the trace begins

    def save(step: int) -> object:
        folder = CheckpointFolder(run, case.keep_last, model.config, tokenizer, {})
        return folder.save(step, model.state_dict(), training, {})

    for step in case.before:
        save(step)
    return save


def traced(action: Callable[[], object], *options: str) -> int:
    """The exit status of a fork of this process that runs ``action`` under strace."""
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ctypes.CDLL(None).prctl(SET_TRACER, ANY_TRACER, 0, 0, 0)
            os.read(ready, 1)
            action()
            status = 0
        finally:
            os._exit(status)
    command = ["strace", "-y", "-s", "0", "-e", f"trace={CALLS}", *options, "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        os.write(go, b"!")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(ready)
    os.close(go)
    if "attached" not in said:
        raise CannotTrace(said)
    return status
