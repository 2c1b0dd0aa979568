"""Pytest fixtures for whoever tests against the replica: ``pytest_plugins = ["replica.fixtures"]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replica.application import State
from replica.databases import AppDatabase, DatabaseFactory
from replica.postgres import EmbeddedPostgres


@contextmanager
def running_server(directory: Path, version: int = 16) -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL with nothing in it; it goes with the context."""
    server = EmbeddedPostgres(directory, version=version, durable=False)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def embedded_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL 16 for the whole session, with nothing in it."""
    with running_server(tmp_path_factory.mktemp("pg")) as server:
        yield server


@pytest.fixture(scope="session")
def databases(embedded_postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> DatabaseFactory:
    """Makes databases of the application, in any state, in a moment."""
    return DatabaseFactory(embedded_postgres, tmp_path_factory.mktemp("deployed") / "app")


@pytest.fixture
def broken_database(databases: DatabaseFactory) -> Iterator[AppDatabase]:
    """A database in the state of 2025-10-21, rows untouched."""
    database = databases.create(State.UNTOUCHED)
    yield database
    database.drop()
