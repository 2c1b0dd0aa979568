"""Small real applications with Alembic, each laid out in a way of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from psycopg import sql

from replica.postgres import EmbeddedPostgres
from tests.support.ansible_run import Run, run_playbook
from tests.support.evidence import Witness
from tests.support.modules import run_module

ROLE = "owner"
#: Each application meets a password that a URL, and an ini file, give a meaning to (trap 18).
PASSWORD = "50%40:w@rd/%(here)s#?"

_REVISION = '''"""step {revision}"""

import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down!r}
branch_labels = {labels!r}
depends_on = {depends_on!r}


def upgrade():
{body}


def downgrade():
{undo}
'''

#: As `alembic init` writes it, in short. What a layout needs is put in place of the words in angle brackets.
ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool, text

URL = os.environ["DATABASE_URL"]
<before>


def migrate(connection, **options):
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=URL, literal_binds=True<options>)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(URL, poolclass=pool.NullPool).connect() as connection:
        migrate(connection<options>)
"""


@dataclass
class LayoutApp:
    """One application, its database, and how its own command is called.

    Attributes:
        directory: The application's working directory.
        server: The server of its database.
        database: The name of its database.
        command: The application's own command for migrations, up to the name of what it is to do.
        options: Keys of the option `application` that this layout needs.
        environment: The variables that it needs, beside the database's address.
    """

    directory: Path
    server: EmbeddedPostgres
    database: str
    command: Sequence[str] = (sys.executable, "-m", "alembic")
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def url(self, driver: str = "psycopg", database: str | None = None, **parameters: str) -> str:
        """Return the address of the database for SQLAlchemy."""
        more = "".join(f"&{name}={quote(value)}" for name, value in parameters.items())
        return (
            f"postgresql+{driver}://{ROLE}:{quote(PASSWORD, safe='')}@/{database or self.database}"
            f"?host={self.server.socket_dir}{more}"
        )

    def write(self, path: str, text: str) -> Path:
        """Write a file of the application."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))
        return target

    def ini(self, sections: Mapping[str, str] | None = None) -> None:
        """Write alembic.ini; `sections` has the directory of the scripts by section."""
        places = sections or {"alembic": "migrations"}
        text = "".join(f"[{name}]\nscript_location = %(here)s/{place}\n\n" for name, place in places.items())
        self.write("alembic.ini", text)

    def env(self, before: str = "", options: str = "", *, place: str = "migrations", text: str = ENV) -> None:
        """Write env.py: `before` is done first, `options` are given to `context.configure()`."""
        more = f", {options}" if options else ""
        whole = text.replace("<before>", textwrap.dedent(before)).replace("<options>", more)
        self.write(f"{place}/env.py", whole)

    def revision(
        self,
        revision: str,
        down: str | tuple[str, ...] | None,
        body: str | None = None,
        *,
        undo: str = "pass",
        labels: tuple[str, ...] | None = None,
        depends_on: str | None = None,
        place: str = "migrations/versions",
    ) -> None:
        """Add a revision; it makes a table of its own name if it is not told anything else."""
        text = _REVISION.format(
            revision=revision,
            down=down,
            labels=labels,
            depends_on=depends_on,
            body=textwrap.indent(body or f"op.create_table('t_{revision}', sa.Column('id', sa.Integer))", "    "),
            undo=textwrap.indent(undo if body else f"op.drop_table('t_{revision}')", "    "),
        )
        self.write(f"{place}/{revision}.py", text)

    def chain(self, *names: str, place: str = "migrations/versions") -> None:
        """Add revisions, each on the one before it."""
        for number, name in enumerate(names):
            self.revision(name, names[number - 1] if number else None, place=place)

    def call(self, *arguments: str) -> str:
        """Run the application's own command, which must succeed; return what it printed."""
        environment = {**os.environ, "DATABASE_URL": self.url(), **self.environment}
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def arguments(self) -> dict[str, Any]:
        """The options of the modules."""
        return {
            "database": {
                "runtime": "host",
                "name": self.database,
                "user": ROLE,
                "password": PASSWORD,
                "unix_socket": str(self.server.socket_dir),
                "bin_dir": str(self.server.bin_dir),
            },
            "application": {
                "runtime": "host",
                "workdir": str(self.directory),
                "python": sys.executable,
                "environment": {"DATABASE_URL": self.url(), **self.environment},
                **self.options,
            },
        }

    def status(self, **more: Any) -> dict[str, Any]:
        """Run `alembic_status`, and require that it has written nothing."""
        before = self.witness.look()
        seen = run_module("alembic_status", {**self.arguments, "limit": "demo", **more})
        assert self.witness.look() == before
        assert PASSWORD not in str(seen)
        return seen

    def migrate(self, *, check: bool = False, **more: Any) -> dict[str, Any]:
        """Run `alembic_migrate`."""
        return run_module("alembic_migrate", {**self.arguments, "limit": "demo", **more}, check=check, diff=check)

    def play(self, place: Path, playbook: str = "recover.yml") -> Run:
        """Run a playbook, confirmed, on a stack of this application without services; files are in `place`."""
        arguments = self.arguments
        stack = {"database": arguments["database"], "app": arguments["application"], "services": []}
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "recovery_stack_name": "demo",
            "recovery_stack": stack,
        }
        inventory = place / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": {"demo": host}}}))
        variables = {
            "recovery_directory": str(place / "target"),
            "recovery_controller_directory": str(place / "controller"),
            "recovery_confirm": f"{self.database}@demo",
        }
        done = run_playbook(playbook, "-i", inventory, "-l", "demo", "-e", json.dumps(variables), timeout=500)
        assert PASSWORD not in done.text
        return done

    @property
    def witness(self) -> Witness:
        """An independent look at the database, as superuser."""
        return Witness(self.server.conninfo(self.database))

    def rows(self, table: str = "alembic_version") -> list[str]:
        """Return the rows of a version table, sorted."""
        return sorted(row[0] for row in self.witness.query(f"select version_num from {table}"))

    def tables(self, schema: str = "public") -> set[str]:
        """Return the names of a schema's tables that revisions have made."""
        query = f"select tablename from pg_tables where schemaname = '{schema}' and tablename like 't\\_%'"
        return {row[0] for row in self.witness.query(query)}

    def schemas(self, names: Iterable[str]) -> None:
        """Make schemas that belong to the application's role."""
        for name in names:
            statement = sql.SQL("create schema {} authorization {}").format(sql.Identifier(name), sql.Identifier(ROLE))
            self.server.execute(statement, self.database)
