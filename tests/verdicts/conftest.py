"""What the tests of verdicts share: a PostgreSQL on this machine, and an empty database for a small application."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from psycopg import sql

from replica.databases import AppDatabase, DatabaseFactory
from replica.fixtures import databases, embedded_postgres
from replica.postgres import EmbeddedPostgres
from tests.support import small_app
from tests.support.small_app import Revision

__all__ = ["databases", "embedded_postgres"]

MakeApp = Callable[..., AppDatabase]


@pytest.fixture(scope="session", autouse=True)
def quiet_server(embedded_postgres: EmbeddedPostgres) -> None:
    """Without autovacuum, the server's counters tell whether anybody has written."""
    embedded_postgres.execute(sql.SQL("alter system set autovacuum = off"))
    embedded_postgres.execute(sql.SQL("select pg_reload_conf()"))


@pytest.fixture
def make_app(databases: DatabaseFactory, tmp_path: Path) -> Iterator[MakeApp]:
    """Give an empty database with a small application; called again, it is the same database with other code."""
    database = databases.empty()

    def make(revisions: Sequence[Revision], env: str = small_app.ENV) -> AppDatabase:
        return small_app.with_app(database, tmp_path / "app", revisions, env=env)

    yield make
    database.drop()
