"""The memory outside tensors: measured in a process, asked of a GPU, or assumed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm.errors import Refused
from llm.planning import reserve
from llm.planning.points import plan_points
from llm.planning.reserve import measured_reserve, planned_device
from tests.config.test_planner import points
from tests.conftest import HANGS, ROOT
from tests.planning.made import GIB, MIB, RESERVE

GPU = (410 * MIB, 3 * GIB)


@pytest.mark.parametrize("driver", [True, False])
def test_auto_is_cuda_where_there_is_a_driver(
    driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DRIVERS", (ROOT / "no_such_file", *[ROOT / "llm"] * driver))
    names = ("auto", "cuda", "cuda:1", "cpu", "mps")
    auto = "cuda" if driver else "cpu"
    assert [planned_device(name) for name in names] == [auto, "cuda", "cuda", "cpu", "cpu"]
    with pytest.raises(Refused, match=r"trainer\.device=gpu is unknown: take auto, cuda, mps or"):
        planned_device("gpu")


def test_a_plan_for_a_gpu_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "ask_gpu", {"cuda": GPU, "cuda:1": None}.get)
    gpu, no_gpu, cpu = plan_points(points("trainer.device=cuda,cuda:1,cpu"))
    assert gpu.reserve == {"CUDA context and others (measured)": GPU[0]}
    assert gpu.budget == GPU[1], "smaller than memory.budget_gib=4"
    for other in (no_gpu, cpu):
        assert (other.reserve, other.budget) == (RESERVE, 4 * GIB)
    # Less than the reserve that would be assumed is enough.
    (small,) = plan_points(points("trainer.device=cuda", "memory.budget_gib=0.5"))
    assert small.budget == GIB // 2
    for wrong, words in (
        (["memory.budget_gib=0.4"], r"0\.4 leaves nothing beside the reserve of 410 MiB: take m"),
        (
            ["memory.reserve_mib=4000", "memory.budget_gib=9"],
            r"the GPU's 3 GiB leaves .* of 4000 MiB: take a smaller memory",
        ),
    ):
        with pytest.raises(Refused, match=words):
            plan_points(points("trainer.device=cuda", *wrong))
    (given,) = plan_points(points("memory.reserve_mib=10"))
    assert given.prediction.reserve == {"reserve (as given)": 10 * MIB}


def test_a_gpu_is_asked_in_a_process_of_its_own_and_only_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, ended = subprocess.run, []

    def watched(*command: Any, **options: Any) -> Any:
        ended.append(run(*command, **options))
        return ended[-1]

    ask = reserve.ask_gpu.__wrapped__
    monkeypatch.chdir(tmp_path)  # whatever the current folder is
    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setattr(reserve, "GPU_TIMEOUT", HANGS)
    assert ask("cuda") is None and not ended
    monkeypatch.setattr(reserve, "DRIVERS", (tmp_path,))
    assert ask("cpu") is None
    kind, outside_tensors, total = json.loads(ended[0].stdout)
    assert (kind, total) == ("cpu", None), "answered, but not a GPU"
    assert 50 * MIB < outside_tensors < GIB
    monkeypatch.setattr(reserve, "GPU_TIMEOUT", 0.01)
    assert ask("cpu") is None
    assert "cpu has not answered for 0.01 s" in capsys.readouterr().out
    answers = {
        "cuda": subprocess.CompletedProcess("", 0, 'a word before it\n["cuda", 5, 7]\n', ""),
        "cuda:9": subprocess.CompletedProcess("", 2, "", "there is only 1 GPU"),
    }
    monkeypatch.setattr(subprocess, "run", lambda command, **_: answers[command[-1]])
    assert (ask("cuda"), ask("cuda:9")) == ((5, 7), None)


def test_wandb_adds_to_the_reserve_of_a_cpu() -> None:
    lines = measured_reserve("cpu", 5, wandb=False)
    assert lines["process (measured)"] == 5
    assert measured_reserve("cpu", 5, wandb=True).keys() - lines.keys() == {"W&B"}
