"""Small Alembic applications, written by a test: an ini file, an env.py, and revisions from their bodies."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from replica.databases import AppDatabase

INI = """[alembic]
script_location = migrations
path_separator = os
"""

ENV = """import os

import sqlalchemy as sa

from alembic import context

engine = sa.create_engine(os.environ["DATABASE_URL"], poolclass=sa.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""

_REVISION = '''"""{name}"""

import sqlalchemy as sa

from alembic import op

revision = {name!r}
down_revision = {down!r}
branch_labels = None
depends_on = {depends_on!r}


def upgrade():
{upgrade}


def downgrade():
    pass
'''


@dataclasses.dataclass(frozen=True)
class Revision:
    """One revision: what its upgrade does, with `op` and `sa`. `down` None is: the one before it in the list."""

    name: str
    upgrade: str
    down: str | tuple[str, ...] | None = None
    depends_on: str | None = None


def write(directory: Path, revisions: Sequence[Revision], *, env: str = ENV) -> Path:
    """Write an application, whose revisions so far are replaced.

    Args:
        directory: Where to; made if it is missing.
        revisions: In order. The first has nothing before it.
        env: Another env.py.

    Returns:
        The same directory.
    """
    versions = directory / "migrations" / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    for path in versions.glob("*.py"):
        path.unlink()
    (directory / "alembic.ini").write_text(INI)
    (directory / "migrations" / "env.py").write_text(env)
    before: str | None = None
    for revision in revisions:
        text = _REVISION.format(
            name=revision.name,
            down=before if revision.down is None else revision.down,
            depends_on=revision.depends_on,
            upgrade=textwrap.indent(textwrap.dedent(revision.upgrade).strip(), "    "),
        )
        (versions / f"{revision.name[:40]}.py").write_text(text)
        before = revision.name
    return directory


def with_app(database: AppDatabase, directory: Path, revisions: Sequence[Revision], *, env: str = ENV) -> AppDatabase:
    """Return a database whose application is a small one, written to `directory`."""
    return dataclasses.replace(database, application=write(directory, revisions, env=env))
