"""What would put a copy right, and above all what would not: decided from what a look has found."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import repair, repair_proof
from ansible.module_utils.alembic_recovery.declared import Catalog
from ansible.module_utils.alembic_recovery.repair import Object, Plan, State

Step = dict[str, Any]


def step(do: str, thing: str, *, table: str = "", **more: Any) -> Step:
    """One step; `thing` is `table t`, `column t.c`, `index i` or `constraint k` (with `table`)."""
    kind, _, name = thing.partition(" ")
    if kind == "column":
        table, _, name = name.partition(".")
    names = {"schema": None, "table": table or name, "name": name}
    return {"do": do, "kind": kind, **names, "guarded": False, **more}


def revision(name: str, *steps: Step, unknown: str | None = None, others: list[Any] | None = None) -> dict[str, Any]:
    """What one revision declares; `others` are words, or (words, table that rows are added to)."""
    pairs = [(other, None) if isinstance(other, str) else other for other in others or []]
    described = [{"what": what, "into": [None, into] if isinstance(into, str) else into} for what, into in pairs]
    return {"revision": name, "steps": list(steps), "others": described, "unknown": unknown}


def catalog(*names: str, indexes: dict[str, bool] | None = None, constraints: tuple[str, ...] = ()) -> Catalog:
    """Tables and columns (`t`, `t.c`) in public, and constraints of t."""
    columns = [name.split(".") for name in names if "." in name]
    structure: dict[str, list[dict[str, Any]]] = {
        "relations": [{"schema": "public", "name": name} for name in names if "." not in name],
        "columns": [{"schema": "public", "relation": table, "name": name} for table, name in columns],
        "indexes": [{"schema": "public", "name": name, "valid": valid} for name, valid in (indexes or {}).items()],
    }
    return Catalog(["public"], structure, [{"schema": "public", "relation": "t", "name": name} for name in constraints])


def state(verdict: str, there: Catalog, revisions: list[dict[str, Any]], *, rows: list[str] | None = None) -> State:
    """A chain of the revisions, all of which are to come (PARTIAL) or were stamped."""
    names = [one["revision"] for one in revisions]
    known = {
        name: {"down": [names[number - 1]] if number else [], "depends_on": []} for number, name in enumerate(names)
    }
    pending = verdict != "STAMPED_NOT_APPLIED"
    return State(
        verdict=verdict,
        known=known,
        heads=names[-1:],
        rows=names[-1:] if rows is None else rows,
        version_table='"public"."alembic_version"',
        missing=names if pending else [],
        declarations={"pending": revisions if pending else [], "applied": [] if pending else revisions},
        catalog=there,
    )


TABLE = step("create", "table t")
COLUMN = step("create", "column t.c")
INDEX = step("create", "index i", table="t")

RESUMED: list[tuple[str, list[dict[str, Any]], Catalog, list[str]]] = [
    ("a table", [revision("a", TABLE)], catalog("t"), ['DROP TABLE "public"."t"']),
    (
        "a column",
        [revision("a", COLUMN, INDEX)],
        catalog("t", "t.c"),
        ['ALTER TABLE "public"."t" DROP COLUMN "c"'],
    ),
    ("an INVALID index", [revision("a", INDEX)], catalog("t", indexes={"i": False}), ['DROP INDEX "public"."i"']),
    (
        "an INVALID index that may be there",
        [revision("a", {**INDEX, "guarded": True})],
        catalog("t", indexes={"i": False}),
        ['DROP INDEX "public"."i"'],
    ),
    (
        "a constraint",
        [revision("a", step("create", "constraint k", table="t"))],
        catalog("t", constraints=("k",)),
        ['ALTER TABLE "public"."t" DROP CONSTRAINT "k"'],
    ),
    (
        "last made, first removed",
        [revision("a", TABLE), revision("b", step("create", "column u.t_id"), INDEX)],
        catalog("t", "u", "u.t_id", indexes={"i": True}),
        ['DROP INDEX "public"."i"', 'ALTER TABLE "public"."u" DROP COLUMN "t_id"', 'DROP TABLE "public"."t"'],
    ),
    (
        "rows for a table of its own",
        [revision("a", TABLE, INDEX, others=[("INSERT into t", "t")])],
        catalog("t"),
        ['DROP TABLE "public"."t"'],
    ),
    (
        "what another revision does besides is run as ever",
        [revision("a", others=["SQL (UPDATE)"]), revision("b", unknown="it uses the connection"), revision("c", TABLE)],
        catalog("t"),
        ['DROP TABLE "public"."t"'],
    ),
]


@pytest.mark.parametrize(
    ("revisions", "there", "statements"), [case[1:] for case in RESUMED], ids=[case[0] for case in RESUMED]
)
def test_what_is_there_too_early_is_removed(
    revisions: list[dict[str, Any]], there: Catalog, statements: list[str]
) -> None:
    plan = repair.choose(state("PARTIAL", there, revisions), "resume", {}, [])
    assert (plan.reasons, plan.statements) == ([], statements)
    assert plan.revisions == [one["revision"] for one in revisions]
    assert len(plan.words) == len(statements)


def test_a_table_may_get_the_columns_that_are_declared() -> None:
    revisions = [revision("a", TABLE, step("create", "column t.later"), step("create", "column u.other"))]
    plan = repair.choose(state("PARTIAL", catalog("t", "t.id"), revisions), "resume", {}, [])
    assert plan.columns == {"public.t": ["id", "later"]}
    assert plan.removed == ["public.t"]


NOT_RESUMED: list[tuple[str, list[dict[str, Any]], Catalog, dict[Object, str], str]] = [
    (
        "a table with rows",
        [revision("a", TABLE)],
        catalog("t"),
        {Object("table", "public", "t", "t"): "it has rows"},
        "Table t is not removed: it has rows.",
    ),
    (
        "a column with values",
        [revision("a", COLUMN)],
        catalog("t", "t.c"),
        {Object("column", "public", "t", "c"): "it has values"},
        "Column t.c is not removed: it has values.",
    ),
    (
        "it could not be followed",
        [revision("a", TABLE, unknown="it uses the connection (execute)")],
        catalog("t"),
        {},
        (
            "Revision a cannot be followed to its end (it uses the connection (execute)): whether the rest of it has "
            "been done already cannot be told."
        ),
    ),
    (
        "SQL of its own",
        [revision("a", TABLE, others=["SQL (UPDATE)", "SQL (UPDATE)", "ColumnType songs"])],
        catalog("t"),
        {},
        (
            "Revision a also does what must not be done twice, and may have been done already: SQL (UPDATE), "
            "ColumnType songs."
        ),
    ),
    (
        "rows for a table that may have been there before",
        [revision("a", {**TABLE, "guarded": True}, COLUMN, others=[("INSERT into t", "t")])],
        catalog("t", "t.c"),
        {},
        "Revision a also does what must not be done twice, and may have been done already: INSERT into t.",
    ),
    (
        "rows for a table of the same name in another schema",
        [revision("a", TABLE, others=[("INSERT into t", ["archive", "t"])])],
        catalog("t"),
        {},
        "Revision a also does what must not be done twice, and may have been done already: INSERT into t.",
    ),
    (
        "names that change",
        [revision("a", step("rename", "column u.x", to="y"), TABLE)],
        catalog("t", "u", "u.y"),
        {},
        "Revision a also does what must not be done twice, and may have been done already: RENAME of column x.",
    ),
    (
        "rows for a table of others",
        [revision("a", TABLE, others=[("INSERT into u", "u")])],
        catalog("t", "u"),
        {},
        "Revision a also does what must not be done twice, and may have been done already: INSERT into u.",
    ),
    (
        "what it removes is gone",
        [revision("a", TABLE, step("drop", "column u.c"))],
        catalog("t", "u"),
        {},
        "Revision a is to remove what is gone already, and would fail: column u.c.",
    ),
    (
        "removed again later",
        [revision("a", TABLE), revision("b", step("drop", "table t"))],
        catalog("t"),
        {},
        "Table t is removed or renamed again by revision b: whether it comes back as it was could not be seen.",
    ),
    (
        "renamed later",
        [revision("a", COLUMN), revision("b", step("rename", "column t.c", to="d"))],
        catalog("t", "t.c"),
        {},
        "Column t.c is removed or renamed again by revision b: whether it comes back as it was could not be seen.",
    ),
]


@pytest.mark.parametrize(
    ("revisions", "there", "kept", "reason"), [case[1:] for case in NOT_RESUMED], ids=[case[0] for case in NOT_RESUMED]
)
def test_what_cannot_be_proved_is_not_resumed(
    revisions: list[dict[str, Any]], there: Catalog, kept: dict[Object, str], reason: str
) -> None:
    assert repair.choose(state("PARTIAL", there, revisions), "resume", kept, []) == Plan(reasons=[reason])


FIRST = revision("first", step("create", "table s"))
STAMPED: list[tuple[str, list[dict[str, Any]], Catalog, str, list[str]]] = [
    ("the last one", [FIRST, revision("a", TABLE)], catalog("s"), "first", ["a"]),
    (
        "several at the end, and one that does nothing",
        [FIRST, revision("a", TABLE), revision("b"), revision("c", COLUMN)],
        catalog("s"),
        "first",
        ["a", "b", "c"],
    ),
    (
        "below one that may be applied twice, for whether it was cannot be told",
        [FIRST, revision("b"), revision("a", TABLE)],
        catalog("s"),
        "first",
        ["b", "a"],
    ),
    (
        "rows for a table of its own",
        [FIRST, revision("a", TABLE, others=[("INSERT into t", "t")])],
        catalog("s"),
        "first",
        ["a"],
    ),
]


@pytest.mark.parametrize(
    ("revisions", "there", "below", "again"), [case[1:] for case in STAMPED], ids=[case[0] for case in STAMPED]
)
def test_the_version_is_set_below_what_is_not_there(
    revisions: list[dict[str, Any]], there: Catalog, below: str, again: list[str]
) -> None:
    head = revisions[-1]["revision"]
    plan = repair.choose(state("STAMPED_NOT_APPLIED", there, revisions), "repair", {}, [])
    assert not plan.reasons
    assert plan.statements == [
        f"""UPDATE "public"."alembic_version" SET version_num = '{below}' WHERE version_num = '{head}'"""
    ]
    assert (plan.version, plan.revisions) == (below, again)


NOT_SET_BACK: list[tuple[str, list[dict[str, Any]], Catalog, str]] = [
    (
        "there in part",
        [FIRST, revision("a", TABLE, COLUMN)],
        catalog("s", "t"),
        "Revision a is there in part: there: table t; not there, or INVALID: column t.c.",
    ),
    (
        "of the one below, only an index is missing",
        [revision("first", step("create", "table s"), step("create", "index j", table="s")), revision("a", TABLE)],
        catalog("s"),
        "Revision first is there in part: there: table s; not there, or INVALID: index j on s.",
    ),
    (
        "of the one below, an index was never finished",
        [revision("first", step("create", "table s"), step("create", "index j", table="s")), revision("a", TABLE)],
        catalog("s", indexes={"j": False}),
        "Revision first is there in part: there: table s, index j on s; not there, or INVALID: index j on s.",
    ),
    (
        "below, one is there in part",
        [FIRST, revision("a", TABLE, COLUMN), revision("b", step("create", "table u"))],
        catalog("s", "t"),
        "Revision a is there in part: there: table t; not there, or INVALID: column t.c.",
    ),
    (
        "one in between was applied",
        [FIRST, revision("a", TABLE), revision("b", step("create", "table u"))],
        catalog("s", "u"),
        "Revision b is there, and earlier ones are not as a whole: a.",
    ),
    (
        "one in between cannot be told",
        [FIRST, revision("a", others=["SQL (UPDATE)"]), revision("b", TABLE)],
        catalog("s"),
        "Whether revision a was applied cannot be told: nothing that it makes can be looked for.",
    ),
    (
        "one that is absent does more than it declares",
        [FIRST, revision("a", TABLE, others=["SQL (UPDATE)"])],
        catalog("s"),
        "Revision a also does what must not be done twice, and may have been done already: SQL (UPDATE).",
    ),
    (
        "one that is absent could not be followed",
        [FIRST, revision("a", TABLE, unknown="it uses the connection")],
        catalog("s"),
        (
            "Revision a cannot be followed to its end (it uses the connection): whether the rest of it has been done "
            "already cannot be told."
        ),
    ),
    ("nothing at all is there", [FIRST], catalog(), "Revision first has 0 revisions before it"),
    (
        "only what the inventory expects is missing",
        [FIRST],
        catalog("s"),
        "The last revision, first, is there, and no revision declares what is missing.",
    ),
]


@pytest.mark.parametrize(
    ("revisions", "there", "reason"), [case[1:] for case in NOT_SET_BACK], ids=[case[0] for case in NOT_SET_BACK]
)
def test_what_cannot_be_told_is_not_set_back(revisions: list[dict[str, Any]], there: Catalog, reason: str) -> None:
    plan = repair.choose(state("STAMPED_NOT_APPLIED", there, revisions), "repair", {}, [])
    assert len(plan.reasons) == 1
    assert plan.reasons[0].startswith(reason)
    assert plan == Plan(reasons=plan.reasons)


def test_two_version_rows_are_not_set_back() -> None:
    two = state("STAMPED_NOT_APPLIED", catalog("s"), [FIRST, revision("a", TABLE)], rows=["first", "a"])
    assert repair.choose(two, "repair", {}, []).reasons == [
        "There is more than one version row, or more than one version table."
    ]


def test_below_what_was_looked_at_is_not_set_back() -> None:
    found = state("STAMPED_NOT_APPLIED", catalog("s"), [FIRST, revision("a", TABLE), revision("b", COLUMN)])
    assert found.declarations is not None
    found.declarations["applied"][:] = found.declarations["applied"][-2:]
    assert repair.choose(found, "repair", {}, []).reasons == [
        "What is there was compared down to revision first, and none of it is."
    ]


@pytest.mark.parametrize("verdict", ["PARTIAL", "STAMPED_NOT_APPLIED"])
def test_nothing_is_done_without_the_word(verdict: str) -> None:
    plan = repair.choose(state(verdict, catalog("s", "t"), [FIRST, revision("a", TABLE)]), "refuse", {}, [])
    assert plan == Plan(reasons=[f"{verdict} is repaired only where the operator says so."])


@pytest.mark.parametrize("verdict", ["AHEAD", "DIVERGED", "MULTIPLE_HEADS", "UNVERSIONED", "EMPTY", "FOREIGN"])
def test_no_other_verdict_is_repaired(verdict: str) -> None:
    plan = repair.choose(state(verdict, catalog(), []), "resume", {}, [])
    assert plan == Plan(reasons=[f"A database that is {verdict} is not repaired."])


@pytest.mark.parametrize(
    ("now", "restored", "departs"),
    [
        (["DROP INDEX i", "DROP TABLE t"], False, False),
        (["DROP TABLE t"], False, True),
        (["DROP TABLE t"], True, False),
        (["DROP INDEX i"], True, True),
        (["DROP INDEX i", "DROP TABLE t", "DROP TABLE u"], True, True),
        (["DROP TABLE t", "DROP INDEX i"], True, True),
    ],
)
def test_only_what_was_confirmed_is_done(now: list[str], restored: bool, departs: bool) -> None:
    assert repair.departs(["DROP INDEX i", "DROP TABLE t"], now, restored=restored) is departs


def test_with_a_refusal_nothing_is_done() -> None:
    found = state("PARTIAL", catalog("t"), [revision("a", TABLE)])
    assert repair.choose(found, "resume", {}, ["Widen the column first."]) == Plan(reasons=["Widen the column first."])


# -- the proof ------------------------------------------------------------------------------------------------

COLUMNS = [{"schema": "public", "relation": "songs", "name": name, "type": "text"} for name in ("id", "n", "c")]
INVALID = {"schema": "public", "relation": "public.songs", "name": "i", "valid": False, "definition": "on songs (n)"}
BEFORE: dict[str, Any] = {
    "structure": {"columns": COLUMNS, "indexes": [INVALID]},
    "fingerprint": "1",
    "row_counts": {"public.songs": 2, "public.alembic_version": 1},
    "content": {"public.songs": {"id": "1", "n": "2", "c": "0"}, "public.alembic_version": {"version_num": "5"}},
}
AFTER: dict[str, Any] = {
    "structure": {"columns": COLUMNS[:2], "indexes": []},
    "fingerprint": "2",
    "row_counts": {"public.songs": 2, "public.alembic_version": 1},
    "content": {"public.songs": {"id": "1", "n": "2"}, "public.alembic_version": {"version_num": "6"}},
}
PLAN = Plan(statements=["…"], removed=["public.songs.c"])


def proved(plan: Plan, **other: Any) -> list[str]:
    return repair_proof.problems(BEFORE, {**AFTER, **other}, plan, "public.alembic_version")


def test_what_was_to_be_removed_is_no_problem() -> None:
    assert proved(PLAN) == []
    assert repair_proof.taken(BEFORE["structure"], AFTER["structure"]) == {"columns": COLUMNS[2:], "indexes": [INVALID]}


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"row_counts": {"public.songs": 1}}, "public.songs had 2 rows, and has 1."),
        ({"row_counts": {}}, "public.songs had 2 rows, and has gone."),
        ({"content": {"public.songs": {"id": "1", "n": "9"}}}, "public.songs.n does not hold what it held."),
        ({"content": {"public.songs": {"id": "1"}}}, "public.songs.n does not hold what it held."),
        (
            {"structure": {"columns": [{**COLUMNS[0], "type": "int"}]}},
            "columns has changed: public.songs.id.",
        ),
    ],
)
def test_anything_else_is_a_problem(other: dict[str, Any], problem: str) -> None:
    assert problem in proved(PLAN, **other)


def test_where_only_the_version_was_to_change_the_catalog_must_not() -> None:
    assert "The catalog has changed, and only the version was to." in proved(Plan(statements=["…"], version="first"))


@pytest.mark.parametrize(
    ("now", "unlike"),
    [
        ({"columns": COLUMNS, "indexes": [{**INVALID, "valid": True}]}, []),
        (
            {"columns": COLUMNS, "indexes": [INVALID]},
            ["indexes: public.songs.i is made otherwise: valid was True, is False."],
        ),
        ({"columns": COLUMNS, "indexes": []}, ["indexes: public.songs.i was there, and no revision makes it."]),
        (
            {"columns": [*COLUMNS[:2], {**COLUMNS[2], "type": "uuid"}], "indexes": [{**INVALID, "valid": True}]},
            ["columns: public.songs.c is made otherwise: type was 'text', is 'uuid'."],
        ),
    ],
    ids=["as it was", "still INVALID", "no such index", "another type"],
)
def test_what_was_removed_must_come_back_as_it_was(now: dict[str, Any], unlike: list[str]) -> None:
    removed = repair_proof.taken(BEFORE["structure"], AFTER["structure"])
    assert repair_proof.not_made_anew(removed, {}, now) == unlike


def test_a_table_must_not_get_columns_that_nobody_declares() -> None:
    assert repair_proof.not_made_anew({}, {"public.songs": ["id", "c"]}, {"columns": COLUMNS}) == [
        "columns: public.songs.n was not there, and is now."
    ]
