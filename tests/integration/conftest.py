"""What the integration tests share: a PostgreSQL on this machine, and databases of the replica's application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

from replica.application import State
from replica.databases import AppDatabase, DatabaseFactory
from replica.fixtures import embedded_postgres
from replica.postgres import EmbeddedPostgres
from tests.support.evidence import Witness
from tests.support.fenced import FencedStack
from tests.support.stacks import Deployment, witness_of
from tests.support.supervised import STEADY, Supervised

__all__ = ["embedded_postgres"]


@pytest.fixture(scope="session")
def databases(embedded_postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> DatabaseFactory:
    """Makes databases of the application, in a server that writes nothing of its own accord.

    Without autovacuum, the server's transaction counter tells whether anybody has written.
    """
    embedded_postgres.execute(sql.SQL("alter system set autovacuum = off"))
    embedded_postgres.execute(sql.SQL("select pg_reload_conf()"))
    return DatabaseFactory(embedded_postgres, tmp_path_factory.mktemp("deployed") / "app")


@pytest.fixture
def make_database(databases: DatabaseFactory) -> Iterator[Callable[..., AppDatabase]]:
    """Make databases in any state; they go with the test."""
    made: list[AppDatabase] = []

    def make(state: State | None = State.UNTOUCHED) -> AppDatabase:
        made.append(databases.empty() if state is None else databases.create(state))
        return made[-1]

    yield make
    for database in made:
        database.drop()


@pytest.fixture
def broken(make_database: Callable[..., AppDatabase]) -> AppDatabase:
    """A database in the state of 2025-10-21, rows untouched."""
    return make_database(State.UNTOUCHED)


@pytest.fixture
def witness(broken: AppDatabase) -> Witness:
    """An independent look at `broken`, as superuser."""
    return witness_of(broken)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """A copy of the application to be changed."""
    return Deployment(tmp_path / "app")


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    """A supervisord of its own with two programs that run."""
    with Supervised(tmp_path, {"api": STEADY, "worker": STEADY}) as supervisor:
        for name in ("api", "worker"):
            supervisor.wait_for(name, "RUNNING")
        yield supervisor


@pytest.fixture
def stack(broken: AppDatabase, supervised: Supervised, tmp_path: Path) -> Iterator[FencedStack]:
    """A database with supervised services, and a place for runs; what runs have made goes with the test."""
    made = FencedStack(broken, supervised, tmp_path / "state" / "demo" / "runs")
    yield made
    made.tidy()
