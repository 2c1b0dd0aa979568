"""A PostgreSQL on this machine, and applications with a database of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

from replica.fixtures import embedded_postgres
from replica.postgres import EmbeddedPostgres
from tests.support.layout_app import PASSWORD, ROLE, LayoutApp

__all__ = ["embedded_postgres"]


@pytest.fixture(scope="session")
def server(embedded_postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server that writes nothing of its own accord, with the applications' role."""
    embedded_postgres.execute(sql.SQL("alter system set autovacuum = off"))
    embedded_postgres.execute(sql.SQL("alter system set max_prepared_transactions = 5"))
    embedded_postgres.stop()
    embedded_postgres.start()
    embedded_postgres.create_role(ROLE, PASSWORD, createdb=True)
    return embedded_postgres


@pytest.fixture
def make_app(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Callable[[], LayoutApp]]:
    """Make applications with a database each; the databases go with the test."""
    made: list[LayoutApp] = []
    numbers = itertools.count(1)

    def make() -> LayoutApp:
        number = next(numbers)
        directory = tmp_path / f"app{number}"
        directory.mkdir()
        made.append(LayoutApp(directory, server, f"layout_{number}"))
        server.create_database(made[-1].database, ROLE)
        return made[-1]

    yield make
    for one in made:
        server.drop_database(one.database)


@pytest.fixture
def app(make_app: Callable[[], LayoutApp]) -> LayoutApp:
    """One application."""
    return make_app()
