"""From run folders to the files of a report."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.made_runs import DATA, make_run, make_sweep
from llm.errors import Refused
from llm.experiment.ledger import LEDGER
from llm.report import writing
from llm.report.writing import Reporter, earlier_losses, make_report_folder
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reporter(*paths: Path | str) -> Reporter:
    found = Reporter(paths)
    found.read()
    return found


def ledger(*lines: dict[str, Any]) -> None:
    LEDGER.parent.mkdir(exist_ok=True)
    common = {"status": "finished", "data_digest": DATA, "point": "a", "folder": "outputs/x"}
    LEDGER.write_text("".join(json.dumps(common | line) + "\n" for line in lines), encoding="utf-8")


def test_the_title_names_what_the_report_is_about() -> None:
    for name in "abcde":
        make_run(Path("outputs") / name, {}, [3.0, 2.0], rows=1)
    assert reporter("outputs").analyse().title == "outputs"
    assert reporter("outputs/a", "outputs/b").analyse().title == "a, b"
    paths = [f"outputs/{name}" for name in "abcde"]
    assert reporter(*paths).analyse().title == "a, b, c and 2 more"


def test_the_default_of_a_sweep_is_named() -> None:
    sweep = make_sweep(Path("multirun/depth"), {"model.n_layer": [2, 4]}, rows=1)
    assert reporter(sweep).analyse().default is None
    path = sweep / "sweep.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"default": {"model.n_layer": "2"}}), encoding="utf-8")
    assert reporter(sweep).analyse().default == 0
    path.write_text("{", encoding="utf-8")
    assert reporter(sweep).analyse().default is None
    assert "sweep.json" in reporter(sweep).page_data()["notes"][0]


def test_the_noise_of_earlier_runs_counts_each_point_and_seed_once() -> None:
    make_run(Path("outputs/a"), {}, [3.0, 2.0], rows=1)
    ledger(
        {"seed": 1, "best_val_loss": 2.5},
        {"seed": 1, "best_val_loss": 2.1},  # the same run again: the newest line counts
        {"seed": 2, "best_val_loss": 2.2},
        {"seed": 3, "best_val_loss": 2.3, "status": "diverged"},
        {"seed": 4, "best_val_loss": 2.4, "data_digest": "0" * 64},
        {"seed": 5, "best_val_loss": None},
        {"seed": 6, "best_val_loss": 2.6, "folder": "outputs/a"},  # is in the report itself
        {"seed": "7", "best_val_loss": 2.7},
        {"seed": 8, "best_val_loss": 2.8, "point": ["b"]},
        {"seed": 9, "best_val_loss": 1e200},
    )
    found = reporter("outputs/a")
    assert sorted(earlier_losses(found.records, "best")) == [("a", 2.1), ("a", 2.2)]
    noise = found.analyse().noise
    assert noise is not None and noise.source == "earlier runs on this data"


def test_a_digest_that_is_no_text_finds_no_earlier_run() -> None:
    make_run(Path("outputs/a"), {}, [3.0, 2.0], rows=1, data_digest="\ud800")
    ledger({"seed": 1, "best_val_loss": 2.5})
    assert earlier_losses(reporter("outputs/a").records, "best") == []


def test_failed_runs_have_the_end_of_their_log() -> None:
    folder = make_run(Path("outputs/a"), {}, [3.0, 2.0], rows=1, status="failed", reason="a bug")
    (folder / "run_train.log").write_text("one\ntwo\n", encoding="utf-8")
    found = reporter("outputs")
    assert found.document(found.analyse())["runs"][0]["log"] == "one\ntwo"


def test_a_report_is_replaced_whole_and_leaves_no_other_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = make_sweep(Path("multirun/depth"), {"model.n_layer": [2, 4]}, seeds=(1,), rows=1)
    found = reporter(sweep)
    document, data = found.document(found.analyse()), found.page_data()
    found.write(sweep, document, data)
    files = {path: path.read_bytes() for path in sweep.iterdir() if path.is_file()}
    document["title"] = "another"

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(Exception, match="multirun/depth could not be written: No space left"):
        found.write(sweep, document, data)
    assert {path: path.read_bytes() for path in sweep.iterdir() if path.is_file()} == files


def test_rows_of_the_table_are_sorted_and_no_cell_is_a_formula() -> None:
    make_run(Path("outputs/=a"), {"model.n_layer": 2}, [3.0, 2.0], rows=1)
    make_run(Path("outputs/b"), {"model.n_layer": 3}, [3.0, 1.0], rows=1)
    make_run(Path("outputs/c"), {}, [3.0, 0.5], rows=1, status="killed", reason="by SIGKILL")
    found = reporter("outputs/=a", "outputs/b", "outputs/c")
    rows = writing.csv_rows(found.records, found.document(found.analyse()), False)
    assert [(row.name, row.is_best) for row in rows] == [
        ("outputs/c", False), ("outputs/b", True), ("outputs/=a", False),
    ]  # fmt: skip
    assert rows[1].values["model.n_layer"] == "3" and rows[1].values["seed"] == "1337"


def test_a_folder_is_made_only_if_it_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_report_folder(None, None).parent == Path("outputs/reports")
    assert make_report_folder("a/b", Path("multirun/x")) == Path("a/b")
    assert make_report_folder(None, Path("a/b")) == Path("a/b")
    Path("file").touch()
    with pytest.raises(Refused, match=r"^report folder file is a file: take another out$"):
        make_report_folder("file", None)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(Refused, match="a/b cannot be written: Permission denied: take out=FOLDER"):
        make_report_folder(None, Path("a/b"))


def test_reading_and_writing_a_report_imports_no_torch_and_no_hydra() -> None:
    make_run(Path("outputs/a"), {}, [3.0, 2.0], rows=1)
    code = (
        "import sys; from pathlib import Path; from llm.report.writing import Reporter\n"
        "r = Reporter(['outputs/a']); r.read(); d = r.document(r.analyse())\n"
        "r.write(Path('.'), d, r.page_data())\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'plotly', 'wandb'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_without_a_finished_run_nothing_can_be_tested() -> None:
    make_run(Path("outputs/a"), {}, [3.0, 2.0], rows=1, status="diverged")
    found = reporter("outputs")
    with pytest.raises(Refused, match="test=true: no finished run can be compared"):
        found.test(found.analyse(), lambda done, total: None)
