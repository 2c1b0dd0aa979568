"""The application as its users see it, its containers, and the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from replica.docker import SERVICES, DockerReplica
from tests.replica import behaviour

RESTARTED = ("aiproxysrv", "celery-worker")


@pytest.mark.parametrize("check", behaviour.HEALTHY, ids=lambda check: check.__name__)
def test_over_https(replica: DockerReplica, check: behaviour.Check) -> None:
    check(replica.web)


def test_worker_executes_a_task(worker: Host, before: dict[str, Any]) -> None:
    """Put on the queue and awaited in the worker's own container."""
    code = "import json, songapi.tasks as t; print(json.dumps(t.latest_songs.delay().get(timeout=20)))"
    answer = json.loads(worker.check_output("cd /app/src && python3 -c %s", code))
    assert answer["songs"] >= before["rows"]["songs"]
    assert len(answer["latest"]) == 5


@pytest.mark.parametrize("service", SERVICES)
def test_container_is_healthy_and_the_same(
    replica: DockerReplica, service: str, before: dict[str, Any], now: dict[str, Any]
) -> None:
    state = replica.container(service).attrs["State"]
    assert (state["Status"], state["Health"]["Status"]) == ("running", "healthy")
    was, is_ = before["containers"][service], now["containers"][service]
    for part in ("id", "image", "policy"):
        assert is_[part] == was[part]
    assert was["policy"] == "unless-stopped"
    assert (is_["started"] != was["started"]) is (service in RESTARTED)


def test_services_were_restarted_in_order(now: dict[str, Any]) -> None:
    api, worker = (now["containers"][service]["started"] for service in RESTARTED)
    assert api < worker


@pytest.mark.parametrize("service", RESTARTED)
def test_log_since_the_restart_has_no_error(replica: DockerReplica, service: str, now: dict[str, Any]) -> None:
    started = now["containers"][service]["started"]
    stamped = replica.container(service).logs(timestamps=True).decode().splitlines()
    log = [line for line in stamped if line.split(" ", 1)[0] >= started[:19]]
    assert log
    assert not [line for line in log if "Traceback" in line or "UndefinedColumn" in line or " ERROR " in line]


def test_nothing_that_a_run_has_made_is_left(now: dict[str, Any], replica: DockerReplica) -> None:
    """No container, network or volume, and no session: the lock has been given back."""
    assert now["one_offs"] == []
    sessions = "select application_name from pg_stat_activity where application_name like 'alembic-recovery%'"
    assert replica.query(sessions) == ""


def test_the_server_has_nothing_but_backups(server: Host, before: dict[str, Any], now: dict[str, Any]) -> None:
    """No package, no module, no temporary file, no process; backups and journals are in the directory for them."""
    assert "keeper.py" not in server.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert now["changed_files"]["server"] == before["changed_files"]["server"]
    assert not server.file("/home/deploy/.ansible").exists
    assert not server.file("/root/.ansible").exists
