"""Any config.yaml is read as plain values in bounded time, or refused in one line."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm.errors import Refused
from llm.plain_yaml import LARGEST
from llm.settings.saved import load_plain

OURS: dict[str, Any] = {
    "model": {"n_layer": 4, "head_size": None, "dropout": 0.0, "bias": True, "norm": "rmsnorm"},
    "optimizer": {"lr": 6e-05, "betas": [0.9, 0.95], "name": "muon"},
    "logger": {"tags": [], "notes": "_target_: &a *a !!x ${y}\n" * 9, "name": "1e3"},
    "seed": 2**63 - 1,
}
REFUSED = [
    ("a: &x 1\nb: *x", "line 1 has an alias"),
    ("a: &x [*x]", "line 1 has an alias"),
    ("a: !!python/object/apply:os.system [ls]", "line 1 has a tag"),
    ("%TAG ! tag:yaml.org,2002:\n---\na: !binary aaaa", "line 3 has a tag"),
    ("a: 2020-01-01", "line 1 has a tag, or a value that is not text"),
    ("a: 1\nb: 2\na: 3", "line 3 has the key 'a' for the second time"),
    ("model: {_target_: llm.x}", "line 1 has the key '_target_'"),
    ("a: {_: {}}", "line 1 has the key '_'"),
    ("<<: {a: 1}", "line 1 has the key '<<', which is not a name"),
    ("1: a", "line 1 has the key '1', which is not a name"),
    ("[a]: a", "which is not a name"),
    ("a: " + "9" * 41, "line 1 has a number that is too long"),
    ("a: 1" + ":59" * 10_000, "line 1 has a number that is too long"),
    ("[" * LARGEST, "maximum recursion depth exceeded"),
    ("? " * (LARGEST // 2), "maximum recursion depth exceeded"),
    ("a: '\0'", "special characters are not allowed"),
    ("a: 1\n---\nb: 1", "expected a single document"),
    ("", "holds no settings"),
    ("a", "holds no settings"),
    ("model: 1", "model is 1, not a section"),
    ("#" * (LARGEST + 1), "is too large"),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path, yaml.safe_dump(OURS))
    assert load_plain(tmp_path) == OURS


@pytest.mark.parametrize(
    ("text", "reason"), REFUSED, ids=[f"{n} {reason}" for n, (_, reason) in enumerate(REFUSED)]
)
def test_a_file_that_no_run_has_written_is_refused_in_one_line(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(Refused) as refusal:
        load_plain(tmp_path)
    assert str(refusal.value).startswith(str(path))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "HOME" not in str(refusal.value)


@pytest.mark.parametrize("key", ["init_from", "logger.notes", "logger.name", "data.path"])
def test_free_text_may_look_like_an_interpolation(key: str, tmp_path: Path) -> None:
    section, _, name = key.rpartition(".")
    values = {section: {name: "${oc.env:HOME}"}} if section else {name: "${oc.env:HOME}"}
    write(tmp_path, yaml.safe_dump(values))
    assert load_plain(tmp_path) == values


def test_links_pipes_and_devices_in_a_run_folder_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    write(folder, yaml.safe_dump(OURS))
    assert load_plain(folder) == OURS
    for name, make in (
        ("run_train.log", lambda path: path.symlink_to("../mine.txt")),
        ("samples.jsonl", lambda path: path.symlink_to("../not-there.txt")),
        ("wandb", lambda path: path.symlink_to("..")),
        ("metrics.jsonl", lambda path: path.symlink_to("metrics.jsonl")),
        ("summary.json", os.mkfifo),
    ):
        make(folder / name)
        with pytest.raises(Refused, match=f"{name} is neither a file nor a folder"):
            load_plain(folder)
        (folder / name).unlink()
    assert load_plain(folder) == OURS
