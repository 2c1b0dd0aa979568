"""A replica in containers for many tests: broken again in a moment, with runs of the product on it."""

from __future__ import annotations

import copy
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from replica.application import DATABASE, USER
from replica.docker import SERVICES, DockerReplica
from tests.docker.observation import ask, observe
from tests.support.ansible_run import Run, run_playbook

#: Part of the password; nobody else writes it anywhere.
MARKER = f"kEy-{secrets.token_hex(6)}"
#: Percent signs, quotes and a backslash are what passwords break programs with.
PASSWORD = f"{MARKER} %40:/@'\"\\ ä#?&=$1"
#: Marks tests that may run beside test_recover_docker.py, on a replica of their own.
BESIDE = pytest.mark.xdist_group("docker beside")
_MASTER = "as_it_was_made"
_POLICY = {"Name": "unless-stopped"}


@dataclass
class Production:
    """A replica, and a copy of its database as it was made, in the same server."""

    replica: DockerReplica

    def keep(self) -> None:
        """Keep the database as it is now for `reset()`."""
        self._copy(DATABASE, _MASTER)

    def reset(self) -> None:
        """Make everything as it was kept: the database, no other beside it, and all containers running."""
        for service in SERVICES:
            container = self.replica.container(service)
            if container.attrs["HostConfig"]["RestartPolicy"]["Name"] != _POLICY["Name"]:
                container.update(restart_policy=_POLICY)
            if container.attrs["State"]["Status"] != "running":
                container.start()
        self.wait_for_database()
        for name in self.beside():
            ask(self.replica, f"drop database {name} with (force)", "postgres")
        self._copy(_MASTER, DATABASE)

    def beside(self) -> dict[str, bool]:
        """The databases that runs have made or put aside, by name, and whether one can connect to them."""
        rows = ask(
            self.replica, f"select datname, datallowconn from pg_database where datname ~ '^{DATABASE}_'", "postgres"
        )
        return {name: is_open == "t" for name, is_open in (row.split("|") for row in rows.splitlines())}

    def wait_for_database(self) -> None:
        """Wait until PostgreSQL answers."""
        waiting = ["bash", "-c", f"until pg_isready -q -U {USER}; do sleep 0.1; done"]
        assert self.replica.execute("postgres", waiting).returncode == 0

    def _copy(self, source: str, target: str) -> None:
        for statement in (
            f"drop database if exists {target} with (force)",
            f"alter database {source} allow_connections false",
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{source}'",
            f"create database {target} template {source}",
            f"alter database {source} allow_connections true",
            f"alter database {target} allow_connections true",
        ):
            ask(self.replica, statement, "postgres")

    def options(self, **more: Any) -> dict[str, Any]:
        """The options `database` and `application` of the modules, and more."""
        stack = self.variables()["recovery_stack"]
        return {"database": stack["database"], "application": stack["app"], **more}

    def run_id(self, what: str) -> str:
        """A name for a run: containers are named after it, and there may be other tests on this engine."""
        return f"{self.replica.prefix}-{what}"

    def variables(self) -> dict[str, Any]:
        """The variables of the host, for this machine without ssh."""
        return copy.deepcopy(self.replica.inventory()["prod"]["hosts"]["production-server"])

    def observe(self, *directories: Path) -> dict[str, Any]:
        """What is so now."""
        return observe(self.replica, directories)


@dataclass
class Site:
    """Where one test runs the product from: an inventory, directories of its own, and variables of the environment."""

    production: Production
    directory: Path
    variables: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        """Where the target keeps backups."""
        return self.directory / "target"

    @property
    def controller(self) -> Path:
        """Where the controller keeps copies of them."""
        return self.directory / "controller"

    def play(self, playbook: str, *arguments: str) -> Run:
        """Run a playbook on the group prod."""
        directories = {
            "recovery_directory": str(self.target),
            "recovery_controller_directory": str(self.controller),
        }
        inventory = self.directory / "inventory.yml"
        hosts = {"production-server": {**directories, **self.variables}}
        inventory.write_text(yaml.safe_dump({"prod": {"hosts": hosts}}))
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        return run_playbook(
            playbook,
            *("-i", inventory, "-l", "prod"),
            *arguments,
            # What Ansible keeps at home must not be shared with other runs, and can be looked through.
            environment={"HOME": str(home), **self.environment},
            timeout=1200,
        )

    def recover(self, *arguments: str) -> Run:
        """Run recover.yml, confirmed."""
        return self.play("recover.yml", "-e", f"recovery_confirm={DATABASE}@prod", *arguments)
