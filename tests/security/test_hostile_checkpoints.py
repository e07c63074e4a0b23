"""Hostile checkpoints and run folders are refused: nothing in them is executed or trusted."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import listing
from tests.conftest import TINY_RUN
from tests.security.conftest import TEXT
from tests.security.forked import Commands
from tests.security.hostile import CANARY, CORPUS, PICKLES, SECRET, STEP, Case

MEMORY = 300 << 20
QUICK = {
    "torch's zip as the weights": "resume", "_target_ in the model": "sample",
    "a claim of 4 TB": "train", "a key twice": "resume", "the largest model": "sample",
    "a run_id that is a path": "resume", "an object in config.yaml": "resume",
    "an interpolation in config.yaml": "resume", "a log that is a file of the user's": "resume",
}  # fmt: skip  # cases for the default suite, and one command for each
SOME = [replace(case, commands={QUICK[case.name]}) for case in CORPUS if case.name in QUICK]
READ_PICKLES = [replace(case, commands=case.commands - {"train"}) for case in PICKLES]
TRUST_PICKLES = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


def typed(command: str, case: Case) -> list[str]:
    if command == "sample":
        return ["sample", f"ckpt={case.path}", "max_new_tokens=1", "device=cpu"]
    if command == "train":
        return ["train", *TEXT, *TINY_RUN, f"init_from={case.path}"]
    return ["train", "resume=outputs/run", "trainer.max_steps=9"]


def fault(
    case: Case, command: str, place: Path, forked: Commands, environment: dict[str, str]
) -> str:
    """Describe how a command failed to refuse a case; empty if it refused it correctly."""
    (place / CANARY).touch()
    case.change(place)
    before = listing(place)
    end = forked.run(*typed(command, case), cwd=place, SECRET=SECRET, **environment)
    faults = {
        f"exit status {end.status}": end.status != 2,
        "not one line": end.err.count("\n") != 1 or not end.err.startswith("run_"),
        "a line too long to read": len(end.err) > 1000,
        "the secret is printed": SECRET in end.out + end.err,
        "something was executed": (place / CANARY).read_text(encoding="utf-8") != "",
        f"files: {sorted(before ^ listing(place))}": listing(place) != before,
        f"{end.memory >> 20} MiB": end.memory > MEMORY,
    }
    found = ", ".join(text for text, is_wrong in faults.items() if is_wrong)
    return f"{case.name}, {command}: {found}: {end.err[-300:]}" if found else ""


def test_the_untouched_run_works(place: Path, forked: Commands) -> None:
    untouched = Case("untouched", lambda _: None, set())
    for command in ("sample", "train", "resume"):
        end = forked.run(*typed(command, untouched), cwd=place)
        assert end.status == 0, end


@pytest.mark.parametrize(
    ("cases", "environment"),
    [
        pytest.param(SOME, {}, id="some"),
        pytest.param(CORPUS, {}, id="all", marks=pytest.mark.slow),
        pytest.param(READ_PICKLES, TRUST_PICKLES, id="trust", marks=pytest.mark.slow),
    ],
)
def test_hostile_files_are_refused_by_every_command(
    cases: list[Case], environment: dict[str, str], trained: Path, tmp_path: Path,
    forked: Commands, report: Callable[[str], None],
) -> None:  # fmt: skip
    first, faults = len(forked.ended), []
    for case in cases:
        for command in sorted(case.commands):
            place = shutil.copytree(trained, tmp_path / "place", symlinks=True)
            faults.append(fault(case, command, place, forked, environment))
            shutil.rmtree(place)
    ended, wrong = forked.ended[first:], list(filter(None, faults))
    if cases is CORPUS:
        report(
            f"hostile: n={len(ended)} refused={len(ended) - len(wrong)} of {len(cases)} kinds, "
            f"{max(end.seconds for end in ended):.1f} s and "
            f"{max(end.memory for end in ended) >> 20} MiB at the most"
        )
    assert not wrong, "\n".join(wrong)


def test_a_resume_deletes_links_and_not_the_checkpoints_behind_them(
    place: Path, forked: Commands
) -> None:
    shutil.copytree(place / STEP, place / "mine")
    before = listing(place / "mine")
    for name in ("step-00000001", "step-00000002.replaced", "best-00000001"):
        (place / STEP).with_name(name).symlink_to("../../../mine")
    end = forked.run("train", "resume=outputs/run", "trainer.max_steps=9", cwd=place)
    assert end.status == 0, end
    assert listing(place / "mine") == before
    assert not [path for path in (place / STEP).parent.glob("*-*") if path.is_symlink()]


def test_a_resume_deletes_no_folder_that_its_config_names(place: Path, forked: Commands) -> None:
    config, precious = place / "outputs/run/config.yaml", place / "precious" / "letters.txt"
    precious.parent.mkdir()
    precious.write_text("My lord,\n", encoding="utf-8")
    text = config.read_text(encoding="utf-8").replace("  overwrite: false", "  overwrite: true")
    text = text.replace("  dir: data", "  dir: .").replace("  name: text", "  name: precious")
    text = text.replace("  corpus: text", "  corpus: tinyshakespeare")
    config.write_text(text, encoding="utf-8")
    end = forked.run("train", "resume=outputs/run", "trainer.max_steps=9", cwd=place)
    assert end.status == 2, end
    assert precious.read_text(encoding="utf-8") == "My lord,\n"
