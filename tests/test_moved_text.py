"""A run whose text is moved or changed, or which is named from another folder."""

import re
import shutil
from pathlib import Path

import pytest

from llm.data.meta import read_meta
from llm.tasks import subject
from tests.command_line import here
from tests.conftest import PLAY, TINY_RUN
from tests.test_bad_input import CHAR, assert_refused


def test_evaluation_and_training_name_the_data_of_a_run_whose_text_is_not_there(
    tmp_path: Path,
) -> None:
    cwd, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    cwd.mkdir(), elsewhere.mkdir()
    (cwd / "play.txt").write_text(PLAY, encoding="utf-8")
    done = here("train", *CHAR, "data.path=play.txt", *TINY_RUN, "run.name=a", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (folder,) = (cwd / "data").glob("text-*")
    still = f"still has the data that outputs/a was trained on: give data_path=data/{folder.name}\n"
    (cwd / "play.txt").write_text(PLAY + "SPEAKER 3:\n", encoding="utf-8")
    changed = here("eval", "outputs/a", cwd=cwd)
    assert_refused(changed, "is not there", still)
    words = re.findall("data_path=[^ \n]+", changed.stderr)
    assert here("eval", "outputs/a", *words, cwd=cwd).returncode == 0
    assert here("prepare", *CHAR, "data.path=play.txt", cwd=cwd).returncode == 0
    assert_refused(here("eval", "outputs/a", cwd=cwd), "has changed since", still)

    (cwd / "play.txt").rename(cwd / "moved.txt")
    assert_refused(here("eval", "outputs/a", cwd=cwd), "data.path=play.txt does not exist", still)
    longer = ["resume=outputs/a", "trainer.max_steps=7"]
    here_is_none = "data.path=play.txt in outputs/a/config.yaml does not exist here: start the comm"
    assert_refused(here("train", *longer, cwd=cwd), here_is_none, "data.path=PATH")
    (cwd / "moved.txt").write_text(PLAY, encoding="utf-8")
    done = here("train", *longer, "data.path=moved.txt", cwd=cwd)
    assert done.returncode == 0, done.stderr

    away = here("eval", "../here/outputs/a", cwd=elsewhere)
    assert_refused(away, f"give data_path={folder}\n")
    shutil.rmtree(cwd / "data")
    (cwd / "moved.txt").unlink()
    away = here("eval", "../here/outputs/a", cwd=elsewhere)
    gone = "does not exist (data.path is in ../here/outputs/a/config.yaml): start the command in"
    assert_refused(away, "data.path=moved.txt", gone, "or give data_path=")


def test_a_changed_text_with_an_absolute_path_is_looked_for_once_and_needs_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, data = tmp_path / "play.txt", tmp_path / "data"
    typed = [*CHAR, f"data.path={text}", f"data.dir={data}"]
    text.write_text(PLAY, encoding="utf-8")
    done = here("train", *typed, *TINY_RUN, "run.name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(data)
    text.write_text(PLAY + "SPEAKER 3:\n", encoding="utf-8")
    assert here("prepare", *typed, cwd=tmp_path).returncode == 0
    looked_at = list[Path]()
    monkeypatch.setattr(
        subject, "read_meta", lambda path: looked_at.append(path) or read_meta(path)
    )
    refused = here("eval", "outputs/a", cwd=tmp_path)
    assert_refused(refused, "has changed since", "; to evaluate on other data, give data_path=")
    assert "start the command" not in refused.stderr
    assert looked_at == list(data.iterdir())
    text.unlink()
    assert "start the command" not in here("eval", "outputs/a", cwd=tmp_path).stderr
