"""A one-off container, asked from inside: it sees what the service's container sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.docker_cli import RUN_LABEL, DockerCli
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, collect
from docker.models.containers import Container

from tests.docker.production import BESIDE, MARKER, Production

pytestmark = [pytest.mark.docker, BESIDE]

LABEL = "org.alembic-recovery.tests"
# What a program can see of its container, as JSON.
LOOK = """
import json, os, pathlib
def lines(path): return pathlib.Path(path).read_text().splitlines()
mounts = [line.split() for line in lines('/proc/self/mountinfo')]
print(json.dumps({
    'environment': {name: value for name, value in os.environ.items() if name not in ('HOSTNAME', 'HOME')},
    'user': [os.getuid(), os.getgid(), sorted(os.getgroups())],
    'directory': os.getcwd(),
    'networks': sorted(os.listdir('/sys/class/net')),
    'names': sorted(line.split()[1] for line in lines('/etc/hosts') if '203.0.113' in line),
    'resolver': [line for line in lines('/etc/resolv.conf') if line.startswith('search')],
    'mounts': sorted([mount[4], mount[5].split(',')[0]] for mount in mounts if mount[4].startswith('/extra')),
    'read': pathlib.Path('/extra/files/note').read_text(),
    'terminal': [os.isatty(number) for number in (0, 1, 2)],
}))
"""
VARIABLES = {
    "PLAIN": "value",
    "PASSWORD": f"{MARKER} %40'\"\\ ä#?&=$1 $(id)",
    "EMPTY": "",
    "EQUALS": "a=b=c",
    "LINES": f"-----BEGIN-----\n{MARKER}\n# no comment\n-----END-----\n",
    "BLANKS": "  around  ",
    "QUOTED": '"quoted"',
    "HTTP_PROXY": "http://proxy.example:3128",
    "DOCKER_HOST": "tcp://elsewhere.example:2375",
    "PATH": "/opt/venv/bin:/usr/bin:/bin",
}


@pytest.fixture(scope="module")
def service(made: Production, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container with all that a one-off must take over, and all that it must not."""
    replica = made.replica
    client, prefix = replica.client, replica.prefix
    files = tmp_path_factory.mktemp("files")
    files.chmod(0o755)
    (files / "note").write_text("from this machine")
    labels = {LABEL: prefix, "com.docker.compose.project": "other", "com.docker.compose.service": "everything"}
    network = client.networks.create(f"{prefix}_second", labels=labels)
    volume = client.volumes.create(f"{prefix}_extra", labels=labels)
    container = client.containers.create(
        replica.container("aiproxysrv").image,
        ["bin/api"],
        name=f"{prefix}-everything-1",
        entrypoint=["/bin/false"],
        environment=VARIABLES,
        labels=labels,
        network=replica.network,
        volumes={
            str(files): {"bind": "/extra/files", "mode": "ro"},
            volume.name: {"bind": "/extra/volume", "mode": "rw"},
        },
        user="1234:1235",
        group_add=["1236"],
        working_dir="/opt",
        extra_hosts={"broker.example": "203.0.113.7"},
        dns_search=["internal.example"],
        ports={"8000/tcp": ("127.0.0.1", None)},
        restart_policy={"Name": "always"},
        healthcheck={"test": ["CMD", "false"], "interval": 10**9},
        hostname="everything",
        tty=True,
        stdin_open=True,
    )
    network.connect(container)
    try:
        yield container
    finally:
        container.remove(force=True)
        volume.remove()
        network.remove()


@pytest.fixture(scope="module")
def seen(service: Container, made: Production) -> dict[str, Any]:
    """What a program sees in a one-off like it."""
    runtime = DockerRuntime(DockerCli(), str(service.name), run_id=made.run_id("seen"))
    done = collect(runtime, ["python3", "-c", LOOK], act=True, purpose="look")
    assert done.rc == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", VARIABLES)
def test_environment(seen: dict[str, Any], name: str) -> None:
    assert seen["environment"][name] == VARIABLES[name]


def test_nothing_else_is_in_the_environment(seen: dict[str, Any], service: Container) -> None:
    assert seen["environment"].keys() == {pair.partition("=")[0] for pair in service.attrs["Config"]["Env"]}


def test_user_directory_and_names(seen: dict[str, Any]) -> None:
    assert seen["user"][:2] == [1234, 1235]
    assert 1236 in seen["user"][2]
    assert seen["directory"] == "/opt"
    assert seen["names"] == ["broker.example"]
    assert seen["resolver"] == ["search internal.example"]


def test_networks_and_mounts(seen: dict[str, Any]) -> None:
    assert seen["networks"] == ["eth0", "eth1", "lo"]
    assert seen["mounts"] == [["/extra/files", "ro"], ["/extra/volume", "rw"]]
    assert seen["read"] == "from this machine"


def test_no_terminal_although_the_service_has_one(seen: dict[str, Any], service: Container) -> None:
    assert service.attrs["Config"]["Tty"] is True
    assert seen["terminal"] == [False, False, False]


def test_the_service_itself_was_not_started(seen: dict[str, Any], service: Container) -> None:
    assert seen
    service.reload()
    assert service.status == "created"


def test_it_has_no_ports_policy_labels_or_check_and_ends_by_its_name(service: Container, made: Production) -> None:
    client = made.replica.client
    run_id = made.run_id("inspected")
    runtime = DockerRuntime(DockerCli(), str(service.name), run_id=run_id)
    name = f"alembic-recovery-{run_id}-migrate"
    with runtime.converse(["sh", "-c", "echo ready; sleep 300"], act=True, purpose="migrate") as conversation:
        assert conversation.read_line(60) == "ready"
        found = client.api.inspect_container(name)
        config, host = found["Config"], found["HostConfig"]
        assert not host["PortBindings"]
        assert not any(found["NetworkSettings"]["Ports"].values())
        assert host["RestartPolicy"]["Name"] in ("", "no")
        assert config["Labels"] == {RUN_LABEL: run_id}
        assert config["Healthcheck"]["Test"] == ["NONE"]
        assert config["Entrypoint"] == ["sh"]
        assert config["Tty"] is False
        client.containers.get(name).kill()
        assert conversation.read_line(30) is None
        assert conversation.wait(30) == 137
    assert client.containers.list(all=True, filters={"name": name}) == []
