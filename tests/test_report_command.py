"""``run_report.py`` as typed: its output, its files and its exit status."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.made_runs import make_run, make_sweep
from tests.command_line import here, listing

FILES = {"report.html", "report.json", "summary.csv", "plotly.min.js"}
DEPTHS = {"model.n_layer": [2, 4]}


def document(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def new_report(folder: Path) -> Path:
    (found,) = (folder / "outputs/reports").iterdir()
    return found


def seeds(folder: Path, name: str, loss: float, count: int = 3, **values: Any) -> None:
    """Runs of one point: ``outputs/<name>-<seed>``."""
    for seed in range(count):
        losses = [3.0, loss + 0.01 * seed]
        make_run(folder / f"outputs/{name}-{seed}", values | {"seed": seed}, losses, rows=2)


def test_a_sweep_gets_its_report_into_its_own_folder(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "multirun/depth", DEPTHS, rows=2)
    before = listing(sweep)
    done = here("report", "multirun/depth", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert listing(sweep) - before == FILES
    assert done.stdout.startswith("The best settings are n_layer=4: best validation loss ")
    assert "n_layer=4 compared with n_layer=2: -" in done.stdout
    lines = [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("n_layer=")]
    assert [line for line in lines if line[1] == "3"] == [["n_layer=4", "3"], ["n_layer=2", "3"]]
    assert "multirun/depth/report.html\nmultirun/depth/report.json\n" in done.stdout
    report = document(sweep)
    assert report["title"] == "depth" and not report["is_running"]
    rows = table(sweep)
    assert len(rows) == 6 and [row["best"] for row in rows] == ["*"] + [""] * 5
    assert list(rows[0])[:5] == ["best", "job", "model.n_layer", "seed", "status"]
    losses = [float(row["best_val_loss"]) for row in rows]
    assert losses == sorted(losses) and rows[0]["model.n_layer"] == "4"


def test_any_runs_are_compared_in_a_new_folder_or_in_the_one_of_out(tmp_path: Path) -> None:
    make_sweep(tmp_path / "multirun/depth", DEPTHS, seeds=(1,), rows=2)
    make_run(tmp_path / "outputs/n_layer=4,a", {"model.n_layer": 3}, [3.0, 2.0], rows=2)
    make_run(
        tmp_path / "outputs/b", {}, [3.0, 1.0], rows=2, status="diverged", reason="loss is NaN"
    )
    paths = ["outputs/n_layer=4,a", "multirun/depth", "outputs/b"]
    done = here("report", *paths, "metric=last", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "last val loss" in done.stdout and "outputs/b: diverged: loss is NaN" in done.stdout
    folder = new_report(tmp_path)
    assert listing(folder) == FILES
    assert f"{folder.relative_to(tmp_path)}/report.html" in done.stdout
    report = document(folder)
    assert report["runs"][0]["folder"] == "outputs/n_layer=4,a"
    assert report["counts"] == {"finished": 3, "diverged": 1}
    rows = {row["folder"]: row for row in table(folder)}
    assert rows["outputs/b"]["reason"] == "loss is NaN" and rows["outputs/b"]["best"] == ""
    assert [name for name, row in rows.items() if row["best"]] == ["outputs/n_layer=4,a"]
    done = here("report", *(f"runs={path}" for path in paths), "out=my (new), report", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert listing(tmp_path / "my (new), report") == FILES


def test_a_gate_is_passed_only_by_a_point_that_is_shown_to_be_better(tmp_path: Path) -> None:
    seeds(tmp_path, "base", 2.0)
    seeds(tmp_path, "good", 1.5, **{"model.n_layer": 3})
    seeds(tmp_path, "same", 2.001, **{"model.n_layer": 5})
    paths = {name: [f"outputs/{name}-{n}" for n in range(3)] for name in ("base", "good", "same")}

    def gate(*names: str) -> Any:
        typed = [path for name in names for path in paths[name]]
        return here("report", *typed, "gate=true", f"out={'-'.join(names)}", cwd=tmp_path)

    done = gate("base", "good")
    assert (done.returncode, done.stderr) == (0, "")
    assert "n_layer=3 compared with n_layer=4: -0.5000" in done.stdout
    done = gate("good", "base")
    assert done.returncode == 10
    assert done.stderr == "run_report.py: n_layer=4 is worse than n_layer=3, by 0.5000\n"
    assert listing(tmp_path / "good-base") == FILES
    done = gate("base", "same")
    assert done.returncode == 10
    assert done.stderr.startswith("run_report.py: n_layer=5 is not shown to be better than n_la")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["base"], "found 1: 2 runs with the same settings"),
        (["base", "a", "b"], "found 3 (n_layer=4, n_layer=2, n_layer=3)"),
        (["base", "bad"], "found 1: 2 runs with the same settings; outputs/bad-0 is damaged"),
    ],
)
def test_a_gate_needs_exactly_two_points(names: list[str], message: str, tmp_path: Path) -> None:
    seeds(tmp_path, "base", 2.0, count=2)
    for name, depth in (("a", 2), ("b", 3), ("bad", 6)):
        seeds(tmp_path, name, 2.0, count=1, **{"model.n_layer": depth})
    (tmp_path / "outputs/bad-0/metrics.jsonl").write_text("{}\nno JSON\n", encoding="utf-8")
    typed = [f"outputs/{path.name}" for name in names for path in
             sorted((tmp_path / "outputs").glob(f"{name}-*"))]  # fmt: skip
    done = here("report", *typed, "gate=true", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "outputs/reports").exists()


def test_without_a_finished_run_there_is_nothing_to_test(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {}, [2.0], status="diverged")
    done = here("report", "a", "test=true", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "run_report.py: test=true: no finished run can be compared\n"


def test_paths_without_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs/a", {}, [3.0, 2.0], rows=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = listing(tmp_path)
    for typed, message in (
        ([], "run_report.py: no runs: give folders, as in python run_report.py multirun/width_d"),
        (["empty"], "run_report.py: empty has no runs in it: give a run, a sweep such as"),
        (["nowhere"], "run_report.py: nowhere does not exist"),
        (["file"], "run_report.py: file is a file"),
        (["outputs/a", "out=file"], "run_report.py: report folder file is a file: take another"),
        (
            ["outputs/a", "out=file/x"],
            "run_report.py: report folder file/x cannot be written: file is not a folder",
        ),
        (["outputs/a", "metric=mean"], "run_report.py: metric=mean must be one of best, last"),
        (["outputs/a", "n_layer=4"], "run_report.py: n_layer is unknown"),
    ):
        done = here("report", *typed, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_sweep_of_somebody_else_is_refused_naming_out(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "multirun/depth", DEPTHS, seeds=(1,), rows=2)
    sweep.chmod(0o555)
    done = here("report", "multirun/depth", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith("take out=FOLDER for another\n")


def test_without_plotly_or_scipy_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(tmp_path / "outputs/a", {}, [3.0, 2.0], rows=2)
    before = listing(tmp_path)
    monkeypatch.setattr("llm.report.writing.find_spec", lambda name: None)
    done = here("report", "outputs/a", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "run_report.py: the report needs plotly and scipy: "
        "pip install -c constraints.txt plotly scipy\n"
    )
    monkeypatch.undo()
    monkeypatch.setattr("llm.report.plots.find_spec", lambda name: None)
    done = here("report", "outputs/a", "plots=true", cwd=tmp_path)
    assert done.returncode == 2 and "plots=true needs matplotlib: pip" in done.stderr
    assert listing(tmp_path) == before


def test_damaged_runs_and_runs_without_a_loss_are_listed_and_the_rest_is_reported(
    tmp_path: Path,
) -> None:
    sweep = make_sweep(tmp_path / "multirun/depth", {"model.n_layer": [1, 2, 3, 4]}, seeds=(1,))
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    (folders[0] / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    summary = json.loads((folders[1] / "summary.json").read_text(encoding="utf-8"))
    none = {"best_val_loss": None, "val_loss": None, "bits_per_byte": None}
    (folders[1] / "summary.json").write_text(json.dumps(summary | none), encoding="utf-8")
    (folders[1] / "metrics.jsonl").unlink()
    done = here("report", "multirun/depth", "plots=true", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{folders[0].relative_to(tmp_path)}: damaged: metrics.jsonl" in done.stdout
    report = document(sweep)
    assert len(report["points"]) == 2 and len(report["left_out"]) == 1
