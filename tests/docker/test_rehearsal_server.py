"""Copy, restore and rehearsal server against containers: the four steps, who can reach it, and what is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import psycopg
import pytest

from replica.application import DATABASE, USER
from replica.engine import containers
from tests.docker.observation import ask
from tests.docker.production import BESIDE, MARKER, Production
from tests.docker.watch import watch
from tests.support.modules import run_module

pytestmark = [pytest.mark.docker, BESIDE]
STAMP = "20251021t031500z_7f3a"
LABEL = "alembic-recovery.run"


def databases(production: Production) -> list[str]:
    return ask(production.replica, "select datname from pg_database order by 1", "postgres").splitlines()


@pytest.fixture
def rehearsal(production: Production) -> Iterator[dict[str, Any]]:
    """The options of the module; what it has made goes with the test."""
    options = {"database": production.options()["database"], "run_id": production.run_id("reh")}
    yield options
    run_module("rehearsal_server", {**options, "state": "absent", "leftovers": True})


@pytest.fixture
def backup(production: Production, tmp_path: Path) -> dict[str, Any]:
    """A backup of the replica's database, with extensions that it comes with."""
    ask(production.replica, "create extension if not exists pg_trgm")
    options = {"database": production.options()["database"], "run_id": production.run_id("reh")}
    return run_module("pg_backup", {**options, "directory": str(tmp_path / "backups")})


def things(production: Production) -> dict[str, list[str]]:
    """All containers, networks and volumes of runs on this engine that have to do with this replica."""
    client, prefix = production.replica.client, f"alembic-recovery-{production.replica.prefix}"
    kinds: dict[str, Callable[[], list[Any]]] = {
        "containers": lambda: containers(client),
        "networks": client.networks.list,
        "volumes": client.volumes.list,
    }
    return {
        kind: sorted(thing.name for thing in seen() if str(thing.name).startswith(prefix))
        for kind, seen in kinds.items()
    }


NOTHING: dict[str, list[str]] = {"containers": [], "networks": [], "volumes": []}


def test_pg_clone(production: Production) -> None:
    options = {"database": production.options()["database"], "clone": f"{DATABASE}_new_{STAMP}"}
    replica = production.replica
    for service in ("aiproxysrv", "celery-worker"):
        replica.container(service).stop(timeout=5)
    there = databases(production)
    looked = run_module("pg_swap_check", {"database": options["database"]})
    assert (looked["clone_possible"], looked["rename_possible"], looked["reasons"]) == (True, True, []), looked
    df = replica.execute("postgres", ["df", "-Pk", "/var/lib/postgresql/data"]).stdout.split()
    assert abs(looked["free_bytes"] - int(df[-3]) * 1024) < 1 << 30

    planned = run_module("pg_clone", options, check=True)
    assert (planned["changed"], planned["oid"]) == (True, None)
    assert databases(production) == there
    done = run_module("pg_clone", options)
    try:
        assert done.get("changed") is True, done
        assert databases(production) == sorted([*there, options["clone"]])
        for check in (True, False):
            assert "is there already" in run_module("pg_clone", options, check=check)["msg"]
        counts = "select count(*) from songs"
        assert ask(replica, counts, options["clone"]) == ask(replica, counts) == "200"
        left = run_module("pg_swap_check", {"database": options["database"]})["leftovers"]
        assert [(row["name"], row["kind"], row["oid"]) for row in left] == [(options["clone"], "new", done["oid"])]
    finally:
        gone = run_module("pg_clone", {**options, "state": "absent"})
    assert gone["changed"] is True
    assert databases(production) == there


def test_pg_restore_beside_the_database(production: Production, backup: dict[str, Any]) -> None:
    database = production.options()["database"]
    options = {
        "database": database,
        "manifest": backup["manifest_file"],
        "into": f"{DATABASE}_restored_{STAMP}",
        "run_id": production.run_id("reh"),
    }
    there = databases(production)
    planned = run_module("pg_restore", options, check=True)
    assert (planned["changed"], planned["oid"]) == (True, None), planned
    assert databases(production) == there
    with watch(production.replica, MARKER) as started:
        done = run_module("pg_restore", options)
    try:
        assert done.get("changed") is True, done
        assert {"structure", "row_counts", "content", "sequences", "properties"} <= set(done["proved"])
        assert databases(production) == sorted([*there, options["into"]])
        one_off = started.one_off("restore")
        assert started.secrets == set()
        (mount,) = (mount for mount in one_off["Mounts"] if mount["Destination"] == "/backup")
        assert mount["RW"] is False
        assert one_off["HostConfig"]["ReadonlyRootfs"] is True
        assert any("pg_restore" in words for words in started.programs(one_off["Id"]))
        checksum = "select count(*), md5(string_agg(s::text, ',' order by s.id)) from songs s"
        assert ask(production.replica, checksum, options["into"]) == ask(production.replica, checksum)
    finally:
        run_module("pg_clone", {"database": database, "clone": options["into"], "state": "absent"})
    assert databases(production) == there
    assert things(production) == NOTHING


def test_a_database_with_an_icu_locale_and_extensions(production: Production, tmp_path: Path) -> None:
    """Copied, and restored, with PostgreSQL 15 as a distribution builds it."""
    replica, run_id = production.replica, production.run_id("icu")
    place = {**production.options()["database"], "name": "shop"}
    copies = {kind: f"shop_{kind}_{STAMP}" for kind in ("new", "restored")}
    there = databases(production)
    try:
        ask(
            replica,
            "create database shop template template0 encoding 'UTF8' locale_provider icu icu_locale 'de-AT' "
            "lc_collate 'C' lc_ctype 'C.UTF-8'",
            "postgres",
        )
        for statement in (
            "create extension pg_trgm",
            "create extension citext schema public",
            "create table item (id serial primary key, name citext unique, body text)",
            "insert into item (name, body) values ('Ä', 'x'), ('b', null)",
            "create index on item using gin (body gin_trgm_ops)",
        ):
            ask(replica, statement, "shop")
        cloned = run_module("pg_clone", {"database": place, "clone": copies["new"]})
        assert cloned.get("changed") is True, cloned
        made = {"database": place, "run_id": run_id}
        backup = run_module("pg_backup", {**made, "directory": str(tmp_path / "backups")})
        done = run_module("pg_restore", {**made, "manifest": backup["manifest_file"], "into": copies["restored"]})
        assert done.get("changed") is True, done
        assert done["compared"]["extensions"] == 3
        entry = "select distinct datlocprovider, daticulocale from pg_database where datname like 'shop%'"
        assert ask(replica, entry, "postgres") == "i|de-AT"
        assert ask(replica, "select name from item order by 1", copies["restored"]) == "Ä\nb"
    finally:
        for name in ("shop", *copies.values()):
            ask(replica, f"drop database if exists {name} with (force)", "postgres")
    assert databases(production) == there


def test_check_real_check_real(production: Production, rehearsal: dict[str, Any]) -> None:
    name = f"alembic-recovery-{rehearsal['run_id']}-rehearsal"
    before, observed = things(production), production.observe()
    assert before == NOTHING

    planned = run_module("rehearsal_server", rehearsal, check=True)
    assert planned.get("changed") is True, planned
    assert things(production) == NOTHING

    done = run_module("rehearsal_server", rehearsal)
    assert done.get("changed") is True, done
    assert things(production) == {"containers": [name], "networks": [name], "volumes": [name]}
    assert {done[key] for key in ("container", "network")} == {name}
    container = production.replica.client.containers.get(name)
    started = container.attrs["State"]["StartedAt"]

    for check in (True, False):
        again = run_module("rehearsal_server", rehearsal, check=check)
        assert again.get("changed") is False, again
        assert again["database"] == done["database"]
    container.reload()
    assert container.attrs["State"]["StartedAt"] == started
    assert container.attrs["Image"] == production.replica.container("postgres").attrs["Image"]
    assert {"postgres", production.replica.name("postgres")} == set(done["aliases"])

    planned = run_module("rehearsal_server", {**rehearsal, "state": "absent"}, check=True)
    assert (planned["changed"], planned["removed"]) == (
        True, [f"container {name}", f"network {name}", f"volume {name}"],
    )  # fmt: skip
    assert things(production)["containers"] == [name]
    gone = run_module("rehearsal_server", {**rehearsal, "state": "absent"})
    assert (gone["changed"], gone["removed"]) == (True, planned["removed"])
    assert things(production) == NOTHING
    for check in (True, False):
        assert run_module("rehearsal_server", {**rehearsal, "state": "absent"}, check=check)["changed"] is False
    assert production.observe() == observed


def test_s22_nobody_reaches_it_from_outside(production: Production, rehearsal: dict[str, Any]) -> None:
    """Not this host, not production's network; and from inside, nothing outside is reached."""
    done = run_module("rehearsal_server", rehearsal)
    assert done.get("changed") is True, done
    client, name = production.replica.client, done["container"]
    seen = client.containers.get(name).attrs
    assert not seen["HostConfig"]["PortBindings"]
    assert not any(seen["NetworkSettings"]["Ports"].values())
    assert list(seen["NetworkSettings"]["Networks"]) == [name]
    assert client.networks.get(name).attrs["Internal"] is True
    assert seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert seen["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert seen["HostConfig"]["ReadonlyRootfs"] is True
    assert seen["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert seen["HostConfig"]["PidsLimit"] > 0
    assert seen["Config"]["User"] == "postgres"
    assert MARKER not in json.dumps(seen)

    address = seen["NetworkSettings"]["Networks"][name]["IPAddress"]
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba.conf rejects connection|timeout|refused"):
        psycopg.connect(host=address, user=USER, dbname="postgres", connect_timeout=5).close()
    api = production.replica.container("aiproxysrv")
    probe = "import socket; socket.create_connection(('{}', 5432), 3)"
    assert api.exec_run(["python3", "-c", probe.format(address)]).exit_code != 0
    assert api.exec_run(["python3", "-c", probe.format("postgres")]).exit_code == 0

    def inside(script: str) -> tuple[int, str]:
        """Run Python in a container of the application's image that is only in that network."""
        words: dict[str, Any] = {"network": name, "entrypoint": "python3", "labels": {LABEL: rehearsal["run_id"]}}
        container = client.containers.run(api.image, ["-c", script], detach=True, **words)
        try:
            return container.wait()["StatusCode"], container.logs().decode()
        finally:
            container.remove(force=True, v=True)

    query = (
        "import psycopg\n"
        "for host in ('postgres', '{}'):\n"
        "    connection = psycopg.connect(host=host, user='{}', password='any', dbname='postgres')\n"
        "    cursor = connection.cursor()\n"
        "    cursor.execute('select system_identifier from pg_control_system()')\n"
        "    print(cursor.fetchone()[0])\n"
    ).format(production.replica.name("postgres"), USER)
    code, said = inside(query)
    assert code == 0, said
    production_id = ask(production.replica, "select system_identifier from pg_control_system()", "postgres")
    assert len(set(said.split())) == 1
    assert said.split()[0] != production_id
    for outside in (production.replica.container("redis"), production.replica.container("postgres")):
        network = outside.attrs["NetworkSettings"]["Networks"][production.replica.network]
        code, said = inside(f"import socket; socket.create_connection(('{network['IPAddress']}', 5432), 3)")
        assert code != 0
        assert "unreachable" in said or "timed out" in said


def test_a_backup_in_it_is_what_production_is(
    production: Production, rehearsal: dict[str, Any], backup: dict[str, Any]
) -> None:
    """With the roles, their settings and memberships, and the settings of the server."""
    for statement in (
        "create role app_reader nologin noinherit createdb connection limit 3",
        "grant app_reader to " + USER + " with admin option",
        'alter role app_reader set search_path = "$user", public, extra',
        "alter role all set myapp.flag = 'a''b,c'",
    ):
        ask(production.replica, statement, "postgres")
    try:
        made = run_module("rehearsal_server", rehearsal)
        assert made.get("changed") is True, made
        options = {
            "database": made["database"],
            "manifest": backup["manifest_file"],
            "into": DATABASE,
            "run_id": rehearsal["run_id"],
        }
        refused = run_module("pg_restore", options)
        assert "This is a backup from another server" in refused["msg"]
        done = run_module("pg_restore", {**options, "other_cluster": True})
        assert done.get("changed") is True, done
        seen = [
            run_module("pg_catalog", {"database": place, "content": True})
            for place in (production.options()["database"], made["database"])
        ]
        for key in ("fingerprint", "row_counts", "content", "sequence_values"):
            assert seen[0][key] == seen[1][key]
        container = production.replica.client.containers.get(made["container"])
        roles = "pg_dumpall --roles-only --no-role-passwords -U " + USER
        said = [
            [
                line
                for line in one.exec_run(roles.split()).output.decode().splitlines()
                if not line.startswith(("--", "\\"))
            ]
            for one in (container, production.replica.container("postgres"))
        ]
        assert said[0] == said[1]
        assert made["roles"] == 2
    finally:
        for statement in ("drop role app_reader", "alter role all reset all"):
            ask(production.replica, statement, "postgres")


def test_what_killed_runs_have_left_is_removed(production: Production, rehearsal: dict[str, Any]) -> None:
    client = production.replica.client
    other = {**rehearsal, "run_id": production.run_id("killed")}
    made = run_module("rehearsal_server", other)
    api = production.replica.container("aiproxysrv")
    hanging = client.containers.run(
        api.image, ["-c", "import time; time.sleep(300)"], entrypoint="python3", detach=True,
        network=made["network"], labels={LABEL: other["run_id"]},
        name=f"alembic-recovery-{other['run_id']}-look",
    )  # fmt: skip
    assert run_module("rehearsal_server", {**rehearsal, "state": "absent"})["changed"] is False
    planned = run_module("rehearsal_server", {**rehearsal, "state": "absent", "leftovers": True}, check=True)
    names = [f"{kind} {made['container']}" for kind in ("container", "network", "volume")]
    assert (planned["changed"], planned["removed"]) == (True, names)
    gone = run_module("rehearsal_server", {**rehearsal, "state": "absent", "leftovers": True})
    assert gone["removed"] == names
    assert things(production) == NOTHING
    with pytest.raises(docker.errors.NotFound):
        hanging.reload()


def test_a_half_one_is_made_again_and_a_foreign_one_is_left(production: Production, rehearsal: dict[str, Any]) -> None:
    made = run_module("rehearsal_server", rehearsal)
    client, name = production.replica.client, made["container"]
    client.containers.get(name).kill()
    again = run_module("rehearsal_server", rehearsal)
    assert (again.get("changed"), len(again.get("removed", []))) == (True, 3), again
    assert client.containers.get(name).attrs["State"]["Running"] is True
    # As if it had been killed before the roles were there, which come with this mark.
    unmarked = ["psql", "-Xq", "-U", again["database"]["admin_user"], "-c", "comment on database postgres is null"]
    assert client.containers.get(name).exec_run([*unmarked, "postgres"]).exit_code == 0
    for check, changed in ((True, True), (False, True), (False, False)):
        assert run_module("rehearsal_server", rehearsal, check=check).get("changed") is changed
    run_module("rehearsal_server", {**rehearsal, "state": "absent"})

    volume = client.volumes.create(name)
    try:
        for state in ("present", "absent"):
            refused = run_module("rehearsal_server", {**rehearsal, "state": state})
            assert f"The volume {name} is not ours" in refused["msg"]
        assert client.volumes.get(name)
    finally:
        volume.remove()


def test_where_it_does_not_start_nothing_is_left(production: Production, rehearsal: dict[str, Any]) -> None:
    from ansible.module_utils.alembic_recovery import rehearsal as made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "server_options", lambda _: ["-D", "/nowhere"])
        refused = run_module("rehearsal_server", rehearsal)
    assert "The throwaway server ended" in refused["msg"]
    assert "/nowhere" in refused["msg"]
    assert things(production) == NOTHING


def test_tablespaces_and_hosts_are_refused(production: Production, rehearsal: dict[str, Any]) -> None:
    refused = run_module("rehearsal_server", {**rehearsal, "database": {**rehearsal["database"], "runtime": "host"}})
    assert "this database has runtime: host" in refused["msg"]
    replica = production.replica
    assert replica.execute("postgres", ["mkdir", "/var/lib/postgresql/data/fast"]).returncode == 0
    assert replica.execute("postgres", ["chown", "postgres", "/var/lib/postgresql/data/fast"]).returncode == 0
    ask(replica, "create tablespace fast location '/var/lib/postgresql/data/fast'", "postgres")
    try:
        refused = run_module("rehearsal_server", rehearsal)
    finally:
        ask(replica, "drop tablespace fast", "postgres")
    assert "The server has tablespaces of its own (fast)" in refused["msg"]
    assert things(production) == NOTHING
