"""What is read from `docker inspect`, and what a one-off container takes of a service's container."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.docker_cli import (
    ContainerState,
    DockerCli,
    container_state,
    one_off_like,
    parse_time,
)
from ansible.module_utils.alembic_recovery.errors import RecoveryError

UTC = datetime.UTC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2025-10-21T03:04:05.123456789Z", "2025-10-21T03:04:05.123456+00:00", id="nanoseconds"),
        pytest.param("2025-10-21T03:04:05Z", "2025-10-21T03:04:05+00:00", id="whole seconds"),
        pytest.param("2025-10-21T03:04:05.1Z", "2025-10-21T03:04:05.100000+00:00", id="one digit"),
        pytest.param("2025-10-21T05:04:05+02:00", "2025-10-21T03:04:05+00:00", id="with an offset"),
        pytest.param("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00", id="never started"),
    ],
)
def test_parse_time(text: str, expected: str) -> None:
    assert parse_time(text).isoformat() == expected


def test_parse_time_refuses_what_is_none() -> None:
    with pytest.raises(RecoveryError, match="cannot be read: 'yesterday'"):
        parse_time("yesterday")


def state(*, age: float = 3600, **changes: Any) -> ContainerState:
    """A container that was started `age` seconds ago."""
    long_ago = datetime.datetime.now(UTC) - datetime.timedelta(seconds=age)
    facts: dict[str, Any] = {
        "name": "api",
        "running": True,
        "restarting": False,
        "restart_count": 0,
        "health": "",
        "started_at": long_ago,
        "image_id": "sha256:1",
        "exit_code": 0,
    }
    return ContainerState(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "steady"),
    [
        pytest.param({}, True, id="up"),
        pytest.param({"running": False}, False, id="stopped"),
        pytest.param({"restarting": True}, False, id="between two restarts"),
        pytest.param({"restart_count": 3}, True, id="restarted once, up for an hour since"),
        pytest.param({"restart_count": 3, "age": 0}, False, id="up for a moment, in a loop"),
    ],
)
def test_steady(changes: dict[str, Any], steady: bool) -> None:
    """Times are counted from now, not from when the tests were collected."""
    assert state(**changes).steady is steady


INSPECTED: dict[str, Any] = {
    "Id": "4571040020f6",
    "Name": "/mac_ki_service-aiproxysrv-1",
    "Image": "sha256:54aa",
    "RestartCount": 2,
    "State": {
        "Running": True,
        "Restarting": False,
        "StartedAt": "2025-10-21T03:04:05.5Z",
        "ExitCode": 0,
        "Health": {"Status": "unhealthy"},
    },
    "Config": {
        "Env": ["PATH=/venv/bin:/usr/bin", "DATABASE_URL=postgresql://u:p@db/x?a=b", "EMPTY=", "HOME=/root"],
        "User": "app",
        "WorkingDir": "/app",
        "Entrypoint": ["bin/migrate-and-run"],
        "Cmd": ["api"],
        "Labels": {"com.docker.compose.project": "mac_ki_service"},
        "Healthcheck": {"Test": ["CMD", "true"]},
    },
    "HostConfig": {
        "NetworkMode": "mac_ki_service_default",
        "RestartPolicy": {"Name": "unless-stopped"},
        "PortBindings": {"8000/tcp": [{"HostPort": "8000"}]},
        "ExtraHosts": ["license:10.0.0.1"],
        "Privileged": True,
        "GroupAdd": ["audio"],
    },
    "NetworkSettings": {"Networks": {"mac_ki_service_default": {}, "backend": {}}},
}


class Inspected(DockerCli):
    """The parts of the command line that are asked for the image's own environment."""

    def __init__(self) -> None:
        self.path = "/usr/bin/docker"

    def image_environment(self, image_id: str) -> list[str]:
        assert image_id == "sha256:54aa"
        return ["PATH=/venv/bin:/usr/bin"]


def test_one_off_takes_image_environment_networks_and_mounts_and_nothing_else() -> None:
    task = one_off_like(Inspected(), INSPECTED, name="alembic-recovery-r1-migrate", argv=["python3", "-"], run_id="r1")
    assert task.image == "sha256:54aa"
    assert task.argv == ["python3", "-"]
    assert task.env == {"DATABASE_URL": "postgresql://u:p@db/x?a=b", "EMPTY": "", "HOME": "/root"}
    assert task.network == "mac_ki_service_default"
    assert list(task.more_networks) == ["backend"]
    assert list(task.options) == [
        "--volumes-from", "4571040020f6", "--user", "app", "--workdir", "/app",
        "--add-host", "license:10.0.0.1", "--group-add", "audio",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["host", "none", "container:abc", "mac_ki_service_default"])
def test_one_off_in_isolation_is_in_one_network_and_cannot_write_or_be_led_elsewhere(mode: str) -> None:
    seen = {**INSPECTED, "HostConfig": {**INSPECTED["HostConfig"], "NetworkMode": mode, "Dns": ["10.0.0.2"]}}
    task = one_off_like(Inspected(), seen, name="n", argv=["python3"], run_id="r1", network="rehearsal")
    assert (task.network, list(task.more_networks)) == ("rehearsal", [])
    assert list(task.options) == [
        "--volumes-from", "4571040020f6:ro", "--user", "app", "--workdir", "/app", "--group-add", "audio",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["host", "none", "container:abc"])
def test_one_off_in_a_network_mode_that_has_no_name(mode: str) -> None:
    seen = {**INSPECTED, "HostConfig": {**INSPECTED["HostConfig"], "NetworkMode": mode}}
    task = one_off_like(Inspected(), seen, name="n", argv=["python3"], run_id="r1")
    assert (task.network, list(task.more_networks)) == (mode, [])


def test_container_state() -> None:
    seen = container_state(INSPECTED)
    assert (seen.name, seen.running, seen.health, seen.restart_count) == (
        "mac_ki_service-aiproxysrv-1",
        True,
        "unhealthy",
        2,
    )


def test_a_container_that_the_engine_is_just_removing_is_waited_for(tmp_path: Path) -> None:
    """What it says meanwhile is that of Docker 20.10 and 28; on a real Engine that moment cannot be held."""
    calls, program = tmp_path / "calls", tmp_path / "docker"
    program.write_text(
        f"""#!/bin/sh
echo "$*" >> {calls}
if test "$(wc -l < {calls})" -lt 3; then
    echo "Error response from daemon: removal of container $4 is already in progress" >&2
else
    echo "Error response from daemon: No such container: $4" >&2
fi
exit 1
"""
    )
    program.chmod(0o755)
    DockerCli(str(program)).remove("alembic-recovery-x-backup")
    assert calls.read_text().splitlines() == ["rm --force --volumes alembic-recovery-x-backup"] * 3
