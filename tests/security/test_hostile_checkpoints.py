"""Nothing that a stranger's checkpoint or run folder holds is executed, waited for or believed."""

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
SOME = [
    "torch's zip as the weights", "_target_ in the model", "a claim of 4 TB", "a key twice",
    "the largest model", "a run_id that is a path", "an object in config.yaml",
    "an interpolation in config.yaml", "a log that is a file of the user's",
]  # fmt: skip
Problems = list[str]


def typed(command: str, case: Case) -> list[str]:
    if command == "sample":
        return ["sample", f"ckpt={case.given}", "max_new_tokens=1", "device=cpu"]
    if command == "train":
        return ["train", *TEXT, *TINY_RUN, f"init_from={case.given}"]
    return ["train", "resume=outputs/run", "trainer.max_steps=9"]


def attempt(
    case: Case, command: str, place: Path, forked: Commands, **environment: str
) -> Problems:
    """What is wrong with how a command met a case; nothing, if it was refused as it should be."""
    (place / CANARY).touch()
    case.change(place)
    before = listing(place)
    end = forked.run(*typed(command, case), cwd=place, SECRET=SECRET, **environment)
    wrong = {
        f"exit status {end.status}": end.status != 2,
        "not one line": end.err.count("\n") != 1 or not end.err.startswith("run_"),
        "a line too long to read": len(end.err) > 1000,
        "the secret is told": SECRET in end.out + end.err,
        "something was executed": (place / CANARY).read_text(encoding="utf-8") != "",
        f"files: {sorted(before ^ listing(place))}": listing(place) != before,
        f"{end.memory >> 20} MiB": end.memory > MEMORY,
    }
    found = [what for what, is_wrong in wrong.items() if is_wrong]
    return [f"{case.name}, {command}: {', '.join(found)}: {end.err[-300:]}"] if found else []


def problems(
    cases: list[Case], trained: Path, tmp_path: Path, forked: Commands, **environment: str
) -> tuple[int, Problems]:
    """How many attempts there were, and what went wrong."""
    count, wrong = 0, []
    for case in cases:
        for command in sorted(case.commands):
            place = tmp_path / f"{count}"
            shutil.copytree(trained, place, symlinks=True)
            wrong += attempt(case, command, place, forked, **environment)
            shutil.rmtree(place)
            count += 1
    return count, wrong


def test_the_run_that_is_tampered_with_works_as_it_is(place: Path, forked: Commands) -> None:
    untouched = Case("untouched", lambda _: None, set())
    for command in ("sample", "train", "resume"):
        end = forked.run(*typed(command, untouched), cwd=place)
        assert end.status == 0, end


def test_some_of_what_a_stranger_could_send_is_refused(
    trained: Path, tmp_path: Path, forked: Commands
) -> None:
    some = [case for case in CORPUS if case.name in SOME]
    assert len(some) == len(SOME)
    for number, case in enumerate(some):
        command = sorted(case.commands)[number % len(case.commands)]
        place = shutil.copytree(trained, tmp_path / f"{number}", symlinks=True)
        assert not attempt(case, command, place, forked)


@pytest.mark.slow
def test_all_of_it_is_refused_by_every_command(
    trained: Path, tmp_path: Path, forked: Commands, report: Callable[[str], None]
) -> None:
    count, wrong = problems(CORPUS, trained, tmp_path, forked)
    ended = forked.ended[-count:]
    report(
        f"hostile: n={count} refused={count - len(wrong)} of {len(CORPUS)} kinds, "
        f"{max(end.seconds for end in ended):.1f} s and "
        f"{max(end.memory for end in ended) >> 20} MiB at the most"
    )
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_a_setting_that_makes_torch_trust_pickles_changes_nothing(
    trained: Path, tmp_path: Path, forked: Commands
) -> None:
    trusting = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    cases = [replace(case, commands=case.commands - {"train"}) for case in PICKLES]
    _, wrong = problems(cases, trained, tmp_path, forked, **trusting)
    assert not wrong, "\n".join(wrong)


def test_resuming_deletes_no_checkpoint_that_a_link_leads_to(place: Path, forked: Commands) -> None:
    shutil.copytree(place / STEP, place / "mine")
    before = listing(place / "mine")
    for name in ("step-00000001", "step-00000002.replaced", "best-00000001"):
        (place / STEP).with_name(name).symlink_to("../../../mine")
    end = forked.run("train", "resume=outputs/run", "trainer.max_steps=9", cwd=place)
    assert end.status == 0, end
    assert listing(place / "mine") == before
    assert not [path for path in (place / STEP).parent.glob("*-*") if path.is_symlink()]


def test_a_config_cannot_have_a_folder_deleted_that_it_names(place: Path, forked: Commands) -> None:
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
