"""The replica as containers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from replica.application import BROKEN, ENCODED, HEAD, State
from replica.docker import OWNER, SERVICES, DockerReplica
from replica.engine import containers
from replica.errors import ReplicaError
from replica.expect import REPLACEMENTS, UNENCODED
from replica.seed import Size
from tests.replica import behaviour
from tests.support.waiting import wait_until

pytestmark = pytest.mark.docker

SMALL = Size(songs=120, rules=120)
AWKWARD_PASSWORD = "m%40rk:er/@ 'x' \"y\" \\ ä#?&=$1"
VERSION = "select version_num from alembic_version"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerReplica]:
    """A replica in the state of 2025-10-21, with an awkward password."""
    directory = tmp_path_factory.mktemp("broken")
    replica = DockerReplica(f"replica_broken_{os.getpid()}", directory=directory, password=AWKWARD_PASSWORD)
    yield replica.up(data=SMALL, port=0)
    replica.down()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerReplica]:
    """A replica at head, beside the broken one."""
    replica = DockerReplica(f"replica_healthy_{os.getpid()}", directory=tmp_path_factory.mktemp("healthy"))
    yield replica.up(healthy=True, data=SMALL, port=0)
    replica.down()


@pytest.mark.parametrize("check", behaviour.HEALTHY, ids=lambda check: check.__name__)
def test_healthy(healthy: DockerReplica, check: behaviour.Check) -> None:
    """All that users do works, through the proxy."""
    check(healthy.web)


def test_incident_answers_500_with_the_missing_column_in_the_log(broken: DockerReplica) -> None:
    """What users saw on 2025-10-21, and what `docker logs` said."""
    behaviour.is_broken(broken.web)
    for service in ("aiproxysrv", "celery-worker"):
        # Celery stores a failure, which the API waits for, before it writes it to its log.
        wait_until(
            lambda service=service: b"column songs.sketch_id does not exist" in broken.container(service).logs(),
            f"the log of {service} says it",
        )
    assert broken.query(VERSION) == BROKEN


def test_containers_are_those_of_production(broken: DockerReplica) -> None:
    """Names, Compose labels, health, restart policies; the database's port is not published, the proxy's is."""
    for service in SERVICES:
        container = broken.container(service)
        assert container.name == f"{broken.prefix}-{service}-1"
        assert container.labels["com.docker.compose.project"] == broken.prefix
        assert container.labels["com.docker.compose.service"] == service
        assert container.attrs["State"]["Health"]["Status"] == "healthy"
        assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        published = {port for port, bound in container.ports.items() if bound}
        assert published == ({"443/tcp"} if service == "proxy" else set())
    assert broken.container("proxy").ports["443/tcp"][0]["HostIp"] == "127.0.0.1"
    tools = broken.execute("aiproxysrv", ["sh", "-c", "command -v psql pg_dump"])
    assert (tools.returncode, tools.stdout) == (127, "")
    python = broken.execute("aiproxysrv", ["python3", "-c", "import sys; print(sys.prefix)"])
    assert python.stdout.strip() == "/opt/venv"


def test_the_database_is_like_the_official_images(broken: DockerReplica) -> None:
    """The application's user is the superuser, needs no password inside and needs it from other containers."""
    assert broken.query("select rolsuper from pg_roles where rolname = 'aiuser'") == "t"
    connect = "import os, psycopg, sys; psycopg.connect(os.environ['DATABASE_URL'].replace('+psycopg', ''))"
    assert broken.execute("aiproxysrv", ["python3", "-c", connect]).returncode == 0
    without = "import psycopg; psycopg.connect('host=postgres user=aiuser dbname=aiproxy')"
    refused = broken.execute("aiproxysrv", ["python3", "-c", without])
    assert refused.returncode == 1
    assert "no password supplied" in refused.stderr


def test_no_secret_is_left_on_this_machine(broken: DockerReplica) -> None:
    """The directory holds certificates and the inventory; neither the password nor the server's key."""
    assert {path.name for path in broken.directory.iterdir()} == {"ca.pem", "server.pem", "port", "inventory.yml"}
    for path in broken.directory.iterdir():
        assert AWKWARD_PASSWORD not in path.read_text()


def test_inventory_names_everything(broken: DockerReplica) -> None:
    """The file that is left is the inventory; what it names is there."""
    assert yaml.safe_load(broken.inventory_file.read_text()) == broken.inventory()
    host = broken.inventory()["prod"]["hosts"]["production-server"]
    stack = host["recovery_stack"]
    for container in (stack["database"], stack["app"], *stack["services"]):
        assert broken.client.containers.get(container["container"]).status == "running"
    assert (host["recovery_stack_name"], stack["expect"]["head"]) == ("prod", HEAD)
    assert Path(host["recovery_http_ca"]).is_file()


def test_acceptance_2_plain_alembic_upgrade_head_exits_0_and_moves_nothing(broken: DockerReplica) -> None:
    """The seed's Schritt 3 in the running container, as typed; then the way by hand that works, and a restart."""
    before = broken.query(REPLACEMENTS)
    assert int(broken.query(UNENCODED)) > 0
    result = broken.alembic("upgrade", "head")
    assert result.returncode == 0
    assert f"Running upgrade {ENCODED} -> {HEAD}, add_song_sketches_table" in result.stderr
    assert broken.query(VERSION) == BROKEN
    assert broken.query("select coalesce(to_regclass('song_sketches')::text, 'missing')") == "missing"
    assert (broken.query(REPLACEMENTS), broken.query(UNENCODED)) == (before, "0")
    behaviour.is_broken(broken.web)
    for arguments in (("stamp", ENCODED), ("upgrade", "head")):
        assert broken.alembic(*arguments).returncode == 0
    for service in ("aiproxysrv", "celery-worker"):
        broken.container(service).restart()
    broken.web.wait("/api/v1/songs", seconds=120)
    behaviour.songs_are_listed(broken.web)
    wait_until(lambda: broken.web.request("/api/v1/worker").status == 200, "the worker is up again, too")
    behaviour.worker_answers(broken.web)


def test_rewritten_and_strict_the_rows_are_encoded_and_the_api_restarts_in_a_loop(tmp_path: Path) -> None:
    """Both at once: the worker has migrated at its start, and the API exits on a schema that does not fit."""
    replica = DockerReplica(f"replica_strict_{os.getpid()}", directory=tmp_path / "state")
    try:
        replica.up(variant=State.REWRITTEN, strict_start=True, data=SMALL, port=0)
        assert f"Running upgrade {BROKEN}".encode() in replica.container("celery-worker").logs()
        assert (replica.query(VERSION), replica.query(UNENCODED)) == (BROKEN, "0")
        restarts = replica.container("aiproxysrv").attrs["RestartCount"]
        assert restarts >= 1
        assert b"the database lacks song_sketches, songs.sketch_id" in replica.container("aiproxysrv").logs()
        assert replica.web.request("/api/v1/health").status in (502, 504)
        wait_until(
            lambda: replica.container("aiproxysrv").attrs["RestartCount"] > restarts,
            "the API is started again and again",
        )
        with pytest.raises(ReplicaError, match="there already"):
            replica.up()
    finally:
        replica.down()
    assert leftovers(replica) == []
    replica.down()


def test_what_belongs_to_somebody_else_is_left_alone(healthy: DockerReplica, tmp_path: Path) -> None:
    """Neither up nor down touch a container that has one of the names and was made by others."""
    image = healthy.container("redis").image
    theirs = healthy.client.containers.create(image, ["true"], name=f"replica_theirs_{os.getpid()}-redis-1")
    replica = DockerReplica(f"replica_theirs_{os.getpid()}", directory=tmp_path / "state")
    try:
        with pytest.raises(ReplicaError, match="belongs to somebody else"):
            replica.up(port=0)
        replica.down()
        assert leftovers(replica) == [theirs.name]
    finally:
        theirs.remove()


def test_command_line(healthy: DockerReplica, root: Path) -> None:
    """Status and inventory, as typed; a replica that is not there."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "replica", "docker", *arguments, "--dir", str(healthy.directory)]
        return subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)

    status = yaml.safe_load(command("status", "--prefix", healthy.prefix).stdout)
    assert status["songs"] == 200
    assert set(status["containers"].values()) == {"running healthy"}
    assert yaml.safe_load(command("inventory", "--prefix", healthy.prefix).stdout) == healthy.inventory()
    again = command("up", "--prefix", healthy.prefix)
    assert again.returncode == 1
    assert f"docker down --prefix {healthy.prefix}" in again.stderr


def leftovers(replica: DockerReplica) -> list[str]:
    """Names of whatever is left of a replica."""
    client = replica.client
    things = [
        *containers(client, name=f"{replica.prefix}-"),
        *containers(client, label=f"{OWNER}={replica.prefix}"),
        *client.networks.list(names=[replica.network]),
        *client.volumes.list(filters={"name": replica.volume}),
    ]
    names = [str(thing.name) for thing in things]
    return names + ([str(replica.directory)] if replica.directory.exists() else [])


def test_an_engine_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(ReplicaError, match="there is no Docker Engine"):
        DockerReplica("replica_none")
