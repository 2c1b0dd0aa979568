"""Assertions on data: what holds, what does not, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import assertions


def query(**limits: Any) -> dict[str, Any]:
    return {
        "name": "q",
        "sql": "select 1",
        "at_least": None,
        "at_most": None,
        "equals": None,
        **limits,
    }


CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str | None]] = [
    ("at least", query(at_least=3), {"value": 3}, {}, None),
    ("too few", query(at_least=3), {"value": 2}, {}, "q: the query gives 2, expected at least 3."),
    (
        "numbers from the inventory are text",
        query(at_least="10"),
        {"value": 9},
        {},
        "q: the query gives 9, expected at least '10'.",
    ),
    ("text that looks like a number", query(equals=10), {"value": "10"}, {}, None),
    ("too many", query(at_most=0), {"value": 1}, {}, "q: the query gives 1, expected at most 0."),
    ("equal text", query(equals="abc"), {"value": "abc"}, {}, None),
    ("other text", query(equals="abc"), {"value": "abd"}, {}, "q: the query gives 'abd', expected exactly 'abc'."),
    ("as before", query(equals="before"), {"value": "abc"}, {"q": "abc"}, None),
    (
        "fewer than before",
        query(at_least="before"),
        {"value": 5},
        {"q": 6},
        "q: the query gives 5, expected at least 6.",
    ),
    ("no value before", query(at_least="before"), {"value": 5}, {}, None),
    ("null", query(at_least=0), {"value": None}, {}, "q: the query gives None, expected at least 0."),
    ("both ends", query(at_least=1, at_most=2), {"value": 3}, {}, "q: the query gives 3, expected at most 2."),
    ("failed", query(equals=1), {"error": "no such table"}, {}, "q: no such table"),
]


@pytest.mark.parametrize(
    ("asked", "measured", "before", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_compare(asked: dict[str, Any], measured: dict[str, Any], before: dict[str, Any], expected: str | None) -> None:
    assert assertions.compare(asked, measured, before) == expected


def test_before_only_those_are_measured_that_are_compared_with_it() -> None:
    queries = [query(name="a", at_least="before"), query(name="b", equals=0), query(name="c", at_most=3)]
    assert [item["name"] for item in assertions.due(queries, "before")] == ["a"]
    assert [item["name"] for item in assertions.due(queries, "after")] == ["a", "b", "c"]
    assert assertions.uncompared(queries, {}) == ["a"]
    assert assertions.uncompared(queries, {"a": 1}) == []
