"""Values from outside: taken where every level holds, else refused in one line that says where."""

import dataclasses
import math
import pickle
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from seg_jax import schemas


class Part(schemas.Record, frozen=True):
    id: schemas.Id
    points: tuple[schemas.Coordinate, ...] = ()
    kinds: dict[str, int] | None = None
    named: dict[str, "Part"] = {}  # noqa: RUF012


class Whole(schemas.Record, frozen=True):
    file: schemas.FileName = "a"
    text: schemas.Text = ""
    size: schemas.Extent = 1
    parts: tuple[Part, ...] = ()


def nested(levels: int) -> Any:
    value: Any = 5
    for _ in range(levels):
        value = [value]
    return value


def test_a_value_that_holds_is_returned_and_what_is_unknown_is_left_alone():
    value = {"file": "é/1.jpg", "parts": [{"id": 2**63 - 1, "points": [1, 2.5], "more": nested(9)}]}
    got = schemas.check(value, Whole, where="a.json")
    assert got.parts == (Part(id=2**63 - 1, points=(1.0, 2.5)),)
    assert (got.file, got.text, got.size) == ("é/1.jpg", "", 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a.json: expected object, got a list of 0; do: x"),
        (None, "a.json: expected object, got None; do: x"),
        ({"parts": None}, "a.json, parts: expected list, got None; do: x"),
        ({"parts": [{"id": 1}, 5]}, "a.json, parts[1]: expected object, got 5; do: x"),
        ({"parts": [{}]}, "a.json, parts[0]: expected a field 'id', got none; do: x"),
        ({"parts": [{"id": "1"}]}, "a.json, parts[0].id: expected int, got '1'; do: x"),
        ({"parts": [{"id": True}]}, "a.json, parts[0].id: expected int, got True; do: x"),
        (
            {"parts": [{"id": 2**70}]},
            f"a.json, parts[0].id: expected int <= {2**63 - 1}, got {2**70}; do: x",
        ),
        (
            {"parts": [{"id": 10**5000}]},
            f"a.json, parts[0].id: expected int <= {2**63 - 1}, got an integer of more digits than "
            "fit; do: x",
        ),
        (
            {"parts": [{"id": 1, "points": [1, math.nan]}]},
            "a.json, parts[0].points[1]: expected float >= -10000000.0, got nan; do: x",
        ),
        (
            {"parts": [{"id": 1, "points": [math.inf]}]},
            "a.json, parts[0].points[0]: expected float <= 10000000.0, got inf; do: x",
        ),
        (
            {"parts": [{"id": 1, "points": [10**400]}]},
            "a.json, parts[0].points[0]: expected a number in range, got an integer of more digits "
            "than fit; do: x",
        ),
        (
            {"parts": [{"id": 1, "points": nested(200_000)}]},
            "a.json, parts[0].points[0]: expected float, got a list of 1; do: x",
        ),
        (
            {"parts": [{"id": 1, "kinds": {"a.b[0]": "q"}}]},
            "a.json, parts[0].kinds[...]: expected int, got a dict of 1; do: x",
        ),
        (
            {"parts": [{"id": 1, "kinds": {5: 5}}]},
            "a.json, parts[0].kinds: expected texts as names of fields, got others; do: x",
        ),
        (
            # The name between is not in the message of msgspec: what lies below is not looked for.
            {"parts": [{"id": 1, "named": {"a": {"id": 1}, "id": {"id": "q"}}}]},
            "a.json, parts[0].named[...].id: expected int, got a dict of 2; do: x",
        ),
        (
            {"parts": [{"id": -(2**63) - 1}]},
            f"a.json, parts[0].id: expected int >= {-(2**63)}, got {-(2**63) - 1}; do: x",
        ),
        ({"size": 0}, "a.json, size: expected int >= 1, got 0; do: x"),
        ({"size": 1_000_001}, "a.json, size: expected int <= 1000000, got 1000001; do: x"),
        ({"size": 1.5}, "a.json, size: expected int, got 1.5; do: x"),
        (
            {"text": "a" * 100_001},
            f"a.json, text: expected str of length <= 100000, got '{'a' * 56}...; do: x",
        ),
        (
            {"text": "a\ud800"},
            "a.json, text: expected str without lone surrogates, got 'a\\ud800'; do: x",
        ),
        (
            {"file": "a\x00"},
            "a.json, file: expected str without the character 0 and lone surrogates, got "
            "'a\\x00'; do: x",
        ),
        (
            {"file": "a" * 4097},
            f"a.json, file: expected str of length <= 4096, got '{'a' * 56}...; do: x",
        ),
        ({"file": ""}, "a.json, file: expected str of length >= 1, got ''; do: x"),
        ({"file": b"a"}, "a.json, file: expected str, got b'a'; do: x"),
    ],
)
def test_what_does_not_hold_is_told_with_its_place(value, message):
    """top-1: texts, numbers, ids and levels beyond their bounds are one line each."""
    with pytest.raises(schemas.Invalid) as caught:
        schemas.check(value, Whole, where="a.json", advice="x")
    assert str(caught.value) == message
    again = pickle.loads(pickle.dumps(caught.value))  # From a process of a pool.
    assert (str(again), again.reason) == (message, caught.value.reason)


def test_values_at_their_bounds_hold():
    value = {"file": "a" * 4096, "text": "b" * 100_000, "size": 1_000_000}
    value["parts"] = [{"id": -(2**63), "points": [-1e7, 1e7]}]
    got = schemas.check(value, Whole, where="a.json")
    assert (len(got.file), len(got.text), got.size) == (4096, 100_000, 1_000_000)
    assert got.parts == (Part(id=-(2**63), points=(-1e7, 1e7)),)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "expected object"),
        ({"parts": [{"id": 1}, {}]}, "expected a field 'id' at parts[]"),
        ({"parts": [{"id": 1, "points": [1, "q"]}]}, "expected float at parts[].points[]"),
    ],
)
def test_reasons_name_the_field_and_no_place_in_a_list(value, reason):
    with pytest.raises(schemas.Invalid) as caught:
        schemas.check(value, Whole, where="a.json")
    assert caught.value.reason == reason


@pytest.mark.parametrize("value", ["x\ud800", {"parts": ["x\ud800"]}])
def test_a_lone_surrogate_where_no_text_is_expected_is_told(value):
    with pytest.raises(schemas.Invalid, match="a: expected texts without lone surrogates, got one"):
        schemas.check(value, Whole, where="a")


class Tree(schemas.Record, frozen=True):
    below: tuple["Tree", ...] = ()


def test_a_value_of_too_many_levels_is_told():
    """top-1: a type that goes down with the value stops where Python's stack would end."""
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"below": [value]}
    with pytest.raises(ValueError, match="a: expected a value of a few levels, got one too deep"):
        schemas.check(value, Tree, where="a")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b]0;b\n", r"'a\x1b]0;b\n'"),
        ("é", r"'\xe9'"),
        ("a" * 58, f"'{'a' * 58}'"),
        ("a" * 59, f"'{'a' * 56}..."),
        ("a" * 10**8, f"'{'a' * 56}..."),
        (b"a" * 10**8, f"b'{'a' * 55}..."),
        (nested(200_000), "a list of 1"),
        ({"a": 1}, "a dict of 1"),
        (10**60 - 1, "9" * 60),
        (10**60, "an integer of more digits than fit"),
        (-(10**70), "an integer of more digits than fit"),
        (math.nan, "nan"),
        (True, "True"),
        (None, "None"),
        (object(), "a value of type object"),
    ],
)
def test_values_are_shown_short_and_on_one_line(value, text):
    assert schemas.short_repr(value) == text
    assert len(text) <= schemas.MOST_SHOWN


class Row(schemas.Record, frozen=True):
    cells: Annotated[list[int], Meta(max_length=2)]


def test_lists_have_lengths():
    with pytest.raises(
        ValueError, match=r"a, \[0\]\.cells: expected list of length <= 2, got a li"
    ):
        schemas.check([{"cells": [1, 2, 3]}], list[Row], where="a")


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Options:
    inner: Inner = Inner()
    count: int = 1
    pairs: tuple[tuple[float, int], ...] = ()
    name: str | None = None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({}, "a: expected a field 'inner', got none"),
        ({"inner": {}, "colour": 1}, "a: expected fields that are known, got one named 'colour'"),
        ({"inner": {"share": math.nan}}, "a, inner.share: expected float "),
        ({"inner": {"share": "1"}}, "a, inner.share: expected float, got '1'"),
        ({"inner": {"kind": "c"}}, "a, inner.kind: expected a value that is known, got 'c'"),
        ({"inner": {}, "count": 2**70}, "a, count: expected int <= "),
        ({"inner": {}, "pairs": [[1, 2], [1]]}, "a, pairs[1]: expected list of length 2"),
        ({"inner": {}, "name": 5}, "a, name: expected str | null, got 5"),
    ],
)
def test_objects_of_options_are_known_by_their_dataclass(value, told):
    kind = schemas.record_of(Options)
    with pytest.raises(schemas.Invalid) as caught:
        schemas.check(value, kind, where="a")
    assert str(caught.value).startswith(told)
    whole = {"inner": {"share": 1, "kind": "b"}, "pairs": [[1, 2]], "name": "x"}
    found: Any = schemas.check(whole, kind, where="a")
    assert (found.inner.share, found.inner.kind, found.pairs) == (1.0, "b", ((1.0, 2),))
    assert found.count is msgspec.UNSET
