"""The revision map as sets: ancestors, order, what is missing, rows that no Alembic wrote."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import revisions


def known(**needs: str) -> dict[str, dict[str, Any]]:
    """`b="a", d="b c/x"`: down revisions, then after a slash what it depends on."""
    found = {}
    for name, text in needs.items():
        down, _, depends = text.partition("/")
        found[name] = {"revision": name, "down": down.split(), "depends_on": depends.split()}
    return found


DIAMOND = known(a="", b="a", c="a", d="b c")
DEPENDS = known(a="", b="a", x="", y="x/b")


@pytest.mark.parametrize(
    ("graph", "rows", "expected"),
    [
        pytest.param(DIAMOND, ["d"], {"a", "b", "c", "d"}, id="all of a diamond"),
        pytest.param(DIAMOND, ["b"], {"a", "b"}, id="one side"),
        pytest.param(DEPENDS, ["y"], {"a", "b", "x", "y"}, id="through a dependency"),
        pytest.param(DIAMOND, ["zz"], set(), id="an unknown id stands for nothing"),
        pytest.param(DIAMOND, [], set(), id="nothing"),
    ],
)
def test_with_ancestors(graph: dict[str, Any], rows: list[str], expected: set[str]) -> None:
    assert revisions.with_ancestors(graph, rows) == expected


@pytest.mark.parametrize(
    ("graph", "rows", "targets", "expected"),
    [
        pytest.param(DIAMOND, ["a"], ["d"], ["b", "c", "d"], id="each after what it needs"),
        pytest.param(DIAMOND, ["b"], ["d"], ["c", "d"], id="the other side first"),
        pytest.param(DIAMOND, ["d"], ["d"], [], id="there already"),
        pytest.param(DIAMOND, ["d"], ["b"], [], id="never backwards"),
        pytest.param(DEPENDS, ["x"], ["y"], ["a", "b", "y"], id="dependencies first"),
    ],
)
def test_missing(graph: dict[str, Any], rows: list[str], targets: list[str], expected: list[str]) -> None:
    assert revisions.missing(graph, rows, targets) == expected


def test_order_of_a_long_chain_is_the_chain() -> None:
    names = [f"r{number:04}" for number in range(1000)]
    chain = known(**{name: names[number - 1] if number else "" for number, name in enumerate(names)})
    assert revisions.in_order(chain, reversed(names)) == names


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(["b", "c"], [], id="two branches are no surplus"),
        pytest.param(["a", "d"], ["a"], id="a row beneath another"),
        pytest.param(["d"], [], id="one row"),
        pytest.param(["zz", "d"], [], id="an unknown row is judged elsewhere"),
    ],
)
def test_redundant(rows: list[str], expected: list[str]) -> None:
    assert revisions.redundant(DIAMOND, rows) == expected
