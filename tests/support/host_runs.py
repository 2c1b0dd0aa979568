"""Whole runs of the playbooks on a host replica, with what each task came to."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from replica.application import DATABASE, USER
from replica.host import HostReplica
from replica.seed import Size
from tests.support.ansible_run import ROOT, Run, run_playbook
from tests.support.evidence import Seen, Witness, files, started
from tests.support.waiting import wait_until

# What the replica's own processes write all the time; everything else must stay as it is while nobody acts.
_ALIVE = ("database", "logs", "broker", "control", "results", "worker.alive", "__pycache__", "records")
_Breakable = TypeVar("_Breakable", bound="BreakableRuns")
MODULES = {path.stem for path in (ROOT / "library").glob("*.py")}


@dataclass(frozen=True)
class Task:
    """What one task came to: `outcome` is ok, skipped, failed or unreachable."""

    name: str
    action: str
    outcome: str
    changed: bool
    message: str

    @property
    def is_module(self) -> bool:
        """Whether it does work on a target or asks one, unlike assert, debug, set_fact and the like."""
        return self.action.rpartition(".")[2] in MODULES


@dataclass(frozen=True)
class Outcome:
    """A run: exit code, output, and its tasks in order."""

    run: Run
    tasks: list[Task]

    @property
    def code(self) -> int:
        """The exit code."""
        return self.run.code

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.run.text

    @property
    def words(self) -> str:
        """All that was printed, each run of white space as one blank: lines are wrapped anywhere."""
        return " ".join(self.run.text.split())

    @property
    def done(self) -> list[Task]:
        """The tasks that were not skipped."""
        return [task for task in self.tasks if task.outcome != "skipped"]

    @property
    def changed(self) -> list[str]:
        """The names of the tasks that reported a change, without their role."""
        return [task.name.rpartition(" : ")[2] for task in self.tasks if task.changed]

    @property
    def failure(self) -> str:
        """The message of the last task that failed."""
        failed = [task.message for task in self.tasks if task.outcome in ("failed", "unreachable")]
        assert failed, self.text
        return " ".join(failed[-1].split())

    def recap(self) -> dict[str, int]:
        """The counts of the recap of the only host."""
        line = re.findall(r"^\S+\s+: (ok=.*)$", self.run.out, re.MULTILINE)
        assert len(line) == 1, self.text
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line[0])}


@dataclass(frozen=True)
class Everything:
    """What a run could have touched: database, processes, files."""

    database: Seen
    processes: dict[int, tuple[str, float]]
    files: dict[str, tuple[int, int, int, str]]


AUTOVACUUM = "select pid from pg_stat_activity where backend_type in ('autovacuum launcher', 'autovacuum worker')"


class HostRuns:
    """Runs playbooks on one host replica; their files are in the replica's directory."""

    def __init__(self, replica: HostReplica) -> None:
        self.replica = replica
        self.target_state = replica.directory / "recovery-target"
        self.controller_state = replica.directory / "recovery-controller"
        self._numbers = itertools.count(1)
        self._records = replica.directory / "records"
        self._records.mkdir(exist_ok=True)
        # The transaction counter then tells whether anybody has written.
        replica.postgres.execute(sql.SQL("alter system set autovacuum = off"))
        replica.postgres.execute(sql.SQL("select pg_reload_conf()"))
        wait_until(lambda: not replica.postgres.execute(sql.SQL(AUTOVACUUM)), "autovacuum has ended")

    @property
    def witness(self) -> Witness:
        """An independent look at the application's database, as superuser."""
        return Witness(self.replica.postgres.conninfo(DATABASE))

    def look(self) -> Everything:
        """All that a run could touch."""
        return Everything(self.witness.look(), self.processes(), files(self.replica.directory, without=_ALIVE))

    def processes(self) -> dict[int, tuple[str, float]]:
        """Command line and time of start of each process of the application."""
        return started(self.replica.directory / "supervisord.pid")

    def play(
        self,
        *arguments: str | Path,
        playbook: str = "recover.yml",
        inventory: Path | None = None,
        limit: str | None = "demo",
        variables: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> Outcome:
        """Run a playbook and return what came of it.

        Args:
            arguments: Further arguments of ansible-playbook.
            playbook: Which one, seen from the checkout.
            inventory: Instead of the replica's own.
            limit: What -l names; None leaves it out.
            variables: Extra variables.
            environment: Further environment variables.
            cwd: Where the command is given.
        """
        record = self._records / f"{next(self._numbers)}.jsonl"
        record.unlink(missing_ok=True)
        places = {
            "recovery_directory": str(self.target_state),
            "recovery_controller_directory": str(self.controller_state),
        }
        plugins = os.pathsep.join([str(ROOT / "callback_plugins"), str(ROOT / "tests" / "support" / "callbacks")])
        run = run_playbook(
            cwd / playbook if (cwd / playbook).exists() else playbook,
            "-i",
            inventory or self.replica.inventory_file,
            *(["-l", limit] if limit else []),
            "-e",
            json.dumps({**places, **(variables or {})}),
            *arguments,
            cwd=cwd,
            environment={
                "ANSIBLE_CALLBACK_PLUGINS": plugins,
                "ALEMBIC_RECOVERY_RECORD": str(record),
                **(environment or {}),
            },
            timeout=1200,
        )
        assert self.replica.password not in run.text
        lines = record.read_text().splitlines() if record.exists() else []
        tasks = [
            Task(item["task"], item["action"], item["outcome"], item["changed"], item["msg"])
            for item in map(json.loads, lines)
        ]
        return Outcome(run, tasks)

    def recover(self, *arguments: str | Path, **keywords: Any) -> Outcome:
        """Run recover.yml, confirmed."""
        variables = {"recovery_confirm": "aiproxy@demo", **keywords.pop("variables", {})}
        return self.play(*arguments, variables=variables, **keywords)

    def backups(self, side: Path) -> list[Path]:
        """The files of backups on one side, `target_state` or `controller_state`."""
        return sorted((side / "demo" / "backups").glob("*"))


class BreakableRuns(HostRuns):
    """Runs on a replica that can be broken again."""

    def server(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the server, not the application's database: it may be closed."""
        with psycopg.connect(self.replica.postgres.conninfo(), autocommit=True) as connection:
            answer = connection.execute(statement.encode())
            return answer.fetchall() if answer.description else []

    def databases(self) -> list[tuple[Any, ...]]:
        """Names of the application's databases, and whether they are open."""
        return self.server("select datname, datallowconn from pg_database where datname ~ '^aiproxy' order by 1")

    def running(self) -> set[str]:
        """The services that run, or are just being started."""
        lines = self.replica.supervisorctl("status").stdout.splitlines()
        return {line.split()[0] for line in lines if "RUNNING" in line or "STARTING" in line}

    def keep(self) -> None:
        """Keep the database as it is now."""
        self.replica.supervisorctl("stop", "all")
        self.witness.wait_until_alone()
        self.replica.postgres.create_database("as_it_was_made", USER, DATABASE)
        self.start()

    def reset(self) -> None:
        """Make the database and the services as they were kept."""
        self.replica.supervisorctl("stop", "all")
        for name, _open in self.databases():
            self.replica.postgres.drop_database(name)
        self.replica.postgres.create_database(DATABASE, USER, "as_it_was_made")
        self.start()

    def start(self) -> None:
        """Start the services, and wait until all their processes are there.

        Only gunicorn's child gives an answer; and while Celery starts, it has a child for a moment (`uname`).
        """
        alive = self.replica.directory / "worker.alive"
        alive.unlink(missing_ok=True)
        self.replica.supervisorctl("start", "all")
        self.replica.client.wait("/api/v1/health", seconds=120)
        wait_until(alive.exists, "the worker takes tasks")


@contextlib.contextmanager
def kept(directory: Path, kind: type[_Breakable]) -> Iterator[_Breakable]:
    """A small replica as on 2025-10-21, kept so that `reset` makes it so again; it goes in the end."""
    replica = HostReplica(directory / "replica")
    try:
        replica.up(data=Size(songs=100, rules=100))
        runs = kind(replica)
        runs.keep()
        yield runs
    finally:
        replica.down()
