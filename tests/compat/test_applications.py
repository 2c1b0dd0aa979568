"""Real applications, as published: what is read of them is what they say themselves; the incident is recovered."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from replica.postgres import EmbeddedPostgres
from tests.compat.applications import ALL, Application
from tests.compat.report import Outcome, Record
from tests.support.layout_app import ROLE, LayoutApp

CHOSEN = ALL if os.environ.get("COMPAT_ALL") else ALL[:1]


class Installed(LayoutApp):
    """An application of the index with a database."""

    def __init__(self, application: Application, server: EmbeddedPostgres, database: str, directory: Path) -> None:
        super().__init__(directory, server, database)
        self.application = application
        url = self.url(application.driver)
        self.options = {"python": application.python, "environment": {}, **application.described(url)}

    def own(self, *words: str) -> dict[str, Any]:
        """Run `own_command.py` in the application's environment; return its answer."""
        done = subprocess.run(
            [self.application.python, Path(__file__).with_name("own_command.py"), self.application.name, *words],
            cwd=self.directory,
            env={**os.environ, "DATABASE_URL": self.url(self.application.driver)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def agrees(self, verdict: str) -> dict[str, Any]:
        """Require this verdict, and that all else is what the application says itself."""
        said, seen = self.own("read"), self.status()
        assert (seen["verdict"], seen["refusals"]) == (verdict, []), seen
        assert (seen["current"], seen["heads"]) == (said["rows"], said["heads"])
        assert sorted(step["revision"] for step in seen["missing"]) == sorted(said["missing"] if said["rows"] else [])
        assert seen["revision_count"] == len(said["all"])
        return said


@pytest.fixture(
    scope="module",
    params=[pytest.param(one, id=one.name, marks=pytest.mark.xdist_group(f"compat {one.name}")) for one in CHOSEN],
)
def application(request: pytest.FixtureRequest) -> Application:
    """One application."""
    chosen: Application = request.param
    return chosen


@pytest.fixture
def installed(application: Application, server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Installed]:
    """The application with an empty database."""
    server.create_database("compat", ROLE)
    yield Installed(application, server, "compat", tmp_path)
    for name in ("compat", "twin"):
        server.drop_database(name)


@pytest.mark.slow
def test_an_application_is_read_and_recovered(
    installed: Installed, application: Application, server: EmbeddedPostgres, tmp_path: Path, record: Record
) -> None:
    facts = installed.agrees("EMPTY")
    order = sorted(application.older, key=facts["all"].index)
    for revision in order:
        # Each from nothing: a chain may have branches, of which one is not on the way to another.
        _from_nothing(server)
        said = installed.own("upgrade", revision)
        assert said["rows"] == [revision]
        installed.agrees("BEHIND")

    _from_nothing(server)
    installed.own("upgrade", application.older[-1])
    with_rows = installed.witness
    with_rows.execute(*application.rows)
    twin = Installed(application, server, "twin", tmp_path)
    server.execute(sql.SQL("create database twin owner {} template compat").format(sql.Identifier(ROLE)))
    expected = twin.own("upgrade", "heads")
    assert expected["missing"] == []

    missing = installed.agrees("BEHIND")["missing"]
    done = installed.migrate()
    assert not done.get("failed"), done["msg"]
    assert sorted(step["revision"] for step in done["applied"]) == sorted(missing)
    assert installed.rows(application.version_table) == expected["rows"]
    ours, theirs = with_rows.look(), twin.witness.look()
    assert ours.catalog == theirs.catalog
    assert (ours.rows, ours.sequences) == (theirs.rows, theirs.sequences)
    assert _steady(ours.content) == _steady(theirs.content)
    assert installed.migrate()["changed"] is False
    installed.agrees("AT_HEAD")
    outcome = Outcome(
        application.name,
        facts["versions"],
        len(facts["all"]),
        ("empty", *order, "head"),
        f"{application.older[-1]} to {', '.join(expected['rows'])}, {len(missing)} revisions",
        tuple(application.options),
    )
    record("application", dataclasses.asdict(outcome))


def _from_nothing(server: EmbeddedPostgres) -> None:
    server.drop_database("compat")
    server.create_database("compat", ROLE)


def _steady(content: dict[str, str]) -> dict[str, str]:
    """Without the columns that a revision fills with the time at which it runs."""
    return {column: text for column, text in content.items() if not column.endswith(("_at", "_time"))}
