"""sql_check: what holds, what does not, what cannot be asked; never a write."""

from __future__ import annotations

from typing import Any

import pytest

from replica.databases import AppDatabase
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.stacks import database_options

SONGS = {"name": "songs", "sql": "select count(*) from songs"}


def ask(database: AppDatabase, /, *queries: dict[str, Any], check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module, and require that nothing was written."""
    witness = Witness(database.server.conninfo(database.name))
    before = witness.look()
    arguments = {"database": database_options(database), "queries": list(queries), **more}
    result = run_module("sql_check", arguments, check=check)
    assert result.get("changed", False) is False
    assert witness.look() == before
    return result


def test_before_and_after(broken: AppDatabase) -> None:
    count = Witness(broken.server.conninfo(broken.name)).value("select count(*) from songs")
    queries = [
        {**SONGS, "at_least": "before"},
        {"name": "rules", "sql": "select count(*) from lyric_parsing_rules;", "equals": "before"},
        {"name": "limit", "sql": "select 5", "at_least": 5, "at_most": "5.0"},
    ]
    before = ask(broken, *queries, phase="before", check=True)
    assert before["measured"] == {"songs": count, "rules": 120}
    assert ask(broken, *queries, phase="before")["measured"] == before["measured"]
    after = ask(broken, *queries, before=before["measured"])
    assert after["measured"] == {**before["measured"], "limit": 5}
    assert (after["problems"], after["not_compared"]) == ([], [])


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({**SONGS, "at_least": "before"}, "songs: the query gives 120, expected at least 121."),
        ({**SONGS, "equals": "before"}, "songs: the query gives 120, expected exactly 121."),
        ({**SONGS, "at_most": 119}, "songs: the query gives 120, expected at most 119."),
        ({"name": "x", "sql": "select null::int", "at_least": 0}, "x: the query gives None, expected at least 0."),
        ({"name": "x", "sql": "select 'a'", "equals": "b"}, "x: the query gives 'a', expected exactly 'b'."),
        (
            {"name": "x", "sql": "select 1, 2", "equals": 1},
            "x: the query gives 1 rows of 2 columns, expected one value.",
        ),
        ({"name": "x", "sql": "select 1 where false", "equals": 1}, "x: the query gives 0 rows of 0 columns, expected"),
        ({"name": "x", "sql": "select no_such from songs", "equals": 1}, 'column "no_such" does not exist'),
        ({"name": "x", "sql": "select; drop table songs", "equals": 1}, "x: PostgreSQL refused a question"),
        ({"name": "x", "sql": "delete from songs returning 1", "equals": 1}, "x: PostgreSQL refused a question"),
        (
            {"name": "x", "sql": "select setval('song_number_seq', 1)", "equals": 1},
            "cannot execute setval() in a read-only transaction",
        ),
    ],
)
def test_what_does_not_hold(broken: AppDatabase, query: dict[str, Any], problem: str) -> None:
    """Each in one sentence, and those that hold beside it have their say."""
    good = {"name": "good", "sql": "select 1", "equals": 1}
    seen = ask(broken, query, good, before={"songs": 121})
    assert seen["failed"] is True
    assert len(seen["problems"]) == 1
    assert problem in seen["problems"][0]
    assert seen["problems"][0] in seen["msg"]
    assert seen["measured"]["good"] == 1


def test_decimal_and_large_numbers_are_compared_as_numbers(broken: AppDatabase) -> None:
    queries = [
        {"name": "large", "sql": "select 10", "at_least": "9"},
        {"name": "decimal", "sql": "select 0.30", "equals": "0.3"},
        {"name": "text", "sql": "select 'a''b\\c'", "equals": "a'b\\c"},
        {"name": "flag", "sql": "select true", "equals": True},
    ]
    assert ask(broken, *queries)["problems"] == []


def test_what_cannot_be_compared_is_said(broken: AppDatabase) -> None:
    seen = ask(broken, {**SONGS, "at_least": "before"})
    assert (seen["problems"], seen["not_compared"]) == ([], ["songs"])


def test_two_of_one_name(broken: AppDatabase) -> None:
    seen = ask(broken, {**SONGS, "at_least": 1}, {**SONGS, "at_most": 500})
    assert seen["msg"] == "Two of expect.queries have the same name; give each its own."


def test_nothing_to_ask_asks_nobody(broken: AppDatabase) -> None:
    place = database_options(broken, unix_socket="/none")
    assert ask(broken, phase="before", database=place)["measured"] == {}
