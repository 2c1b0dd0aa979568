"""For the tests of all scenarios: the replica, hosts to ask, and what was so before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from replica.docker import DockerReplica
from replica.server import Server
from tests.docker.observation import observe

EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])


@pytest.fixture(scope="session")
def replica() -> DockerReplica:
    """The containers of production."""
    return DockerReplica(os.environ["REPLICA_PREFIX"])


@pytest.fixture(scope="session")
def server(replica: DockerReplica) -> Host:
    """The server that Ansible logs in to, asked as root."""
    return testinfra.get_host(f"docker://{Server(replica).name}")


@pytest.fixture(scope="session")
def server_directory(replica: DockerReplica) -> str:
    """Where the server keeps backups."""
    return Server(replica).backups


@pytest.fixture(scope="session")
def controller_directory() -> Path:
    """Where this machine keeps copies of them."""
    return EPHEMERAL / "controller"


@pytest.fixture(scope="session")
def database(replica: DockerReplica) -> Host:
    """The database's container."""
    return testinfra.get_host(f"docker://{replica.name('postgres')}")


@pytest.fixture(scope="session")
def worker(replica: DockerReplica) -> Host:
    """The worker's container."""
    return testinfra.get_host(f"docker://{replica.name('celery-worker')}")


@pytest.fixture(scope="session")
def before() -> dict[str, Any]:
    """What was so when the scenario had been created."""
    seen: dict[str, Any] = json.loads((EPHEMERAL / "before.json").read_text())
    return seen


@pytest.fixture(scope="session", autouse=True)
def now(replica: DockerReplica, controller_directory: Path) -> dict[str, Any]:
    """What is so now, before a test may add something."""
    return observe(replica, [controller_directory])
