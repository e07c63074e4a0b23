"""``sweep.json`` names the values that a sweep would have without its lists."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import llm.config.cli  # noqa: F401  (registers the schemas and plugins that conf/ names)
from llm.config.sweep_folder import default_values
from llm.experiment.sweep_file import read_sweep_file
from tests.conftest import ROOT

DEFAULTS = {
    "model.n_layer": "4", "optimizer.lr": "0.02", "optimizer": "muon", "model": "nano",
    "optimizer.betas": "[0.8,0.95]", "model.n_head": "null", "trainer.compile": "false",
    "data.name": "shakespeare_char", "seed": "1337", "experiment": "null",
}  # fmt: skip


def test_the_default_is_what_the_settings_would_be_without_the_sweep() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        composed = compose("train", return_hydra_config=True)
        typed = compose("train", ["model=tiny", "seed=7"], return_hydra_config=True)
    assert default_values(composed, list(DEFAULTS)) == DEFAULTS
    assert default_values(composed, ["+optimizer.lr"]) == {"+optimizer.lr": "0.02"}
    assert default_values(composed, ["+optimizer.invented", "+a.b.c", "model.n_layer.x"]) == {}
    assert default_values(typed, ["model", "seed"]) == {"model": "tiny", "seed": "7"}


@pytest.mark.parametrize("more", [{}, {"default": {"seed": "1337"}}])
def test_a_sweep_file_of_an_earlier_version_has_no_default(
    more: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"over": ["seed"], "fixed": {}, "jobs": {}} | more))
    assert read_sweep_file(path).default == more.get("default", {})
