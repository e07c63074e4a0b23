"""The parameters of classes and functions from outside, some of which name none."""

from typing import Any

import pytest

from llm.training.signature import require_arguments, takes


def with_a_rate(lr: float, *, model: object = None) -> None: ...


def with_anything(**keys: Any) -> None: ...


def test_a_parameter_must_be_named_to_be_given() -> None:
    assert takes(with_a_rate, "model") and not takes(with_a_rate, "max_steps")
    assert not takes(with_anything, "model")


def test_arguments_must_be_complete_and_known() -> None:
    require_arguments(with_a_rate, ["lr"])
    require_arguments(with_anything, ["lr"])
    with pytest.raises(TypeError, match="'lr'"):
        require_arguments(with_a_rate, ["model"])
    with pytest.raises(TypeError, match="'rate'"):
        require_arguments(with_a_rate, ["lr", "rate"])


def test_a_class_in_c_without_a_signature_gets_only_its_own_arguments() -> None:
    assert not takes(dict, "model")
    require_arguments(dict, ["lr"])
