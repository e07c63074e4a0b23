"""Bounds beside each field, one validator for all sections, one way from JSON to a dataclass."""

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import Refused
from llm.options import bounds_of, from_plain, option, validate
from llm.settings.schema import SETTINGS, MuonOptimizer


@dataclass
class Part:
    """A section inside another."""

    name: str = option(one_of=("a", "b"))
    size: int = option(1, at_least=1, at_most=9)


@dataclass
class Whole:
    """One field of each kind."""

    share: float = option(0.5, more_than=0, less_than=1)
    count: int | None = option(None, at_least=0)
    betas: list[float] = option([0.9], at_least=0, less_than=1)
    parts: tuple[Part, ...] = ()
    part: Part | None = None
    by_name: dict[str, int] = field(default_factory=dict)
    flag: bool = False
    free: Any = None

    def cross_check(self) -> None:
        """A rule between two fields."""
        if self.flag and self.count is None:
            raise Refused("flag needs a count")


class Shown:
    """Counts how often it is printed."""

    times = 0

    def __repr__(self) -> str:
        Shown.times += 1
        return "shown"


def test_a_wrong_value_is_printed_only_as_far_as_it_is_shown() -> None:
    value: Any = Shown()
    for _ in range(12):
        value = [value, {"a": value, "b": value}]
    with pytest.raises(Refused, match=r"part\.size=\[\[.* must be a whole number"):
        from_plain(Part, {"name": "a", "size": value}, "part.")
    assert Shown.times == 0
    with pytest.raises(Refused, match=r"part\.size=\[shown, 'b'\] must be a whole number"):
        from_plain(Part, {"name": "a", "size": [Shown(), "b"]}, "part.")


def sections() -> list[Any]:
    """Every class of settings with the sections inside it, each once."""
    found: dict[str, Any] = {"MuonOptimizer": MuonOptimizer()}
    queue = [settings() for settings in SETTINGS.values()]
    while queue:
        one = queue.pop()
        found[type(one).__name__] = one
        queue += [getattr(one, f.name) for f in fields(one) if is_dataclass(getattr(one, f.name))]
    return list(found.values())


def wrong_values(section: Any, key: str) -> list[Any]:
    """Values just beyond the bounds of a field, and numbers that no field may have."""
    bounds, kind = bounds_of(type(section), key), str(get_type_hints(type(section))[key])
    wrong: list[Any] = ["no such choice"] if bounds.one_of else []
    wrong += [bounds.at_least - 1] if bounds.at_least is not None else []
    wrong += [bounds.at_most + 1] if bounds.at_most is not None else []
    wrong += [one for one in (bounds.more_than, bounds.less_than) if one is not None]
    wrong += [2**63, 10**5000, -(2**63)] if "int" in kind else []
    return wrong + ([math.inf, -math.inf, math.nan] if "float" in kind else [])


@pytest.mark.parametrize("section", sections(), ids=lambda section: type(section).__name__)
def test_every_bound_of_every_section_is_enforced_and_names_its_key(section: Any) -> None:
    for one in fields(section):
        for value in wrong_values(section, one.name):
            changed = [value] if isinstance(getattr(section, one.name), list) else value
            with pytest.raises(Refused, match=rf"^x\.{one.name}(=.* must be| has more than 63)"):
                validate(replace(section, **{one.name: changed}), "x.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "f: share=0 must be more than 0 and less than 1"),
        ({"share": math.nan}, "f: share=nan must be a finite number"),
        ({"share": "x"}, "f: share=x must be a number"),
        ({"share": True}, "f: share=true must be a number"),
        ({"count": 1.0}, "f: count=1.0 must be a whole number or null"),
        ({"count": True}, "f: count=true must be a whole number or null"),
        ({"count": -1}, "f: count=-1 must be at least 0 or null"),
        ({"count": 2**63}, "f: count has more than 63 bits: give a smaller number"),
        ({"count": 10**5000}, "f: count has more than 63 bits: give a smaller number"),
        ({"betas": [0.5, 1]}, "f: betas=1 must be at least 0 and less than 1"),
        ({"betas": 0.5}, "f: betas=0.5 must be a list"),
        ({"betas": [[]]}, r"f: betas=\[\] must be a number"),
        ({"parts": [{"name": "c"}]}, "f: parts.name=c must be one of a, b"),
        ({"parts": [{"size": 2}]}, "f: parts.name is missing"),
        ({"parts": {}}, "f: parts={} must be a list"),
        ({"part": {"name": "a", "size": 10}}, "f: part.size=10 must be at least 1 and at most 9"),
        ({"part": []}, r"f: part=\[\] must be a section or null"),
        ({"by_name": {"x": "y"}}, "f: by_name.x=y must be a whole number"),
        ({"flag": 1}, "f: flag=1 must be true or false"),
        ({"flag": True}, "flag needs a count"),
        ({"other": 1}, "f: other is an unknown key"),
        ([], "f must be a section of keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_json_is_refused_with_key_value_and_the_reason(values: Any, message: str) -> None:
    with pytest.raises(Refused, match=f"^{message}$"):
        from_plain(Whole, values, "f: ")


def test_right_json_becomes_the_dataclass_with_defaults_for_missing_keys() -> None:
    values = {
        "share": 0.25, "parts": [{"name": "a"}, {"name": "b", "size": 9}], "part": {"name": "a"},
        "by_name": {"x": 1}, "flag": True, "count": 0, "free": {"any": [1, math.inf]},
    }  # fmt: skip
    made = from_plain(Whole, values, "")
    assert made.parts == (Part("a"), Part("b", 9))
    assert (made.part, made.betas, made.by_name) == (Part("a"), [0.9], {"x": 1})
    made.betas.append(0.1)
    assert Whole().betas == [0.9], "objects do not share a list"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(max_size=9), inside),
)


@given(JSON, st.sampled_from([one.name for one in fields(Whole)]))
def test_any_json_is_accepted_or_refused_in_one_line(value: Any, key: str) -> None:
    try:
        from_plain(Whole, {key: value}, "f: ")
    except Refused as refusal:
        assert len(str(refusal)) < 200
