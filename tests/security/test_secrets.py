"""No file of a run contains secrets from the environment or from ``+hydra.job.env_set``."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import wandb_file
from tests.command_line import Done, here, listing, rows, started, wait_until
from tests.conftest import HANGS, PLAY, TINY_RUN
from tests.security.conftest import TEXT

KEY, SECRET, TYPED = "c0ffee" * 6 + "c0de", "hush-my-lord-1603", "typed-beside-the-settings-7"
CANARIES = (KEY, SECRET, TYPED)
UNCOMMITTED = "changed-and-not-committed-3"  # in the work tree; W&B saves a diff by default
LOGGED = [*TEXT, *(o for o in TINY_RUN if o != "logger=none"), "logger=wandb"]
REFERENCE = "${oc.env:MY_SECRET}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a text and an uncommitted change; secrets are in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", SECRET)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "home").mkdir()
    (place / "play.txt").write_text(PLAY, encoding="utf-8")
    (place / "mine.py").write_text("", encoding="utf-8")
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "mine.py"], [*me, "commit", "-qm", "mine"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    (place / "mine.py").write_text(f"password = '{UNCOMMITTED}'\n", encoding="utf-8")
    return place


def leaks(place: Path) -> Iterator[str]:
    """Files of ``place`` and of the home folder whose contents or name include a secret."""
    count = 0
    for path in sorted(place.parent.rglob("*")):
        if ".git" in path.parts or path.name == "mine.py" or not path.is_file():
            continue
        count += 1
        searched = str(path.relative_to(place.parent)).encode() + path.read_bytes()
        for secret in (*CANARIES, UNCOMMITTED):
            if secret.encode() in searched:
                yield f"{path}: {secret}"
    assert count > 10


def assert_no_code_is_saved(place: Path) -> None:
    files = [path for path in place.glob("*/**/wandb/**/*") if path.is_file()]
    assert files
    assert not [path for path in files if path.suffix == ".py" or "code" in path.parts]
    assert not {"diff.patch", "wandb-metadata.json"} & {path.name for path in files}


def test_an_interrupted_run_prints_the_command_and_writes_no_secret(place: Path) -> None:
    typed = [*LOGGED, "trainer.max_steps=100000", "run.name=a", f"+hydra.job.env_set.X={TYPED}"]
    with started("train", *typed, cwd=place) as process:
        wait_until(lambda: len(rows(place / "outputs/a")) > 3)
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 75, shown
    assert f"+hydra.job.env_set.X={TYPED}" in shown.split("to continue:")[1]
    assert KEY not in shown
    assert SECRET not in shown
    assert len(wandb_file.read(place / "outputs/a")["history"]) > 3
    assert not list(leaks(place))
    assert_no_code_is_saved(place)
    (place / "outputs" / "a" / "leak.bin").write_bytes(b"\0" + SECRET.encode() + b"\0")
    assert len(list(leaks(place))) == 1, "leaks() misses a secret"


@pytest.mark.slow
def test_a_sweep_writes_no_secret(place: Path) -> None:
    typed = [*LOGGED, "run.sweep=s", "seed=1,2", f"+hydra.job.env_set.X={TYPED}"]
    with started("train", "-m", *typed, cwd=place) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, shown
    jobs = sorted(place.glob("multirun/s/seed-*"))
    assert [len(wandb_file.read(job)["history"]) for job in jobs] == [7, 7]
    assert not list(leaks(place))
    assert_no_code_is_saved(place)


def assert_refused(done: Done, place: Path, *words: str) -> None:
    assert done.returncode == 2, done
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    for word in words:
        assert word in done.stderr
    for secret in CANARIES:
        assert secret not in done.stderr
    assert {name for name in listing(place) if not name.startswith(".git")} == {
        "play.txt", "mine.py"
    }  # fmt: skip


@pytest.mark.parametrize(
    "typed",
    [
        [f"logger.project=x-{REFERENCE}"], [f"logger.tags=[a,'{REFERENCE}']"],
        ["seed=${oc.decode:${oc.env:MY_SECRET}}"], ["logger.project=${oc.env:NOT_THERE,x}"],
        [f"model={REFERENCE}"], [f"hydra.run.dir={REFERENCE}"],
        ["-m", f"logger.project={REFERENCE},b"], ["logger.project=\\${oc.env:MY_SECRET}"],
    ],
    ids=str,
)  # fmt: skip
def test_a_reference_to_the_environment_is_refused_by_name_and_not_resolved(
    typed: list[str], place: Path
) -> None:
    key = typed[-1 if typed[0] != "-m" else 1].partition("=")[0]
    assert_refused(here("train", *TEXT, *typed, cwd=place), place, key, "interpolation")


def test_a_reference_in_a_custom_config_is_refused(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "logger"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"mode: offline\nproject: {REFERENCE}\n", encoding="utf-8")
    typed = ["--config-dir", str(folder.parent), *TEXT, "logger=mine"]
    assert_refused(here("train", *typed, cwd=place), place, "logger.project", "interpolation")


@pytest.mark.parametrize(
    "typed",
    [
        [f"api_key={TYPED}"], [f"+logger.wandb_token={TYPED}"], [f"++trainer.password={TYPED}"],
        ["-m", f"logger.api_key={TYPED}", "seed=1,2"],
    ],
    ids=str,
)  # fmt: skip
def test_an_unknown_key_is_refused_without_repeating_its_value(
    typed: list[str], place: Path
) -> None:
    assert_refused(here("train", *TEXT, *typed, cwd=place), place, "is unknown")
