"""Options of the modules for a database of the replica, and deployments with revisions of their own."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replica import application
from replica.application import HEAD
from replica.databases import AppDatabase
from tests.support.evidence import Witness

_REVISION = '''"""{message}

Revision ID: {revision}
Revises: {down}
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = {revision!r}
down_revision = {down!r}
branch_labels = None
depends_on = {depends_on!r}


def upgrade() -> None:
{body}


def downgrade() -> None:
{undo}
'''


def witness_of(database: AppDatabase) -> Witness:
    """Return an independent look at a database, as superuser."""
    return Witness(database.server.conninfo(database.name))


def database_options(database: AppDatabase, **changes: Any) -> dict[str, Any]:
    """Return the option `database` of the modules; `changes` replace keys."""
    return {
        "runtime": "host",
        "name": database.name,
        "user": database.user,
        "password": database.password,
        "unix_socket": str(database.server.socket_dir),
        "bin_dir": str(database.server.bin_dir),
        **changes,
    }


def application_options(database: AppDatabase, directory: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Return the option `application` of the modules; `directory` is a deployment other than the database's own."""
    return {
        "runtime": "host",
        "workdir": str(directory or database.application),
        "python": sys.executable,
        "environment": {"DATABASE_URL": database.url},
        **changes,
    }


def options(database: AppDatabase, directory: Path | None = None, /, **more: Any) -> dict[str, Any]:
    """Return both, and `more`."""
    return {"database": database_options(database), "application": application_options(database, directory), **more}


class Deployment:
    """A copy of the application whose revisions and env.py a test may change."""

    def __init__(self, directory: Path) -> None:
        """`directory` must not be there yet."""
        self.directory = application.copy_to(directory)
        self.versions = directory / "src" / "alembic" / "versions"
        self.env = directory / "src" / "alembic" / "env.py"

    def add(
        self,
        revision: str,
        body: str,
        *,
        undo: str = "pass",
        down: str | tuple[str, ...] = HEAD,
        depends_on: str | None = None,
    ) -> Path:
        """Add a revision; `body` is what its upgrade does, `undo` its downgrade (with `op`, `sa`). Return its file."""
        text = _REVISION.format(
            message=f"test {revision[:20]}",
            revision=revision,
            down=down,
            depends_on=depends_on,
            body=textwrap.indent(textwrap.dedent(body).strip(), "    "),
            undo=textwrap.indent(textwrap.dedent(undo).strip(), "    "),
        )
        path = self.versions / f"{revision[:40]}_test.py"
        path.write_text(text)
        return path

    def change_env(self, replacements: Mapping[str, str]) -> None:
        """Replace parts of env.py, each of which must be there exactly once."""
        text = self.env.read_text()
        for old, new in replacements.items():
            assert text.count(old) == 1, f"{text.count(old)} times in env.py: {old}"
            text = text.replace(old, new)
        self.env.write_text(text)
