"""Findings: counted by reason, with the first examples, equal for equal inputs."""

import json

import pytest

from seg_jax import schemas
from seg_jax.data import findings
from seg_jax.data.findings import MOST_EXAMPLES, Findings


def test_cases_are_counted_by_reason_with_the_first_examples():
    found = Findings()
    for place in range(15):
        found.add("no polygon", f"a.json, annotation {place}")
    found.add("missing", "b.jpg", count=3)
    assert found.counts == {"no polygon": 15, "missing": 3}
    assert found.examples["no polygon"] == [
        f"a.json, annotation {place}" for place in range(MOST_EXAMPLES)
    ]
    assert found.lines() == [
        "3 x missing, first b.jpg",
        "15 x no polygon, first a.json, annotation 0",
    ]
    assert Findings({"missing": 2}).lines() == ["2 x missing"]


def test_what_to_do_is_said_once_a_reason():
    """That of the first case; it goes with counts into files, parts and sums."""
    whole, later = Findings(), Findings()
    whole.add("a", "x")
    later.add("a", "y", advice="do\nthis")
    later.add("a", "z", advice="do that")
    whole.merge(later)
    whole.merge(Findings({"a": 2}, advice={"a": "other"}))
    assert whole.lines() == ["5 x a, first x; do: do\\nthis"]
    assert whole.commonest() == "5 x a, first x", "an error has its own advice"
    stored = json.loads(json.dumps(whole.as_json()))
    assert stored == {"a": {"count": 5, "examples": ["x", "y", "z"], "do": "do\\nthis"}}
    assert Findings.from_json(stored) == whole
    assert later.lines() == ["2 x a, first y; do: do\\nthis"]


def test_findings_of_parts_are_those_of_the_whole():
    """Whatever the parts: the same counts, the first ten examples, the same bytes."""
    whole, parts = Findings(), [Findings() for _ in range(4)]
    for place in range(40):
        for found in (whole, parts[place // 10]):
            found.add(("one", "two", "three")[place % 3], str(place))
    merged = Findings()
    for part in parts:
        merged.merge(part)
    assert merged == whole
    assert json.dumps(merged.as_json()) == json.dumps(whole.as_json())
    assert all(len(some) == MOST_EXAMPLES for some in merged.examples.values())
    assert len(parts[0].examples["one"]) == 4, "a part is not changed by what it is added to"


def test_findings_come_back_from_json():
    found = Findings()
    found.add("a", "x")
    found.add("b", "y", count=2)
    assert Findings.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "expected object, got a list of 0"),
        ({"a": 5}, "expected object"),
        ({"a": {"count": "1", "examples": []}}, "expected int"),
        ({"a": {"count": 1, "examples": None}}, "expected list"),
        ({"a": {"count": 1, "examples": ["x"] * 11}}, "expected list of length <= 10"),
    ],
)
def test_what_is_no_findings_is_told(value, told):
    with pytest.raises(ValueError, match=f"^build.json.*: {told}.*; do: build the data anew$"):
        Findings.from_json(value, where="build.json")


def test_errors_are_counted_by_what_was_expected():
    """why-1: a reason is a fixed phrase; names and numbers stand in the example."""
    found = Findings()
    for number in (3, 17):
        message = f"a.json, {number}: expected {number} points of 4x5, got {number - 1}; do: more"
        found.add_error("ring left out", ValueError(message))
    with pytest.raises(ValueError) as caught:
        schemas.check([{"count": "1"}], list[findings._Finding], where="b.json")
    found.add_error("annotation left out", caught.value)
    found.add_error("file left out", KeyError("x"))
    assert found.lines() == [
        "1 x annotation left out: expected int at [].count, first b.json, [0].count: expected int, "
        "got '1'; do: correct the annotation",
        "1 x file left out: KeyError, first 'x'",
        "2 x ring left out: expected N points of N, first a.json, 3: expected 3 points of 4x5, "
        "got 2; do: more",
    ]


def test_an_example_is_one_short_line_that_can_be_stored():
    """esc-1: names of files and texts come from others."""
    found = Findings()
    found.add("a", "x\n\x1b]0;OWNED\x07\ud800é")
    found.add("a", "y" * 10**6)
    assert found.examples["a"] == ["x\\n\\x1b]0;OWNED\\x07\\ud800é", "y" * 497 + "..."]
    json.dumps(found.as_json(), ensure_ascii=False).encode()
