"""A database with supervised services, and the modules that lock, fence, swap and settle it, for tests."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from ansible.module_utils.alembic_recovery import lock, naming
from psycopg import sql

from replica.databases import AppDatabase
from tests.support.modules import run_module
from tests.support.stacks import database_options
from tests.support.supervised import Supervised
from tests.support.waiting import wait_until

_NUMBERS = itertools.count(1)


def _run_id() -> str:
    began = datetime.datetime(2025, 10, 21, 3, 15, tzinfo=datetime.UTC) + datetime.timedelta(seconds=next(_NUMBERS))
    return f"{began:%Y%m%dT%H%M%SZ}-{id(object()) % 0xFFFFFF:06x}"


def kill_keeper(directory: Path) -> None:
    """Kill the keeper of a run, as the kernel does; it is gone afterwards, if it has not ended by itself before."""
    for pid in lock.keeper_pids(str(directory)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lock.keeper_pids(str(directory)), "the keeper is gone")


@dataclass
class FencedStack:
    """One database, services, and a place for runs."""

    database: AppDatabase
    supervised: Supervised
    runs: Path
    run_id: str = field(default_factory=_run_id)

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.runs / self.run_id

    def options(self, **more: Any) -> dict[str, Any]:
        """The options that these modules share."""
        return {
            "database": database_options(self.database),
            "services": [self.supervised.option(name) for name in ("api", "worker")],
            "run_id": self.run_id,
            **more,
        }

    def run(self, name: str, *, check: bool = False, **more: Any) -> dict[str, Any]:
        """Run a module with the stack's options, and with `run_directory`."""
        options = self.options(run_directory=str(self.directory), **more)
        if name.startswith("service_"):
            del options["database"]
        result = run_module(name, options, check=check)
        assert "Unsupported parameters" not in result.get("msg", ""), result
        return result

    def lock(self, **more: Any) -> dict[str, Any]:
        """Take the lock."""
        return self.run("recovery_lock", stack="demo", operator="anna", controller="laptop", **more)

    def unlock(self) -> dict[str, Any]:
        """Give it back."""
        return self.run("recovery_lock", state="absent")

    def record(self) -> dict[str, Any]:
        """The run's record."""
        found: dict[str, Any] = json.loads((self.directory / "record.json").read_text())
        return found

    def databases(self) -> dict[str, tuple[int, bool]]:
        """Object id and openness of all databases of this stack, by name, read independently."""
        with psycopg.connect(self.database.server.conninfo(), autocommit=True) as connection:
            rows = connection.execute(
                "select datname, oid::int, datallowconn from pg_database where datname ~ %s",
                [f"^{self.database.name}($|_)"],
            ).fetchall()
        return {name: (oid, is_open) for name, oid, is_open in rows}

    def kill_keeper(self) -> None:
        """Kill the keeper of the run; its lock goes, too."""
        kill_keeper(self.directory)
        wait_until(lambda: not self.lock_holders(), "the lock is gone")

    def lock_holders(self) -> list[str]:
        """Who holds an advisory lock in the server, by the session's name."""
        with psycopg.connect(self.database.server.conninfo(), autocommit=True) as connection:
            rows = connection.execute(
                "select a.application_name from pg_locks l join pg_stat_activity a using (pid) "
                "where l.locktype = 'advisory' and l.granted and a.application_name like %s",
                [f"alembic-recovery:{self.run_id}:%"],
            ).fetchall()
        return [row[0] for row in rows]

    def states(self) -> dict[str, str]:
        """What supervisord says of the programs."""
        lines = self.supervised.control("status").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if line.strip()}

    def admin(self, *statements: str) -> None:
        """Change something as superuser."""
        with psycopg.connect(self.database.server.conninfo(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def admin_in_database(self, *statements: str) -> None:
        """Change something in the application's database, as superuser."""
        conninfo = self.database.server.conninfo(self.database.name)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def copied(self) -> tuple[str, str]:
        """A copy of the database, made by hand, and both names of a swap: that of the copy, and that to be kept as."""
        new, old = (naming.database(self.database.name, kind, self.run_id) for kind in ("new", "old"))
        self.admin(f'create database "{new}" template "{self.database.name}" owner {self.database.user}')
        return new, old

    def tidy(self) -> None:
        """Take away what runs have made: keepers, copies, and a closed door."""
        for directory in self.runs.glob("*"):
            kill_keeper(directory)
        name, server = self.database.name, self.database.server
        for other in self.databases():
            if other != name:
                server.drop_database(other)
        if name in self.databases():
            server.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))

    def swap(self, *, check: bool = False, **more: Any) -> dict[str, Any]:
        """Run pg_swap."""
        options = {key: value for key, value in self.options(**more).items() if key != "services"}
        return run_module("pg_swap", options, check=check)
