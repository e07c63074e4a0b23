"""W&B sweeps: the agent's command, and the workspace that compares the runs of a sweep."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import here, rows
from tests.conftest import HANGS, ROOT, TINY_RUN
from tests.wandb_server import WandbServer, wandb_server

# As W&B's agent writes it when it runs a pre-empted job again (wandb issue 4237).
EXTRA = (
    "_wandb={'cli_version': '0.13.2', 'framework': 'huggingface', 'is_jupyter_run': False, "
    "'start_time': 1662512075.404681, 't': {'1': [1, 5, 11], '4': '3.10.4', '8': [5]}, 'a': \"='\"}"
)


@pytest.mark.parametrize("extra", [EXTRA, f"--{EXTRA}", "_wandb={", "--_wandb={}"])
def test_the_extra_argument_of_an_agent_is_ignored(
    extra: str, text_file: Path, tmp_path: Path
) -> None:
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    typed = [*data, *TINY_RUN, "trainer.max_steps=1", "run.name=a"]
    done = here("train", extra, *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "_wandb" not in done.stdout + done.stderr


def test_the_metric_of_the_sweep_is_a_key_of_every_evaluation_and_never_rises(
    text_file: Path, tmp_path: Path
) -> None:
    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    metric = sweep["metric"]["name"]
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    rising = ["optimizer.lr=0.5", "schedule=constant", "trainer.max_steps=40", "run.name=a"]
    assert here("train", *data, *TINY_RUN, *rising, cwd=tmp_path).returncode == 0
    evaluated = [row for row in rows(tmp_path / "outputs" / "a") if "val/loss" in row]
    losses = [row["val/loss"] for row in evaluated]
    assert [row[metric] for row in evaluated] == [
        min(losses[: count + 1]) for count in range(len(losses))
    ]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as one:
        yield one


def workspace(*typed: str, **environment: str) -> str:
    """The output of docs/wandb_workspace.py."""
    pytest.importorskip("wandb_workspaces", reason="pip install wandb-workspaces")
    command = [sys.executable, str(ROOT / "docs" / "wandb_workspace.py"), *typed]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANGS, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_workspace_of_a_sweep_is_printed_without_an_account_and_saved_with_one(
    server: WandbServer, tmp_path: Path
) -> None:
    typed = ["me/llm", "depth", "model.n_layer", "optimizer.lr"]
    nobody = server.environment(tmp_path / "home") | {"WANDB_API_KEY": ""}
    spec = json.loads(workspace(*typed, "--dry-run", **nobody))
    assert server.requests == 0
    text = json.dumps(spec)
    kinds = {found["viewType"] for found in objects(spec) if "viewType" in found}
    assert kinds >= {"Parallel Coordinates Plot", "Parameter Importance", "Run History Line Plot"}
    assert kinds >= {"Scatter Plot"}
    assert "config:model.value.n_layer" in text and "config:optimizer.value.lr" in text
    assert '"value": "depth"' in text, "only the runs of this sweep"

    shown = workspace(*typed, **server.environment(tmp_path / "home"))
    assert server.url in shown
    (view,) = server.views
    assert "config:model.value.n_layer" in view["spec"]


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON document."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value
    for child in children if isinstance(value, dict | list) else []:
        yield from objects(child)
