"""Databases of the application for tests: one server, one template per state, a copy in a moment."""

from __future__ import annotations

import itertools
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from replica import application, seed
from replica.application import USER, State
from replica.postgres import EmbeddedPostgres

SMALL = seed.Size(songs=120, rules=120)


@dataclass(frozen=True)
class AppDatabase:
    """A database of the application, and a deployed application to go with it.

    Attributes:
        server: The server it is in.
        application: Directory of the deployed application (with alembic.ini).
        name: The database's name.
        user: Its owner, who is no superuser.
        password: The owner's password.
    """

    server: EmbeddedPostgres
    application: Path
    name: str
    user: str
    password: str

    @property
    def url(self) -> str:
        """DATABASE_URL for the application."""
        return application.database_url(
            user=self.user, password=self.password, database=self.name, socket_dir=self.server.socket_dir
        )

    @property
    def conninfo(self) -> str:
        """How its owner gets in: a connection string for libpq, with the password."""
        return psycopg.conninfo.make_conninfo(
            host=str(self.server.socket_dir), dbname=self.name, user=self.user, password=self.password
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the application's processes."""
        return application.environment(self.url)

    def alembic(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the ordinary ``alembic`` command against this database.

        Args:
            arguments: For example ``upgrade``, ``head``.

        Returns:
            The finished command, whatever it ended with.
        """
        return application.run_alembic(self.application, self.url, *arguments)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask a question on a new connection.

        Args:
            statement: One SQL statement without parameters.

        Returns:
            Its rows.
        """
        with psycopg.connect(self.conninfo) as connection:
            return connection.execute(sql.SQL(statement)).fetchall()

    def value(self, statement: str) -> Any:
        """The first column of the first row, asked on a new connection.

        Args:
            statement: One SQL statement without parameters.

        Returns:
            The value.
        """
        return self.rows(statement)[0][0]

    def drop(self) -> None:
        """Remove the database, whoever is in it."""
        self.server.drop_database(self.name)


class DatabaseFactory:
    """Makes databases by copying templates, which are built on first use.

    Args:
        server: A running server.
        directory: Where the application is deployed; made if it is missing.
        size: How much data each database has.
        password: The owner's password; made up if it is not given.
    """

    def __init__(
        self,
        server: EmbeddedPostgres,
        directory: Path,
        size: seed.Size = SMALL,
        password: str | None = None,
    ) -> None:
        self.server = server
        self.application = directory if directory.is_dir() else application.copy_to(directory)
        self.size = size
        self.password = password or secrets.token_urlsafe(18)
        self._numbers = itertools.count(1)
        self._templates: dict[State, str] = {}
        # As production's does: a clone is made, and databases are renamed, by the role that owns them.
        server.create_role(USER, self.password, createdb=True)

    def create(self, state: State | str = State.UNTOUCHED, name: str | None = None) -> AppDatabase:
        """Make a database.

        Args:
            state: What it looks like.
            name: Its name; made up if it is not given.

        Returns:
            The new database.
        """
        wanted = State(state)
        if wanted not in self._templates:
            self._templates[wanted] = self._build_template(wanted)
        database = self._database(name or f"aiproxy_{next(self._numbers)}")
        self.server.create_database(database.name, USER, self._templates[wanted])
        return database

    def empty(self, name: str | None = None) -> AppDatabase:
        """Make a database with nothing in it.

        Args:
            name: Its name; made up if it is not given.

        Returns:
            The new database.
        """
        database = self._database(name or f"aiproxy_{next(self._numbers)}")
        self.server.create_database(database.name, USER)
        return database

    def _database(self, name: str) -> AppDatabase:
        """A database's description."""
        return AppDatabase(self.server, self.application, name, USER, self.password)

    def _build_template(self, state: State) -> str:
        """Build a template by the application's own means."""
        database = self.empty(f"aiproxy_template_{state}")
        application.bring_to(
            state,
            database.alembic,
            lambda script: self.server.load(database.name, script, role=USER),
            self.size,
        )
        return database.name
