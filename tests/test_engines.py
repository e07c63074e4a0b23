"""Launchers of other packages really run a sweep, each in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.command_line import summary
from tests.conftest import ROOT, TINY_RUN

pytestmark = pytest.mark.slow

ENGINES = {
    "joblib": ("hydra-joblib-launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
    "submitit": (
        "hydra-submitit-launcher",
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"],
    ),
    "ray": ("hydra-ray-launcher", ["hydra/launcher=ray"]),
}
LOSSES = ("best_val_loss", "val_loss", "bits_per_byte", "status", "config_digest")


def environment_with(package: str, folder: Path) -> Path:
    """The Python of a new environment, which has ``package`` besides all that is here."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), package], check=True)
    return python


def sweep(python: Path, typed: list[str], name: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Three jobs, each computing with one thread."""
    command = [str(python), str(ROOT / "run_train.py"), "-m", *typed, *TINY_RUN]
    return subprocess.run(
        [*command, "optimizer.lr=1e-3,2e-3,3e-3", f"run.sweep={name}"], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sweep_is_the_same_by_every_engine(engine: str, tmp_path: Path, text_file: Path) -> None:
    package, options = ENGINES[engine]
    python = environment_with(package, tmp_path / "venv")
    text = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    for name, found in (
        ("ours", sweep(Path(sys.executable), text, "ours", tmp_path)),
        (engine, sweep(python, [*options, *text], engine, tmp_path)),
    ):
        assert found.returncode == 0, found.stdout
        jobs = {p.name for p in (tmp_path / "multirun" / name).glob("optimizer*")}
        assert jobs == {f"optimizer.lr-0.00{n}" for n in (1, 2, 3)}
        table = found.stdout.partition("best val loss")[2]
        assert all(f"\nlr=0.00{n} " in table for n in (1, 2, 3)), "the table has all jobs"
    for job in jobs:
        ours, theirs = (summary(tmp_path / "multirun" / name / job) for name in ("ours", engine))
        assert ours["status"] == "finished"
        assert [ours[key] for key in LOSSES] == [theirs[key] for key in LOSSES]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["ledger.jsonl"]
