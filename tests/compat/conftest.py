"""Which applications are tried, a PostgreSQL for them, and the table of what came out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from replica.fixtures import embedded_postgres
from replica.postgres import EmbeddedPostgres
from tests.compat.report import Outcome, write
from tests.support.layout_app import PASSWORD, ROLE

__all__ = ["embedded_postgres"]


@pytest.fixture(scope="session")
def server(embedded_postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server that writes nothing of its own accord, with the applications' role."""
    embedded_postgres.execute(sql.SQL("alter system set autovacuum = off"))
    embedded_postgres.execute(sql.SQL("select pg_reload_conf()"))
    embedded_postgres.create_role(ROLE, PASSWORD)
    return embedded_postgres


@pytest.fixture(scope="session")
def figures() -> list[str]:
    """Sentences with what was measured, for the page."""
    return []


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, figures: list[str]) -> Iterator[list[Outcome]]:
    """What was seen of each application; written to the file that COMPAT_REPORT names, if nothing failed."""
    found: list[Outcome] = []
    yield found
    path = os.environ.get("COMPAT_REPORT")
    if path and not request.session.testsfailed:
        write(Path(path), found, figures)
