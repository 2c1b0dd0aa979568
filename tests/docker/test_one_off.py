"""A one-off container, asked from inside: it sees what the service's container sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.docker_cli import RUN_LABEL, DockerCli
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, collect
from docker.models.containers import Container

from replica.application import BROKEN
from replica.engine import containers
from tests.docker.observation import ask, one_offs
from tests.docker.production import BESIDE, MARKER, Production
from tests.support.modules import run_module
from tests.support.waiting import wait_until

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


@pytest.fixture(scope="module")
def rehearsal(made: Production) -> Iterator[str]:
    """A network with nothing in it."""
    replica = made.replica
    labels = {LABEL: replica.prefix}
    network = replica.client.networks.create(f"{replica.prefix}_rehearsal", internal=True, labels=labels)
    yield str(network.name)
    network.remove()


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


def test_s14_it_has_no_ports_policy_labels_or_check_and_ends_by_its_name(service: Container, made: Production) -> None:
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
    assert containers(client, name=name) == []


class TestInIsolation:
    """With `application.network`: in one network alone, volumes read-only, and never in the service's container."""

    def test_what_it_sees(self, service: Container, made: Production, rehearsal: str) -> None:
        runtime = DockerRuntime(DockerCli(), str(service.name), run_id=made.run_id("alone"), network=rehearsal)
        done = collect(runtime, ["python3", "-c", LOOK], purpose="look")
        assert done.rc == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["networks"] == ["eth0", "lo"]
        assert found["names"] == []
        assert found["resolver"] == []
        assert found["mounts"] == [["/extra/files", "ro"], ["/extra/volume", "ro"]]
        assert found["read"] == "from this machine"
        assert found["environment"]["PASSWORD"] == VARIABLES["PASSWORD"]
        assert found["user"][:2] == [1234, 1235]
        assert 1236 in found["user"][2]

    @pytest.mark.parametrize("act", [False, True], ids=["to look", "to act"])
    def test_a_steady_service_is_left_alone(self, made: Production, rehearsal: str, act: bool) -> None:
        client, run_id = made.replica.client, made.run_id("apart")
        container = made.replica.container("aiproxysrv")
        runtime = DockerRuntime(DockerCli(), str(container.name), run_id=run_id, network=rehearsal)
        assert runtime.state.steady
        with runtime.converse(["sh", "-c", "hostname; cat"], act=act) as conversation:
            inside = conversation.read_line(60)
            assert inside
            found = client.api.inspect_container(f"alembic-recovery-{run_id}-look")
            assert found["Id"].startswith(inside)
            assert list(found["NetworkSettings"]["Networks"]) == [rehearsal]
            assert "one-off container" in runtime.where
        # It was left while it ran: the Engine's own removal and ours meet, and that takes it a moment.
        wait_until(lambda: not containers(client, label=f"{RUN_LABEL}={run_id}"), "the container is gone")

    def test_the_application_does_not_reach_production(self, made: Production, rehearsal: str) -> None:
        made.reset()
        options = made.options(run_id=made.run_id("away"))
        options["application"]["network"] = rehearsal
        versions = ask(made.replica, "select version_num from alembic_version")
        seen = run_module("alembic_status", {**options, "timeout": 120})
        assert seen["verdict"] == "UNREADABLE"
        assert "one-off container" in seen["summary"]
        assert run_module("alembic_migrate", options)["failed"] is True
        assert ask(made.replica, "select version_num from alembic_version") == versions
        assert BROKEN in str(versions)
        assert one_offs(made.replica) == []
