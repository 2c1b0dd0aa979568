"""The verdict: exactly one name for each evidence, and the findings beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.baseline import Models
from ansible.module_utils.alembic_recovery.declared import Compared, Comparison
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


def declared(row: str, partial: Sequence[str] = (), lost: Sequence[str] = (), *, decisive: bool = True) -> Schema:
    """A database at `row`, with revisions that are partly there, or were not applied."""

    def compared(names: Sequence[str]) -> list[Compared]:
        return [Compared(name, ["table t"], ["index i on t"], decisive) for name in names]

    return Schema(rows=[row], tables=3, declared=Comparison(compared(partial), compared(lost)))


INDEX = {"side": "missing", "table": "songs", "object": "index i on songs", "detail": "n"}
DRIFTED = Models("compared", fingerprint="f", differences=[INDEX], drift=[INDEX], recorded_at="2025-10-21")
AS_RECORDED = Models("compared", fingerprint="f", differences=[INDEX], recorded_at="2025-10-21")
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
    ("behind, and the next step is there in part", LINEAR, declared("b", partial=["c"]), "PARTIAL", ["c"]),
    ("behind, and the last step is not there", LINEAR, declared("b", lost=["b"]), "STAMPED_NOT_APPLIED", []),
    ("a version that is not true comes first", LINEAR, declared("b", ["c"], ["b"]), "STAMPED_NOT_APPLIED", []),
    ("at head, and the last step is not there", LINEAR, declared("c", lost=["c"]), "STAMPED_NOT_APPLIED", []),
    ("at head, and an index is not there", LINEAR, declared("c", lost=["c"], decisive=False), "AT_HEAD", []),
    ("at head, and drifted", LINEAR, Schema(rows=["c"], tables=3, models=DRIFTED), "DRIFTED", []),
    ("behind: what is to come explains it", LINEAR, Schema(rows=["b"], tables=3, models=DRIFTED), "BEHIND", ["c"]),
    ("at head, and as recorded", LINEAR, Schema(rows=["c"], tables=3, models=AS_RECORDED), "AT_HEAD", []),
    (
        "drifted, and what the inventory expects is not there",
        LINEAR,
        Schema(rows=["c"], tables=3, models=DRIFTED, missing_relations=["t.c"]),
        "STAMPED_NOT_APPLIED",
        [],
    ),
    ("heads to choose from come first", BRANCHED, declared("a", partial=["b"]), "MULTIPLE_HEADS", []),
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
        Schema(rows=["c"], tables=1, invalid_indexes={"public.i": '"public"."i"'}),
        Wishes(),
        {("invalid_index", "warning")},
    ),
    (
        "an index that is gone",
        LINEAR,
        declared("c", lost=["c"], decisive=False),
        Wishes(),
        {("missing_object", "warning")},
    ),
    (
        "blemishes",
        LINEAR,
        Schema(
            rows=["c"],
            tables=1,
            blemishes={
                "unchecked_constraints": [{"table": "t", "name": "k"}],
                "sequences_behind": [{"sequence": "s", "table": "t", "column": "id", "last_value": None, "highest": 9}],
                "not_read": "a reason",
            },
        ),
        Wishes(),
        {("constraint_not_valid", "warning"), ("sequence_behind", "warning"), ("sequences_not_read", "info")},
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


def test_an_invalid_index_comes_with_the_statement_that_rebuilds_it() -> None:
    schema = Schema(rows=["c"], tables=1, invalid_indexes={"public.Ix": '"public"."Ix"'})
    [finding] = judge(LINEAR, schema, Wishes()).findings
    assert finding.text.endswith('REINDEX INDEX CONCURRENTLY "public"."Ix";')
    assert ": public.Ix." in finding.text


def test_what_is_there_in_part_is_told_object_by_object() -> None:
    summary = judge(LINEAR, declared("b", partial=["c"]), Wishes()).summary
    assert "Revision c: there: table t; not there: index i on t." in summary


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (None, "there are no images to look for it in"),
        ([], "No local image has it in the same place"),
        (["shop:2"], "Local image shop:2 has it: deploy that one. Then"),
        (["shop:2", "shop:3"], "Local image shop:2 has it (so have shop:3): deploy that one"),
    ],
    ids=["nothing to look through", "not found", "found", "found twice"],
)
def test_ahead_names_the_image_that_has_the_code(images: list[str] | None, expected: str) -> None:
    seen = dataclasses.replace(LINEAR, images=images)
    assert expected in judge(seen, Schema(rows=["zz"], tables=3), Wishes()).next_step


def test_drifted_names_what_has_changed_and_no_more() -> None:
    verdict = judge(LINEAR, Schema(rows=["c"], tables=3, models=DRIFTED), Wishes(current="a", head="c"))
    assert verdict.summary.endswith("recorded as right at 2025-10-21 has changed: not there: index i on songs (n).")
    assert "playbooks/baseline.yml" in verdict.next_step
    assert verdict.findings == []
