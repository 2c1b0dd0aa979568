"""Servers for the applications, and the page that `make compat` writes from what the tests have recorded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from replica.fixtures import embedded_postgres, running_server
from replica.postgres import EmbeddedPostgres, distribution_version
from tests.compat import report
from tests.support.layout_app import PASSWORD, ROLE

__all__ = ["embedded_postgres"]

PROPERTY = "compat"
_records = pytest.StashKey[list[tuple[str, Any]]]()


def _prepared(server: EmbeddedPostgres) -> EmbeddedPostgres:
    """It writes nothing of its own accord, and has the applications' role."""
    server.execute(sql.SQL("alter system set autovacuum = off"))
    server.execute(sql.SQL("select pg_reload_conf()"))
    server.create_role(ROLE, PASSWORD)
    return server


@pytest.fixture(scope="session")
def server(embedded_postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """PostgreSQL 16."""
    return _prepared(embedded_postgres)


@pytest.fixture(scope="module")
def versioned_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], EmbeddedPostgres]]:
    """Give a server of a version; one is started when it is first asked for."""
    with contextlib.ExitStack() as running:
        started: dict[str, EmbeddedPostgres] = {}

        def give(version: str) -> EmbeddedPostgres:
            if version not in started:
                number = distribution_version() if version == "distribution" else int(version)
                context = running_server(tmp_path_factory.mktemp(f"pg-{version}"), number)
                started[version] = _prepared(running.enter_context(context))
            return started[version]

        yield give


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> report.Record:
    """Keep something for the page: properties of a test's report find their way from any worker."""
    return lambda kind, what: record_property(PROPERTY, (kind, what))


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is recorded yet."""
    config.stash[_records] = []
    config.pluginmanager.register(Collector(config), "compat-collector")


class Collector:
    """Collects what tests record, and writes the page that COMPAT_REPORT names, if nothing failed."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test has recorded."""
        if report.when == "call" and report.passed:
            self.config.stash[_records] += [value for name, value in report.user_properties if name == PROPERTY]

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the page; workers of pytest-xdist have nothing to do with it."""
        path = os.environ.get("COMPAT_REPORT")
        if path and exitstatus == 0 and not hasattr(session.config, "workerinput"):
            report.write(Path(path), self.config.stash[_records])
