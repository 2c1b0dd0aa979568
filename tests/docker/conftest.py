"""A replica in containers for these tests, and a place to run the product from.

It goes with the last of them: the health checks of its containers keep a processor busy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replica.docker import DockerReplica
from replica.seed import Size
from replica.server import Server
from tests.docker.production import PASSWORD, Production, Site

SMALL = Size(songs=200, rules=200)


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """The replica in the state of 2025-10-21."""
    replica = DockerReplica(f"tests_{os.getpid()}", directory=tmp_path_factory.mktemp("replica"), password=PASSWORD)
    try:
        replica.up(data=SMALL, port=0)
        production = Production(replica)
        production.keep()
        yield production
    finally:
        replica.down()


@pytest.fixture
def production(made: Production) -> Production:
    """The replica, broken again."""
    made.reset()
    return made


@pytest.fixture(scope="module")
def server(made: Production, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for it, to be reached over ssh."""
    server = Server(made.replica, directory=tmp_path_factory.mktemp("server"))
    try:
        yield server.up()
    finally:
        server.down()


@pytest.fixture
def site(production: Production, tmp_path: Path) -> Site:
    """A place to run the product from, on this machine without ssh."""
    return Site(production, tmp_path, production.variables())


@pytest.fixture(scope="session")
def recap() -> Any:
    """Reads what `ansible-playbook` says of the host at the end."""

    def read(text: str) -> dict[str, int]:
        (line,) = (line for line in text.splitlines() if line.startswith("production-server") and "ok=" in line)
        return {name: int(number) for name, number in (word.split("=") for word in line.split() if "=" in word)}

    return read
