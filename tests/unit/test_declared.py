"""What revisions declare, compared with a catalog: what counts, and above all what does not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.agent_declared import Recorder
from ansible.module_utils.alembic_recovery.declared import Catalog, Compared, compare

Step = dict[str, Any]


def step(do: str, thing: str, *, table: str = "", schema: str | None = None, **more: Any) -> Step:
    """One step; `thing` is `table t`, `column t.c`, `index i` or `constraint k` (with `table`)."""
    kind, _, name = thing.partition(" ")
    if kind == "column":
        table, _, name = name.partition(".")
    return {
        "do": do,
        "kind": kind,
        "schema": schema,
        "table": table or name,
        "name": name,
        "guarded": False,
        **more,
    }


def text(*words: str, removes: bool = True) -> Step:
    return {"do": "text", "removes": removes, "words": list(words)}


def catalog(*tables: str, indexes: dict[str, bool] | None = None, constraints: list[str] | None = None) -> Catalog:
    """Tables and columns (`t`, `t.c`) in public."""
    structure: dict[str, list[dict[str, Any]]] = {
        "relations": [{"schema": "public", "name": name} for name in tables if "." not in name],
        "columns": [
            {"schema": "public", "relation": name.split(".")[0], "name": name.split(".")[1]}
            for name in tables
            if "." in name
        ],
        "indexes": [{"schema": "public", "name": name, "valid": valid} for name, valid in (indexes or {}).items()],
    }
    rows = [{"schema": "public", "relation": "t", "name": name} for name in constraints or []]
    return Catalog(["public"], structure, rows)


def declared(*, applied: list[list[Step]] | None = None, pending: list[list[Step]] | None = None) -> dict[str, Any]:
    parts = {"applied": applied or [], "pending": pending or []}
    return {
        "search_path": ["public"],
        **{
            part: [
                {"revision": f"{part[0]}{number}", "steps": steps, "unknown": None}
                for number, steps in enumerate(revisions)
            ]
            for part, revisions in parts.items()
        },
    }


PENDING: list[tuple[str, list[list[Step]], Catalog, list[Compared]]] = [
    ("nothing is there", [[step("create", "table t")]], catalog(), []),
    (
        "one of two tables",
        [[step("create", "table t"), step("create", "table u")]],
        catalog("t"),
        [Compared("p0", ["table t"], ["table u"])],
    ),
    (
        "in a revision after the next",
        [[step("create", "table t")], [step("create", "column u.c")]],
        catalog("u", "u.c"),
        [Compared("p1", ["column u.c"], [])],
    ),
    ("in another schema", [[step("create", "table t", schema="other")]], catalog("t"), []),
    (
        "an INVALID index, even where the revision expects one",
        [[step("create", "index i", table="t", guarded=True)]],
        catalog("t", indexes={"i": False}),
        [Compared("p0", ["index i on t (INVALID: it was never finished)"], [])],
    ),
    ("one that may be there: IF NOT EXISTS", [[step("create", "table t", guarded=True)]], catalog("t"), []),
    (
        "a constraint",
        [[step("create", "constraint k", table="t")]],
        catalog("t", constraints=["k"]),
        [Compared("p0", ["constraint k on t"], [])],
    ),
    ("dropped before it is made anew", [[step("drop", "table t"), step("create", "table t")]], catalog("t"), []),
    (
        "its table is dropped before",
        [[step("drop", "table t")], [step("create", "index i", table="t")]],
        catalog("t", indexes={"i": True}),
        [],
    ),
    (
        "its column is dropped before, and the index with it",
        [[step("drop", "column t.c"), step("create", "index i", table="t")]],
        catalog("t", "t.c", indexes={"i": True}),
        [],
    ),
    (
        "renamed away before",
        [[step("rename", "table t", to="old")], [step("create", "table t")]],
        catalog("t"),
        [],
    ),
    ("removed by a statement before", [[text("t"), step("create", "table t")]], catalog("t"), []),
    ("a statement that removes what it does not name", [[text("*")], [step("create", "table t")]], catalog("t"), []),
    (
        "a statement that only fills it",
        [[text("t", removes=False), step("create", "column t.c")]],
        catalog("t", "t.c"),
        [Compared("p0", ["column t.c"], [])],
    ),
    (
        "what is to be dropped is gone",
        [[step("drop", "table t"), step("drop", "column u.c")]],
        catalog("u"),
        [Compared("p0", ["the removal of table t", "the removal of column u.c"], [])],
    ),
    ("made and dropped on the way", [[step("create", "table t")], [step("drop", "table t")]], catalog(), []),
    (
        "dropped again after a statement that names it",
        [[text("t", removes=False)], [step("drop", "table t")]],
        catalog(),
        [],
    ),
    ("may be gone: IF EXISTS", [[step("drop", "table t", guarded=True)]], catalog(), []),
]


@pytest.mark.parametrize(("pending", "seen", "expected"), [case[1:] for case in PENDING], ids=[c[0] for c in PENDING])
def test_what_is_there_too_early(pending: list[list[Step]], seen: Catalog, expected: list[Compared]) -> None:
    assert compare(declared(pending=pending), seen).partial == expected


APPLIED: list[tuple[str, list[list[Step]], Catalog, list[Compared]]] = [
    ("all is there", [[step("create", "table t"), step("create", "column u.c")]], catalog("t", "u", "u.c"), []),
    (
        "a column is not",
        [[step("create", "table t"), step("create", "column u.c")]],
        catalog("t", "u"),
        [Compared("a0", ["table t"], ["column u.c"])],
    ),
    (
        "an index is not: somebody has dropped it",
        [[step("create", "table t"), step("create", "index i", table="t")]],
        catalog("t"),
        [Compared("a0", ["table t"], ["index i on t"], decisive=False)],
    ),
    (
        "the index is all that the revision makes",
        [[step("create", "index i", table="t")]],
        catalog("t"),
        [Compared("a0", [], ["index i on t"])],
    ),
    ("a later revision drops it", [[step("create", "table t")], [step("drop", "table t")]], catalog(), []),
    (
        "a later revision drops its table",
        [[step("create", "column t.c"), step("create", "index i", table="t")], [step("drop", "table t")]],
        catalog(),
        [],
    ),
    (
        "a later revision drops the column under the index",
        [[step("create", "index i", table="t")], [step("drop", "column t.c")]],
        catalog("t"),
        [],
    ),
    (
        "a later revision renames it",
        [
            [step("create", "table t"), step("create", "column t.c")],
            [step("rename", "table t", to="u"), step("rename", "column u.c", to="d")],
        ],
        catalog("u", "u.d"),
        [],
    ),
    (
        "renamed, and not there under the new name",
        [[step("create", "table t")], [step("rename", "table t", to="u")]],
        catalog("t"),
        [Compared("a0", [], ["table u"])],
    ),
    ("a later statement removes it", [[step("create", "table t")], [text("t")]], catalog(), []),
    ("a later revision that cannot be followed", [[step("create", "table t")], [text("*")]], catalog(), []),
    (
        "a later statement only fills it",
        [[step("create", "table t")], [text("t", removes=False)]],
        catalog(),
        [Compared("a0", [], ["table t"])],
    ),
    (
        "an index is dropped by its name alone",
        [[step("create", "index i", table="t")], [step("drop", "index i", table="no_table")]],
        catalog("t"),
        [],
    ),
]


@pytest.mark.parametrize(("applied", "seen", "expected"), [case[1:] for case in APPLIED], ids=[c[0] for c in APPLIED])
def test_what_is_not_there_though_it_should_be(
    applied: list[list[Step]], seen: Catalog, expected: list[Compared]
) -> None:
    assert compare(declared(applied=applied), seen).lost == expected


def test_what_may_be_made_out_of_sight_is_not_gone_because_it_is_not_there() -> None:
    answer = declared(pending=[[], [step("drop", "table t")]])
    assert compare(answer, catalog()).partial
    answer["pending"][0]["unknown"] = "it uses the connection (execute)"
    assert not compare(answer, catalog()).partial


def test_without_an_answer_nothing_is_compared() -> None:
    empty = compare(None, catalog("t"))
    assert empty.as_result() == {"partial": [], "lost": [], "unknown": {}}


def test_why_a_revision_could_not_be_followed_is_kept() -> None:
    answer = declared(pending=[[]])
    answer["pending"][0]["unknown"] = "it uses the connection (execute)"
    assert compare(answer, catalog()).unknown == {"p0": "it uses the connection (execute)"}


def test_a_table_is_found_where_postgresql_would_find_it() -> None:
    structure: dict[str, list[dict[str, Any]]] = {
        "relations": [{"schema": "shared", "name": "t"}],
        "columns": [{"schema": "shared", "relation": "t", "name": "c"}],
        "indexes": [],
    }
    seen = Catalog(["own", "shared"], structure, [])
    assert seen.has(step("create", "column t.c"))
    assert not seen.has(step("create", "column t.c", schema="own"))


@pytest.mark.parametrize(
    ("text", "others"),
    [
        pytest.param("alter table songs add column b numeric(9, 2)", [], id="one column"),
        pytest.param(
            "alter table songs add column b int, alter a type int using a * 100", ["SQL (ALTER)"], id="and more"
        ),
        pytest.param(
            "alter table songs add column b int default abs((2)), add column c int", ["SQL (ALTER)"], id="two"
        ),
    ],
)
def test_of_sql_only_what_does_one_thing_may_be_done_twice(text: str, others: list[str]) -> None:
    recorder = Recorder()
    recorder.execute(text)
    assert [step["name"] for step in recorder.steps if step["do"] == "create"] == ["b"]
    assert [other["what"] for other in recorder.others] == others
