"""The verdict: exactly one name for each evidence, and the findings beside it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.verdict import Code, Schema, Wishes, judge


def revision(name: str, *down: str, **facts: Any) -> dict[str, Any]:
    """One revision as the agent describes it."""
    described = {
        "revision": name,
        "down": list(down),
        "depends_on": [],
        "message": f"about {name}",
        "file": f"{name}.py",
        "commits": False,
        "autocommit_block": False,
    }
    return {**described, **facts}


def code(*revisions: dict[str, Any], heads: list[str]) -> Code:
    return Code(heads=heads, known={item["revision"]: item for item in revisions})


LINEAR = code(revision("a"), revision("b", "a"), revision("c", "b"), heads=["c"])
BRANCHED = code(revision("a"), revision("b", "a"), revision("x", "a"), heads=["b", "x"])
MERGED = code(revision("a"), revision("b", "a"), revision("x", "a"), revision("m", "b", "x"), heads=["m"])
# `x` is a head of its own for Alembic, but `b` needs it: at head, the version table has the row of `b` only.
DEPENDENT = code(revision("a"), revision("x", "a"), revision("b", "a", depends_on=["x"]), heads=["b", "x"])

CASES: list[tuple[str, Code, Schema, str, list[str]]] = [
    ("at head", LINEAR, Schema(rows=["c"], tables=3), "AT_HEAD", []),
    ("one behind", LINEAR, Schema(rows=["b"], tables=3), "BEHIND", ["c"]),
    ("two behind, in order", LINEAR, Schema(rows=["a"], tables=3), "BEHIND", ["b", "c"]),
    ("both branches missing before a merge", MERGED, Schema(rows=["a"], tables=3), "BEHIND", ["b", "x", "m"]),
    ("one branch missing before a merge", MERGED, Schema(rows=["x"], tables=3), "BEHIND", ["b", "m"]),
    ("both rows before a merge", MERGED, Schema(rows=["b", "x"], tables=3), "BEHIND", ["m"]),
    ("a head that another one needs", DEPENDENT, Schema(rows=["b"], tables=3), "AT_HEAD", []),
    ("two heads that nobody declared", BRANCHED, Schema(rows=["a"], tables=3), "MULTIPLE_HEADS", []),
    ("two rows on a linear history", LINEAR, Schema(rows=["b", "c"], tables=3), "DIVERGED", []),
    ("a known and an unknown row", LINEAR, Schema(rows=["c", "zz"], tables=3), "DIVERGED", []),
    ("only an unknown row", LINEAR, Schema(rows=["zz"], tables=3), "AHEAD", []),
    ("no revisions in the code", code(heads=[]), Schema(rows=["zz"], tables=3), "FOREIGN", []),
    ("no version table", LINEAR, Schema(rows=None, tables=3), "UNVERSIONED", []),
    ("an empty version table", LINEAR, Schema(rows=[], tables=3), "UNVERSIONED", []),
    ("no tables", LINEAR, Schema(rows=None, tables=0), "EMPTY", []),
    (
        "at head without what it makes",
        LINEAR,
        Schema(rows=["c"], tables=3, missing_relations=["t.c"]),
        "STAMPED_NOT_APPLIED",
        [],
    ),
    ("behind and without it", LINEAR, Schema(rows=["b"], tables=3, missing_relations=["t.c"]), "BEHIND", ["c"]),
    ("database silent", LINEAR, Schema(error="no connection"), "UNREADABLE", []),
    ("code silent", Code(error="no Alembic"), Schema(rows=["c"], tables=3), "UNREADABLE", []),
    ("both silent", Code(error="no Alembic"), Schema(error="no connection"), "UNREADABLE", []),
]


@pytest.mark.parametrize(("seen", "schema", "name", "missing"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_verdict(seen: Code, schema: Schema, name: str, missing: list[str]) -> None:
    verdict = judge(seen, schema, Wishes())
    assert (verdict.name, list(verdict.missing)) == (name, missing)


@pytest.mark.parametrize(("seen", "schema"), [case[1:3] for case in CASES], ids=[case[0] for case in CASES])
def test_each_verdict_says_why_what_next_and_what_not(seen: Code, schema: Schema) -> None:
    verdict = judge(seen, schema, Wishes())
    assert verdict.summary
    assert verdict.next_step
    assert verdict.will_not
    assert verdict.recoverable == (verdict.name in ("AT_HEAD", "BEHIND"))


FINDINGS: list[tuple[str, Code, Schema, Wishes, set[tuple[str, str]]]] = [
    ("none", LINEAR, Schema(rows=["c"], tables=1), Wishes(), set()),
    (
        "a missing revision commits",
        code(revision("a"), revision("b", "a", commits=True), heads=["b"]),
        Schema(rows=["a"], tables=1),
        Wishes(),
        {("commits_itself", "warning")},
    ),
    (
        "an applied revision commits: no matter",
        code(revision("a", commits=True), revision("b", "a"), heads=["b"]),
        Schema(rows=["a"], tables=1),
        Wishes(),
        set(),
    ),
    (
        "autocommit block",
        code(revision("a"), revision("b", "a", autocommit_block=True), heads=["b"]),
        Schema(rows=["a"], tables=1),
        Wishes(),
        {("autocommit_block", "warning")},
    ),
    (
        "revision id wider than its column",
        code(revision("a"), revision("b" * 33, "a"), heads=["b" * 33]),
        Schema(rows=["a"], tables=1, version_width=32),
        Wishes(),
        {("version_column_too_narrow", "refusal")},
    ),
    (
        "revision id as wide as its column",
        code(revision("a"), revision("b" * 32, "a"), heads=["b" * 32]),
        Schema(rows=["a"], tables=1, version_width=32),
        Wishes(),
        set(),
    ),
    (
        "invalid index",
        LINEAR,
        Schema(rows=["c"], tables=1, invalid_indexes=["public.i"]),
        Wishes(),
        {("invalid_index", "warning")},
    ),
    ("standby", LINEAR, Schema(rows=["b"], tables=1, in_recovery=True), Wishes(), {("standby", "refusal")}),
    (
        "the plan expects a later start",
        LINEAR,
        Schema(rows=["a"], tables=1),
        Wishes(current="b"),
        {("unexpected_current", "refusal")},
    ),
    (
        "the plan expects a start that is no revision",
        LINEAR,
        Schema(rows=["b"], tables=1),
        Wishes(current="x"),
        {("unexpected_current", "refusal")},
    ),
    (
        "an earlier run came from the plan's start to here",
        LINEAR,
        Schema(rows=["b"], tables=1),
        Wishes(current="a"),
        {("further_than_expected", "warning")},
    ),
    ("the plan's start, once at head, does not matter", LINEAR, Schema(rows=["c"], tables=1), Wishes("a"), set()),
    (
        "the plan expects another head",
        LINEAR,
        Schema(rows=["b"], tables=1),
        Wishes(head="b"),
        {("unexpected_head", "refusal")},
    ),
    (
        "the plan expects a head that does not exist",
        LINEAR,
        Schema(rows=["b"], tables=1),
        Wishes(head="zz"),
        {("unexpected_head", "refusal")},
    ),
]


@pytest.mark.parametrize(
    ("seen", "schema", "wishes", "expected"), [case[1:] for case in FINDINGS], ids=[case[0] for case in FINDINGS]
)
def test_findings(seen: Code, schema: Schema, wishes: Wishes, expected: set[tuple[str, str]]) -> None:
    assert {(found.name, found.severity) for found in judge(seen, schema, wishes).findings} == expected


def test_a_head_that_does_not_exist_is_told_from_one_that_is_not_the_head() -> None:
    [finding] = judge(LINEAR, Schema(rows=["b"], tables=1), Wishes(head="zz")).findings
    assert finding.text == (
        "The plan expects head zz; the code's head is c. The code has no revision zz: is the right image deployed? "
        "Correct expect.head, or deploy the right code."
    )
