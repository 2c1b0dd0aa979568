"""What both files share: a PostgreSQL, databases of the application in it, an ssh server, and whole runs."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from replica import seed
from replica.application import USER
from replica.databases import AppDatabase, DatabaseFactory
from replica.docker import DockerReplica
from replica.fixtures import broken_database, databases, embedded_postgres
from tests.faults.injections import SshServer, described, small_disk
from tests.support.ansible_run import Run, run_playbook

__all__ = ["broken_database", "databases", "embedded_postgres"]

MEGABYTES = 30
# Sockets: their paths must be short.
_CONTROL_PATHS = Path(tempfile.gettempdir()) / f"faults-{os.getpid()}"


@pytest.fixture(scope="session", autouse=True)
def control_paths() -> Iterator[None]:
    """Leave nothing of ssh's shared connections behind."""
    yield
    shutil.rmtree(_CONTROL_PATHS, ignore_errors=True)


@pytest.fixture(scope="session")
def bulky(databases: DatabaseFactory) -> AppDatabase:
    """A database whose dump takes a second: time enough to do something to it. Tests leave it as it is."""
    database = databases.create()
    database.server.load(database.name, [seed._bulk(MEGABYTES)], role=USER)
    return database


@dataclass
class Place:
    """Where the backups of one test go, and how `pg_backup` is called there; runs are numbered."""

    directory: Path

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def arguments(self, database: AppDatabase, **more: Any) -> dict[str, Any]:
        """The options of `pg_backup`."""
        return {
            "database": described(database),
            "directory": str(self.directory),
            "run_id": f"run-{next(self._numbers)}",
            **more,
        }

    def names(self) -> list[str]:
        """What is there."""
        return sorted(path.name for path in self.directory.iterdir()) if self.directory.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place for backups."""
    return Place(tmp_path / "backups")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system with so many megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    with small_disk_factory(tmp_path) as make:
        yield make


class small_disk_factory:  # noqa: N801 (used as a context manager)
    """Makes file systems, and removes them together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Any] = []

    def __enter__(self) -> Callable[[int], Path]:
        return self._make

    def _make(self, megabytes: int) -> Path:
        disk = small_disk(self._directory / f"disk-{len(self._made)}", megabytes)
        self._made.append(disk)
        return disk.__enter__()

    def __exit__(self, *error: object) -> None:
        for disk in self._made:
            disk.__exit__(None, None, None)


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An OpenSSH server on the loopback address; `tools/ensure-package sshd` sees to it that there is one."""
    if not shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"):
        message = "there is no sshd on this machine: run tools/ensure-package sshd"
        if os.environ.get("RECOVERY_TESTS_STRICT"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    server = SshServer(tmp_path_factory.mktemp("ssh"))
    yield server
    server.stop()


@dataclass
class Site:
    """An inventory for a database of the application without services, and the directories of a run."""

    directory: Path
    database: AppDatabase

    def __post_init__(self) -> None:
        self.target = self.directory / "target"
        self.controller = self.directory / "controller"
        self.home = self.directory / "home"
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def backups(self) -> tuple[Path, Path]:
        """Where the target and where the controller keep theirs."""
        return self.target / "site" / "backups", self.controller / "site" / "backups"

    def stack(self) -> dict[str, Any]:
        """The description of the stack."""
        environment = self.directory / "app.env"
        environment.touch(mode=0o600)
        environment.write_text(f"DATABASE_URL={self.database.url}\n")
        return {
            "database": described(self.database),
            "app": {
                "runtime": "host",
                "workdir": str(self.database.application),
                "python": sys.executable,
                "environment_file": str(environment),
            },
            "services": [],
        }

    def inventory(self, connection: dict[str, Any] | None = None, **variables: Any) -> Path:
        """Write it; by default for this machine without ssh."""
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        found = {
            **(connection or local),
            "recovery_stack_name": "site",
            "recovery_stack": self.stack(),
            "recovery_directory": str(self.target),
            "recovery_controller_directory": str(self.controller),
            **variables,
        }
        path = self.directory / "inventory.yml"
        path.write_text(yaml.safe_dump({"site": {"hosts": {"site-server": found}}}))
        return path

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a run that keep all that Ansible leaves behind in one place."""
        return {
            "HOME": str(self.home),
            "ANSIBLE_CONFIG": str(Path(__file__).resolve().parents[2] / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(self.home / "local-temp"),
            "ANSIBLE_REMOTE_TEMP": str(self.home / "remote-temp"),
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(_CONTROL_PATHS),
        }

    def recover(self, *arguments: str, inventory: Path | None = None, **keywords: Any) -> Run:
        """Run recover.yml, confirmed."""
        confirmed = ["-e", f"recovery_confirm={self.database.name}@site"]
        where = ["-i", str(inventory or self.inventory()), "-l", "site"]
        environment = {**self.environment, **keywords.pop("environment", {})}
        keywords.setdefault("timeout", 1200)
        return run_playbook("recover.yml", *where, *confirmed, *arguments, environment=environment, **keywords)

    def play(self, tasks: list[dict[str, Any]], connection: dict[str, Any] | None = None, **keywords: Any) -> Run:
        """Run a few tasks of one's own with the product's plugins."""
        book = self.directory / "play.yml"
        book.write_text(yaml.safe_dump([{"hosts": "site", "gather_facts": False, "tasks": tasks}]))
        environment = {**self.environment, **keywords.pop("environment", {})}
        return run_playbook(book, "-i", self.inventory(connection), "-l", "site", environment=environment, **keywords)


@pytest.fixture
def site(tmp_path: Path, broken_database: AppDatabase) -> Site:
    """A site in the state of 2025-10-21."""
    return Site(tmp_path / "site", broken_database)


@pytest.fixture(scope="package")
def docker_replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerReplica]:
    """The replica as containers, in the state of 2025-10-21, with a password that can be found again."""
    # By its process: another run of these tests may use the same engine.
    directory = tmp_path_factory.mktemp("docker") / "replica"
    replica = DockerReplica(f"faults_{os.getpid()}", directory=directory, password=MARKED_PASSWORD)
    try:
        yield replica.up(data=seed.Size(songs=200, rules=200), port=0)
    finally:
        replica.down()


#: Part of every password here; nobody else writes it anywhere.
MARKER = "kEy-mArKeR-7f3a"
#: Percent signs, quotes and a backslash are what passwords break programs with.
MARKED_PASSWORD = f"{MARKER}%40s\"q'\\"
