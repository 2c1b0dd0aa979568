"""The way back: which revisions are undone, in which order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import downgrade
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.status import Status
from ansible.module_utils.alembic_recovery.verdict import Code, Schema, Wishes, judge
from ansible.module_utils.alembic_recovery.version_tables import VersionTable

from tests.unit.test_revisions import DEPENDS, DIAMOND, known

CHAIN = known(a="", b="a", c="b")
BRANCHES = known(a="", b="a", c="b", x="a")
TWO = known(a="", b="a", x="", y="x")
MERGED = known(a="", b="a", x="", y="x", m="b y")


def seen(graph: dict[str, Any], *rows: str, heads: str = "", declared: str = "") -> Status:
    """A status of a database at these rows; the code's heads are those of the graph, if they are not given."""
    described = {
        name: {**facts, "commits": False, "autocommit_block": False, "message": "", "file": "", "downgrade": "present"}
        for name, facts in graph.items()
    }
    needed = {parent for facts in graph.values() for parent in (*facts["down"], *facts["depends_on"])}
    code = Code(heads=heads.split() or sorted(set(graph) - needed), known=described, declared=declared.split())
    schema = Schema(rows=list(rows), tables=3)
    table = VersionTable("alembic_version", "public", "alembic_version", rows=list(rows))
    return Status(judge(code, schema, Wishes()), code, schema, {}, {}, [table], {})


@pytest.mark.parametrize(
    ("graph", "rows", "target", "steps", "goals", "left"),
    [
        pytest.param(CHAIN, ["c"], "b", ["c"], ["b"], ["b"], id="one"),
        pytest.param(CHAIN, ["c"], "a", ["c", "b"], ["b", "a"], ["a"], id="two"),
        pytest.param(CHAIN, ["c"], "base", ["c", "b", "a"], ["b", "a", "base"], [], id="all"),
        pytest.param(CHAIN, ["c"], "c", [], [], ["c"], id="there already"),
        pytest.param(CHAIN, ["b"], "a", ["b"], ["a"], ["a"], id="from behind the head"),
        pytest.param(CHAIN, ["b"], "b", [], [], ["b"], id="behind the head and there already"),
        pytest.param(DIAMOND, ["d"], "b", ["d"], ["b"], ["b", "c"], id="a merge goes down to both parents"),
        pytest.param(DIAMOND, ["d"], "c", ["d"], ["b"], ["b", "c"], id="whichever of them is named"),
        pytest.param(DEPENDS, ["y"], "x", ["y"], ["x"], ["b", "x"], id="a dependency has its row again"),
        pytest.param(MERGED, ["m"], "y", ["m"], ["b"], ["b", "y"], id="a merge of two trees"),
        pytest.param(MERGED, ["m"], "x", ["m", "y"], ["b", "x"], ["b", "x"], id="the other tree stays"),
        pytest.param(DIAMOND, ["d"], "a", ["d", "c", "b"], ["b", "c@a", "a"], ["a"], id="branches, one by one"),
        pytest.param(
            MERGED,
            ["m"],
            "base",
            ["m", "y", "b", "x", "a"],
            ["b", "x", "a", "x@base", "base"],
            [],
            id="two trees to the base",
        ),
    ],
)
def test_steps(
    graph: dict[str, Any], rows: list[str], target: str, steps: list[str], goals: list[str], left: list[str]
) -> None:
    assert downgrade.choose_steps(seen(graph, *rows), target, "demo") == steps
    assert downgrade.goals(graph, rows, steps) == dict(zip(steps, goals, strict=True))
    assert downgrade.left_after(graph, rows, steps) == left


@pytest.mark.parametrize(
    ("graph", "rows", "target", "words"),
    [
        pytest.param(CHAIN, "c", "head", "the code has no revision 'head'", id="head"),
        pytest.param(CHAIN, "c", "heads", "the code has no revision 'heads'", id="heads"),
        pytest.param(CHAIN, "c", "-1", "relative revisions \\(-1\\) are not taken", id="relative"),
        pytest.param(CHAIN, "c", "c-1", "the code has no revision 'c-1'", id="relative to one"),
        pytest.param(CHAIN, "c", "c@base", "the code has no revision 'c@base'", id="a branch's base"),
        pytest.param(CHAIN, "c", "zz", "the code has no revision 'zz'", id="unknown"),
        pytest.param(CHAIN, "b", "c", "the database is at b, and revision c is not among", id="not applied"),
        pytest.param(BRANCHES, "c x", "a", "Merge them in the code", id="several heads"),
        pytest.param(CHAIN, "zz", "a", "newer than the code", id="a database that is ahead"),
    ],
)
def test_refusals(graph: dict[str, Any], rows: str, target: str, words: str) -> None:
    with pytest.raises(RecoveryError, match=f"^Nothing was undone[.:].*{words}"):
        downgrade.choose_steps(seen(graph, *rows.split()), target, "demo")


@pytest.mark.parametrize(
    ("graph", "rows", "only", "steps", "goals", "left"),
    [
        pytest.param(CHAIN, ["c"], "b c", ["c", "b"], ["b", "a"], ["a"], id="a chain"),
        pytest.param(CHAIN, ["c"], "", [], [], ["c"], id="none"),
        pytest.param(BRANCHES, ["c", "x"], "x c", ["x", "c"], ["x@a", "b"], ["b"], id="two branches"),
        pytest.param(BRANCHES, ["c", "x"], "x", ["x"], ["x@a"], ["c"], id="one of two branches"),
        pytest.param(TWO, ["b", "y"], "b x y", ["y", "x", "b"], ["x", "x@base", "a"], ["a"], id="two trees"),
        pytest.param(DEPENDS, ["y"], "y", ["y"], ["x"], ["b", "x"], id="one that depends on another"),
    ],
)
def test_named_steps(
    graph: dict[str, Any], rows: list[str], only: str, steps: list[str], goals: list[str], left: list[str]
) -> None:
    there = seen(graph, *rows, declared="heads")
    assert downgrade.choose_steps(there, "head", "demo", only.split()) == steps
    assert downgrade.goals(graph, rows, steps) == dict(zip(steps, goals, strict=True))
    assert downgrade.left_after(graph, rows, steps) == left


@pytest.mark.parametrize(
    ("graph", "rows", "only", "words"),
    [
        pytest.param(CHAIN, ["b"], "c", "the database is at b, and c is not among", id="not applied"),
        pytest.param(CHAIN, ["b"], "zz", "the database is at b, and zz is not among", id="unknown"),
        pytest.param(CHAIN, ["c"], "b", "b is needed by revisions that are applied", id="needed"),
        pytest.param(DEPENDS, ["y"], "b", "b is needed by revisions that are applied", id="depended on"),
    ],
)
def test_named_steps_that_are_refused(graph: dict[str, Any], rows: list[str], only: str, words: str) -> None:
    with pytest.raises(RecoveryError, match=f"^Nothing was undone: {words}"):
        downgrade.choose_steps(seen(graph, *rows), "head", "demo", only.split())
