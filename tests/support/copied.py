"""A copy of a database in the same server, in which a repair may work, and what the modules make of it."""

from __future__ import annotations

from typing import Any

from replica.databases import AppDatabase
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.stacks import application_options, database_options, witness_of


class Copied:
    """A database, and a copy of it."""

    def __init__(self, database: AppDatabase) -> None:
        """Make the copy of `database`, once nobody is connected to it."""
        self.database = database
        self.name = f"{database.name}_copy"
        self.server = Witness(database.server.conninfo())
        self.remove()
        witness_of(database).wait_until_alone()
        self.server.execute(f"create database {self.name} template {database.name} owner {database.user}")

    @property
    def witness(self) -> Witness:
        """An independent look at the copy."""
        return Witness(self.database.server.conninfo(self.name))

    @property
    def in_use(self) -> dict[str, Any]:
        """Which database is in use, read without the product's code."""
        original = witness_of(self.database)
        return {
            "oid": original.value("select oid::bigint from pg_database where datname = current_database()"),
            "system_identifier": original.value("select system_identifier::text from pg_control_system()"),
        }

    def options(self, **more: Any) -> dict[str, Any]:
        """Return the options of modules for the copy."""
        return {
            "database": database_options(self.database, name=self.name),
            "application": application_options(self.database, redirect=self.name),
            **more,
        }

    def repair(self, **more: Any) -> dict[str, Any]:
        """Run `alembic_repair` on it, which must succeed."""
        done = run_module("alembic_repair", self.options(**{"in_use": self.in_use, **more}))
        assert "failed" not in done, done
        return done

    def migrate(self, done: dict[str, Any]) -> list[str]:
        """Apply the revisions after a repair, to the head; return what was not made anew as it was."""
        applied = run_module("alembic_migrate", self.options())
        assert "failed" not in applied, applied
        assert applied["steps"] == done["revisions"]
        assert run_module("alembic_status", self.options())["verdict"] == "AT_HEAD"
        seen = run_module("pg_catalog", {"database": self.options()["database"], "made_anew": done["removed"]})
        assert "failed" not in seen, seen
        assert seen["invalid_indexes"] == []
        unlike: list[str] = seen["not_made_anew"]
        return unlike

    def remove(self) -> None:
        """Drop the copy."""
        self.server.execute(f"drop database if exists {self.name} with (force)")
