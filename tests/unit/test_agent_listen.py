"""Where a redirected connection is told to go, by driver; the locks of a session over time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.agent_listen import Redirection, _Held


@pytest.mark.parametrize(
    ("driver", "given", "expected"),
    [
        pytest.param("psycopg", {"dbname": "prod", "host": "h"}, {"dbname": "copy", "host": "h"}, id="psycopg"),
        pytest.param("psycopg_async", {"dbname": "prod"}, {"dbname": "copy"}, id="psycopg, asynchronous"),
        pytest.param("psycopg2", {"dbname": "prod"}, {"dbname": "copy"}, id="psycopg2"),
        pytest.param("psycopg2", {"database": "prod"}, {"dbname": "copy"}, id="psycopg2 knows another word"),
        pytest.param(
            "psycopg2", {"dsn": "dbname=prod"}, {"dsn": "dbname=prod", "dbname": "copy"}, id="a keyword over a DSN"
        ),
        pytest.param("asyncpg", {"database": "prod"}, {"database": "copy"}, id="asyncpg"),
        pytest.param("pg8000", {"database": "prod"}, {"database": "copy"}, id="pg8000"),
        pytest.param("pg8000", {}, {"database": "copy"}, id="where none was named"),
    ],
)
def test_redirection(driver: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    parameters = dict(given)
    dialect = SimpleNamespace(name="postgresql", driver=driver)
    assert Redirection("copy")._on_do_connect(dialect, None, [], parameters) is None
    assert parameters == expected


def test_another_kind_of_database_is_left_alone() -> None:
    parameters = {"database": "prod"}
    Redirection("copy")._on_do_connect(SimpleNamespace(name="mysql", driver="pymysql"), None, [], parameters)
    assert parameters == {"database": "prod"}


def test_the_strongest_lock_counts_from_when_it_was_taken() -> None:
    held = _Held()
    held.note(1, "public.songs", "RowExclusiveLock", 10.0)
    held.note(1, "public.songs", "AccessExclusiveLock", 12.0)
    held.note(1, "public.songs", "AccessExclusiveLock", 14.0)
    held.note(1, "public.songs", "ShareLock", 15.0)
    held.note(1, "public.songs", "SIReadLock", 16.0)
    assert held.locks == {1: ("public.songs", "AccessExclusiveLock", 12.0)}


def test_equal_statements_are_looked_at_once_and_very_many_now_and_then() -> None:
    held = _Held()
    assert [held.is_worth_a_look("update", 0.0) for _ in range(3)] == [True, False, False]
    assert all(held.is_worth_a_look(f"update {number}", 0.0) for number in range(499))
    assert [held.is_worth_a_look(f"insert {at}", at) for at in (0.05, 0.2, 0.25, 0.31)] == [False, True, False, True]
