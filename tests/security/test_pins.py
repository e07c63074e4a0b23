"""Versions of libraries with known holes are not accepted."""

import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

OLD_AND_NEW = {
    # 1.3.8 completes a series of fixes in instantiate; 1.4 changes which functions it may call.
    "hydra-core": (["1.3.2", "1.3.7", "1.4.0"], "1.3.8"),
    # Before 2.10 weights_only=True could corrupt memory (CVE-2026-24747).
    "torch": (["2.5.1", "2.9.1"], "2.13.0"),
}


@pytest.fixture(scope="module")
def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {r.name: r for r in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("name", OLD_AND_NEW)
def test_only_fixed_versions_are_accepted(name: str, requirements: dict[str, Requirement]) -> None:
    old, new = OLD_AND_NEW[name]
    accepted = requirements[name].specifier
    assert not [number for number in old if number in accepted]
    assert new in accepted
    assert accepted.contains(version(name).partition("+")[0])
