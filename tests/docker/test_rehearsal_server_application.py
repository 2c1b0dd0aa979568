"""The throwaway server and the application: refusals, what is left of a failure or a kill, and a look at it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import docker.errors
import pytest

from replica.application import BROKEN, DATABASE, HEAD, USER
from replica.engine import containers
from tests.conftest import ROOT
from tests.docker.observation import ask
from tests.docker.production import BESIDE, MARKER, Production
from tests.support.modules import run_module
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, BESIDE]
LABEL = "alembic-recovery.run"
# A module in a process of its own, so that it can be killed.
ALONE = """
import json, sys
import tests.conftest
from tests.support.modules import run_module
print(json.dumps(run_module("rehearsal_server", json.load(sys.stdin))), flush=True)
"""


@pytest.fixture
def rehearsal(production: Production) -> Iterator[dict[str, Any]]:
    """The options of the module, with the application; what it has made goes with the test."""
    options = production.options(run_id=production.run_id("app"))
    yield options
    run_module("rehearsal_server", {**options, "state": "absent", "leftovers": True})


def name_of(options: dict[str, Any]) -> str:
    return f"alembic-recovery-{options['run_id']}-rehearsal"


def left(production: Production, options: dict[str, Any]) -> list[str]:
    """What has the label of the run, of whatever kind."""
    client, mine = production.replica.client, {"label": f"{LABEL}={options['run_id']}"}
    kinds: dict[str, Callable[[], list[Any]]] = {
        "container": lambda: containers(client, **mine),
        "network": lambda: client.networks.list(filters=mine),
        "volume": lambda: client.volumes.list(filters=mine),
    }
    return [f"{kind} {thing.name}" for kind, seen in kinds.items() for thing in seen()]


@pytest.mark.parametrize("check", [True, False], ids=["check", "real"])
@pytest.mark.parametrize(
    ("whose", "network", "said"),
    [
        ("application", "host", "The application's container {} has network mode host"),
        ("application", "none", "The application's container {} has network mode none"),
        ("application", "container", "The application's container {} has the network of another container"),
        ("application", "bridge", "The application's container {} (in bridge) does not share a network"),
        ("database", "host", "The database's container {} has network mode host"),
        ("database", "container", "The database's container {} has the network of another container"),
    ],
)
def test_s22_where_it_cannot_be_found_it_is_refused_before_anything_is_made(
    production: Production, rehearsal: dict[str, Any], whose: str, network: str, said: str, check: bool
) -> None:
    replica = production.replica
    mode = f"container:{replica.container('postgres').id}" if network == "container" else network
    image = replica.container("aiproxysrv").image
    odd = replica.client.containers.create(
        image, ["true"], name=f"{replica.prefix}-odd-1", network_mode=mode, labels=replica._labels()
    )
    try:
        options = {**rehearsal, whose: {**rehearsal[whose], "container": odd.name}}
        refused = run_module("rehearsal_server", options, check=check)
    finally:
        odd.remove(force=True, v=True)
    assert refused["failed"] is True
    assert said.format(odd.name) in refused["msg"]
    assert "Rehearse beside the database instead" in refused["msg"]
    assert left(production, rehearsal) == []


def test_an_application_on_the_host_is_refused(production: Production, rehearsal: dict[str, Any]) -> None:
    refused = run_module("rehearsal_server", {**rehearsal, "application": {"runtime": "host"}})
    assert "The application has runtime: host" in refused["msg"]
    assert left(production, rehearsal) == []


def test_a_link_of_the_application_is_a_name_of_the_server(production: Production, rehearsal: dict[str, Any]) -> None:
    replica = production.replica
    postgres, api = replica.container("postgres"), replica.container("aiproxysrv")
    client = replica.client.api
    endpoint = client.create_endpoint_config(links={postgres.name: "theirs"})
    linked = replica.client.containers.create(
        api.image, ["true"], name=f"{replica.prefix}-linked-1", labels=replica._labels(),
        network=replica.network, networking_config={replica.network: endpoint},
    )  # fmt: skip
    try:
        application = {**rehearsal["application"], "container": linked.name}
        planned = run_module("rehearsal_server", {**rehearsal, "application": application}, check=True)
    finally:
        linked.remove(force=True, v=True)
    assert planned.get("changed") is True, planned
    assert planned["aliases"] == sorted(["postgres", postgres.name, "theirs"])


def test_an_image_without_initdb(production: Production, rehearsal: dict[str, Any]) -> None:
    """For example one that has PostgreSQL's server elsewhere than in PATH."""
    from ansible.module_utils.alembic_recovery import rehearsal as made

    client, looked = production.replica.client, made.look
    program = production.replica.execute("postgres", ["which", "initdb"]).stdout.strip()
    command: dict[str, Any] = {"entrypoint": ["rm"], "command": [program], "user": "root", "network_mode": "none"}
    maker = client.containers.create(production.replica.container("postgres").image, **command)
    image = None
    try:
        maker.start()
        assert maker.wait()["StatusCode"] == 0
        image = maker.commit()
        image_id = str(image.id)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made, "look", lambda *words: dataclasses.replace(looked(*words), image_id=image_id))
            refused = run_module("rehearsal_server", rehearsal)
    finally:
        maker.remove(force=True, v=True)
        if image is not None:
            client.images.remove(str(image.id), force=True)
    assert refused["failed"] is True
    assert "initdb in a container of the database's image failed" in refused["msg"]
    assert "executable file not found" in refused["msg"]
    assert left(production, rehearsal) == []


@pytest.mark.parametrize(
    ("moment", "then"),
    [
        ("volume", "absent"),
        ("initdb", "present"),
        ("server", "present"),
        pytest.param("volume", "present", marks=pytest.mark.thorough),
        pytest.param("initdb", "absent", marks=pytest.mark.thorough),
        pytest.param("server", "absent", marks=pytest.mark.thorough),
    ],
)
def test_row_48_killed_in_the_middle(production: Production, rehearsal: dict[str, Any], moment: str, then: str) -> None:
    """With SIGKILL: the next call of the same run removes what is left, or makes it whole."""
    client, name = production.replica.client, name_of(rehearsal)

    def there() -> bool:
        try:
            if moment == "volume":
                return bool(client.volumes.get(name))
            return bool(client.containers.get(f"{name}-initdb" if moment == "initdb" else name))
        except docker.errors.NotFound:
            return False

    words: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}

    def killed() -> bool:
        with subprocess.Popen([sys.executable, "-c", ALONE], **words) as child:
            assert child.stdin is not None
            child.stdin.write(json.dumps(rehearsal))
            child.stdin.close()
            wait_until(there, f"the {moment} is there")
            child.kill()
            assert child.stdout is not None
            return child.stdout.read() == ""

    for _ in range(5):
        if killed():
            break
        # It was quicker than we are.
        run_module("rehearsal_server", {**rehearsal, "state": "absent"})
    else:
        pytest.fail("it was never killed in the middle")
    assert f"volume {name}" in left(production, rehearsal)

    done = run_module("rehearsal_server", {**rehearsal, "state": then})
    assert done.get("changed") is True, done
    whole = [f"{kind} {name}" for kind in ("container", "network", "volume")]
    assert left(production, rehearsal) == (whole if then == "present" else [])
    assert run_module("rehearsal_server", {**rehearsal, "state": then})["changed"] is False


def test_a_role_that_is_no_superuser_is_enough_in_production(production: Production, rehearsal: dict[str, Any]) -> None:
    ask(production.replica, "create role looker login", "postgres")
    try:
        made = run_module("rehearsal_server", {**rehearsal, "database": {**rehearsal["database"], "user": "looker"}})
        assert made.get("changed") is True, made
        server = production.replica.client.containers.get(made["container"])
        roles = f"select string_agg(rolname, ' ' order by rolname) from pg_roles where rolname in ('{USER}', 'looker')"
        words = ["psql", "-XqAt", "-U", "looker", "-d", "postgres", "-c", roles]
        assert server.exec_run(words).output.decode().split() == [USER, "looker"]
        version = "select current_setting('server_version')"
        assert made["version"] == ask(production.replica, version, "postgres")
    finally:
        ask(production.replica, "drop role looker", "postgres")


def test_the_application_in_its_network_works_on_it_and_production_is_not_touched(
    production: Production, rehearsal: dict[str, Any]
) -> None:
    """It has production's configuration: the host name and the password of its environment lead to the copy."""
    before = production.observe()
    made = run_module("rehearsal_server", rehearsal)
    assert made.get("changed") is True, made
    dump = ["docker", "exec", production.replica.name("postgres"), "pg_dump", "-Fc", "-U", USER, "-d", DATABASE]
    archive = subprocess.run(dump, capture_output=True, check=True).stdout
    restore = ["docker", "exec", "--interactive", made["container"], "pg_restore", "--exit-on-error", "--create"]
    restore += ["-U", made["database"]["admin_user"], "-d", "postgres"]
    subprocess.run(restore, input=archive, capture_output=True, check=True)

    application = {**rehearsal["application"], "network": made["network"]}
    options = {"database": made["database"], "application": application, "run_id": rehearsal["run_id"]}
    seen = run_module("alembic_status", options)
    assert (seen["verdict"], seen["current"], seen["heads"]) == ("BEHIND", [BROKEN], [HEAD]), seen
    migrated = run_module("alembic_migrate", options)
    assert migrated.get("changed") is True, migrated
    assert run_module("alembic_status", options)["current"] == [HEAD]

    results = json.dumps([made, seen, migrated])
    assert MARKER not in results
    client = production.replica.client
    volumes = {mount["Name"] for mount in client.containers.get(made["container"]).attrs["Mounts"]}
    gone = run_module("rehearsal_server", {**rehearsal, "state": "absent"})
    assert gone["changed"] is True
    assert left(production, rehearsal) == []
    # Only now: what a run has made beside production is seen, too.
    assert production.observe() == before
    assert before["version"] == [BROKEN]
    # Those without a name of ours have no label, either.
    assert len(volumes) > 1
    assert not volumes & {volume.name for volume in client.volumes.list()}
