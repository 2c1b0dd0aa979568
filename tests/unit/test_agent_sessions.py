"""What drivers say of errors and connections, each in its own way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy.exc
from ansible.module_utils.alembic_recovery.agent import describe_error
from ansible.module_utils.alembic_recovery.agent_sessions import (
    commits,
    is_idle,
    keeps_something,
    only_ends,
    sqlstate_of,
    told_process,
)

TIMED_OUT = "canceling statement due to lock timeout"


class Psycopg2Error(Exception):
    """As psycopg2 has it: the SQLSTATE is `pgcode`."""

    pgcode = "55P03"


def of_pg8000() -> Exception:
    """As pg8000 has it: the server's fields by their letters, and no attribute."""
    detail = {"S": "ERROR", "C": "55P03", "M": TIMED_OUT, "D": "somebody's data"}
    return sqlalchemy.exc.ProgrammingError("alter table songs", {}, Exception(detail))


def of_an_application() -> BaseException:
    """Wrapped once more, by the application."""
    try:
        try:
            raise sqlalchemy.exc.OperationalError("alter table songs", {}, psycopg.errors.LockNotAvailable(TIMED_OUT))
        except sqlalchemy.exc.OperationalError as error:
            raise RuntimeError("the migration has failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        pytest.param(psycopg.errors.LockNotAvailable(TIMED_OUT), "55P03", id="psycopg"),
        pytest.param(
            sqlalchemy.exc.OperationalError("x", {}, psycopg.errors.LockNotAvailable()), "55P03", id="psycopg, wrapped"
        ),
        pytest.param(Psycopg2Error(TIMED_OUT), "55P03", id="psycopg2"),
        pytest.param(asyncpg.exceptions.LockNotAvailableError(TIMED_OUT), "55P03", id="asyncpg"),
        pytest.param(of_pg8000(), "55P03", id="pg8000"),
        pytest.param(of_an_application(), "55P03", id="of an application"),
        pytest.param(psycopg.errors.DivisionByZero(), "22012", id="another"),
        pytest.param(RuntimeError("of Python"), None, id="none"),
        pytest.param(Exception(), None, id="without a word"),
    ],
)
def test_sqlstate_of(error: BaseException, state: str | None) -> None:
    assert sqlstate_of(error) == state


def test_an_error_that_comes_from_itself_is_no_loop() -> None:
    error = RuntimeError()
    error.__cause__ = error
    assert sqlstate_of(error) is None


def test_pg8000s_error_is_told_without_the_data() -> None:
    said = describe_error(of_pg8000())
    assert (said["message"], said["sqlstate"]) == (TIMED_OUT, "55P03")


@pytest.mark.parametrize(
    ("connection", "process"),
    [
        pytest.param(SimpleNamespace(info=SimpleNamespace(backend_pid=812)), 812, id="psycopg, psycopg2"),
        pytest.param(SimpleNamespace(get_backend_pid=lambda: 812), 812, id="an old psycopg2"),
        pytest.param(SimpleNamespace(_connection=SimpleNamespace(get_server_pid=lambda: 812)), 812, id="asyncpg"),
        pytest.param(
            SimpleNamespace(driver_connection=SimpleNamespace(info=SimpleNamespace(backend_pid=812))),
            812,
            id="psycopg, asynchronous",
        ),
        pytest.param(SimpleNamespace(_backend_key_data=b"\x00\x00\x03\x2cabcd"), 812, id="pg8000"),
        pytest.param(SimpleNamespace(), None, id="another driver"),
        pytest.param(SimpleNamespace(info=SimpleNamespace(backend_pid=0)), None, id="none was given"),
        pytest.param(SimpleNamespace(_connection=SimpleNamespace(get_server_pid=lambda: 0)), None, id="none, asyncpg"),
        pytest.param(SimpleNamespace(_backend_key_data=b"\0\0\0\0abcd"), None, id="none, pg8000"),
    ],
)
def test_told_process(connection: Any, process: int | None) -> None:
    assert told_process(connection) == process


@pytest.mark.parametrize(
    ("text", "has_one", "alone"),
    [
        ("COMMIT", True, True),
        ("  commit;\n", True, True),
        ("COMMIT WORK;", True, True),
        ("-- note\nCOMMIT;", True, True),
        ("/* x */ commit", True, True),
        ("/* x; /* commit; */ y */ end transaction", True, True),
        ("update songs set title = 'x'; end", True, False),
        ("update a; -- n\nCOMMIT", True, False),
        ("select 1; /* don't */ commit; select 'x'", True, False),
        ("select E'it\\'s'; COMMIT; select 'x'", True, False),
        ('select "it\'s"; COMMIT; select "x\'"', True, False),
        ("commit; create table t (); commit; create table u ()", True, False),
        ("create function f() returns int begin atomic select 1; end", True, False),
        ("rollback", False, True),
        ("rollback to savepoint a", False, False),
        ("-- that was;\n-- commit;\nselect 1", False, False),
        ("/* ; commit; */ select 1", False, False),
        ('select "a; commit; b"', False, False),
        ("do $$ begin update t set a = 1; end; $$", False, False),
        ("select 'a; commit; b'", False, False),
        ("commit prepared 'x'", False, False),
        ("select commitment from songs", False, False),
        ("alter table songs add column committed int", False, False),
        ("create table end_of_year ()", False, False),
    ],
)
def test_commits_in_sql(text: str, has_one: bool, alone: bool) -> None:
    assert (commits(text), only_ends(text)) == (has_one, alone)


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("create index concurrently i on songs (title)", True),
        ("select write_something()", True),
        ("show lock_timeout", False),
        ("SET lock_timeout = '1s'", False),
        ("select pg_try_advisory_lock(42)", False),
    ],
)
def test_keeps_something(text: str, keeps: bool) -> None:
    assert keeps_something(text) is keeps


@pytest.mark.parametrize(
    ("connection", "idle"),
    [
        pytest.param(SimpleNamespace(info=SimpleNamespace(transaction_status=0)), True, id="psycopg, psycopg2"),
        pytest.param(SimpleNamespace(info=SimpleNamespace(transaction_status=2)), False, id="in one"),
        pytest.param(SimpleNamespace(_connection=SimpleNamespace(is_in_transaction=lambda: False)), True, id="asyncpg"),
        pytest.param(SimpleNamespace(_in_transaction=True), None, id="another driver does not tell"),
    ],
)
def test_is_idle(connection: Any, idle: bool | None) -> None:
    assert is_idle(connection) is idle
