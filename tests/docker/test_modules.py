"""The acting modules against containers: each in four steps, and a migration that is killed in the middle."""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from ansible.module_utils.alembic_recovery import record

from replica.application import BROKEN, DATABASE, ENCODED, HEAD, USER
from replica.engine import containers
from replica.expect import UNENCODED
from tests.docker.observation import ONE_OFF_LABEL, ask, one_offs
from tests.docker.production import BESIDE, MARKER, PASSWORD, Production
from tests.docker.watch import watch
from tests.support.modules import run_module
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, BESIDE]

_WAITS = "application_name like 'alembic-recovery:%migrate' and wait_event_type = 'Lock'"
WAITING = f"select 1 from pg_stat_activity where {_WAITS}"
SESSIONS = "select count(*) from pg_stat_activity where application_name like 'alembic-recovery%'"


def four_steps(module: str, options: dict[str, Any], seen: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check, act, check again, act again.

    Args:
        module: Its name.
        options: Its options, the same each time.
        seen: Looks at what the module changes.

    Returns:
        The results of the first two steps. `changed` is right in all of them, and only the second changes something.
    """
    before = seen()
    would = run_module(module, options, check=True)
    assert would["changed"] is True, would
    assert seen() == before

    done = run_module(module, options)
    assert done["changed"] is True, done
    after = seen()
    assert after != before

    for check in (True, False):
        again = run_module(module, options, check=check)
        assert again["changed"] is False, again
        assert seen() == after
    return would, done


def test_alembic_migrate(production: Production, tmp_path: Path) -> None:
    options = production.options(run_id=production.run_id("steps"), journal=str(tmp_path / "runs" / "journal.jsonl"))

    would, done = four_steps("alembic_migrate", options, production.observe)

    assert would["steps"] == done["steps"] == [ENCODED, HEAD]
    assert would["after"] == done["after"] == [HEAD]
    assert would["applied"] == []
    assert [(step["revision"], step["healed"]) for step in done["applied"]] == [
        (ENCODED, ["revision_ended_transaction"]),
        (HEAD, []),
    ]
    assert "CREATE TABLE song_sketches" in would["plan"][HEAD]["sql"]
    assert production.replica.query("select version_num from alembic_version") == HEAD
    assert production.replica.query("select to_regclass('song_sketches')") == "song_sketches"
    assert production.replica.query(UNENCODED) == "0"


def test_pg_backup(production: Production, tmp_path: Path) -> None:
    directory, run_id = tmp_path / "backups", production.run_id("steps")
    database = production.options()["database"]
    options = {"database": database, "directory": str(directory), "run_id": run_id}

    def seen() -> Any:
        return production.observe(directory)

    would, done = four_steps("pg_backup", options, seen)

    assert would["dump"] == done["dump"] == str(directory / f"aiproxy_{run_id}.dump")
    assert sorted(path.name for path in directory.iterdir()) == [
        f"aiproxy_{run_id}.dump",
        f"aiproxy_{run_id}.globals.sql",
        f"aiproxy_{run_id}.manifest.json",
    ]
    manifest = json.loads((directory / f"aiproxy_{run_id}.manifest.json").read_text())
    assert manifest["images"] == {database["container"]: production.replica.container("postgres").attrs["Image"]}
    assert manifest["tools"]["pg_dump"].startswith("pg_dump (PostgreSQL) 15.")
    assert manifest["row_counts"]["public.songs"] == 200


def test_service_restart(production: Production) -> None:
    moment = datetime.datetime.now(datetime.UTC).isoformat()
    options = {"services": production.variables()["recovery_stack"]["services"], "unless_started_since": moment}

    def seen() -> dict[str, str]:
        return {
            service: production.replica.container(service).attrs["State"]["StartedAt"]
            for service in ("aiproxysrv", "celery-worker", "postgres", "redis", "proxy")
        }

    before = seen()
    would, done = four_steps("service_restart", options, seen)

    assert would["restarted"] == done["restarted"] == ["api", "worker"]
    assert {name for name, started in seen().items() if started != before[name]} == {"aiproxysrv", "celery-worker"}
    assert seen()["aiproxysrv"] < seen()["celery-worker"]
    assert [(service["name"], service["health"]) for service in done["services"]] == [
        ("api", "healthy"),
        ("worker", "healthy"),
    ]


def test_service_restart_starts_what_is_stopped(production: Production) -> None:
    worker = production.replica.container("celery-worker")
    worker.stop(timeout=10)
    services = [{"name": "worker", "runtime": "docker", "container": worker.name}]

    done = run_module("service_restart", {"services": services})

    assert done["restarted"] == ["worker"], done
    worker.reload()
    assert worker.attrs["State"]["Health"]["Status"] == "healthy"


# -- found by the labels of Compose --------------------------------------------------------------------------------


def by_labels(production: Production, place: dict[str, Any], service: str) -> dict[str, Any]:
    """A part of the stack with Compose's labels instead of a container's name."""
    named = {name: value for name, value in place.items() if name != "container"}
    return {**named, "compose_project": production.replica.prefix, "compose_service": service}


def test_containers_are_found_by_their_labels(production: Production) -> None:
    options = production.options()
    services = production.variables()["recovery_stack"]["services"]
    seen = run_module(
        "alembic_status",
        {
            "application": by_labels(production, options["application"], "aiproxysrv"),
            "database": by_labels(production, options["database"], "postgres"),
        },
    )
    assert (seen["verdict"], seen["current"]) == ("BEHIND", [BROKEN]), seen
    labelled = [by_labels(production, services[1], "celery-worker")]
    (worker,) = run_module("service_status", {"services": labelled})["services"]
    assert worker["where"] == f"container {production.replica.name('celery-worker')}"


def test_two_containers_of_a_service_are_refused(production: Production) -> None:
    """`docker compose up --scale` makes several; which one is meant cannot be guessed."""
    client, api = production.replica.client, production.replica.container("aiproxysrv")
    second = client.containers.create(api.image, name=f"{production.replica.prefix}-aiproxysrv-2", labels=api.labels)
    try:
        options = production.options()
        labelled = {**options, "application": by_labels(production, options["application"], "aiproxysrv")}
        refused = run_module("alembic_migrate", labelled)
        assert refused["failed"] is True
        assert "2 containers" in refused["msg"]
        assert second.name in refused["msg"]
    finally:
        second.remove()
    assert production.replica.query("select version_num from alembic_version") == BROKEN


# -- killed in the middle ------------------------------------------------------------------------------------------


@pytest.fixture
def lock(production: Production) -> Iterator[Callable[[str], None]]:
    """Runs a statement that holds locks in a session that stays, so that a revision waits in its middle."""
    replica = production.replica
    script = replica.container("postgres")
    name = "holds_a_lock"

    def hold(statement: str) -> None:
        command = ["psql", "-XqAt", "-U", USER, "-d", DATABASE, "-c", f"begin; {statement}; select pg_sleep(300)"]
        script.exec_run(command, environment={"PGAPPNAME": name}, detach=True)
        wait_until(
            lambda: replica.query(
                f"select wait_event from pg_stat_activity where application_name = '{name}' and wait_event = 'PgSleep'"
            ),
            "the locks are held",
            pause=0.2,
        )

    yield hold
    replica.query(f"select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{name}'")


@pytest.mark.parametrize(
    ("statement", "applied", "left"),
    [
        pytest.param(
            "select 1 from lyric_parsing_rules where replacement like 'Grüße%' order by id desc limit 1 for update",
            [],
            [ENCODED, HEAD],
            id="between two rows of the first revision",
        ),
        pytest.param("lock table songs in access share mode", [ENCODED], [HEAD], id="after the table of the second"),
    ],
)
def test_a_killed_one_off_leaves_no_session_and_the_message_says_where_the_database_is(
    production: Production,
    lock: Callable[[str], None],
    tmp_path: Path,
    statement: str,
    applied: list[str],
    left: list[str],
) -> None:
    replica, results = production.replica, []
    before = production.observe()
    lock(statement)
    journal = tmp_path / "runs" / "journal.jsonl"
    options = production.options(run_id=production.run_id("killed"), journal=str(journal), lock_timeout=0)
    worker = threading.Thread(target=lambda: results.append(run_module("alembic_migrate", options)))
    worker.start()
    wait_until(lambda: replica.query(WAITING), "the revision waits", pause=0.2)

    replica.client.containers.get(f"alembic-recovery-{options['run_id']}-migrate").kill()
    worker.join(timeout=180)

    (result,) = results
    assert result["failed"] is True
    current = applied[-1] if applied else BROKEN
    assert f"The database is at {current} (read over a new connection)" in result["msg"]
    assert f"applied and proved in this run: {', '.join(applied) or 'nothing'}" in result["msg"]
    assert f"not applied: {', '.join(left)}" in result["msg"]
    assert [step["revision"] for step in result["applied"]] == applied
    # Nobody of it is left, although the lock that it waited for is still held.
    wait_until(lambda: replica.query(SESSIONS) == "0", "its sessions have ended", pause=0.2)
    assert one_offs(replica) == []
    assert [line["event"] for line in map(json.loads, journal.read_text().splitlines())].count("proved") == len(applied)
    after = production.observe()
    assert after["version"] == [current]
    assert after["schema"] == before["schema"]
    if not applied:
        assert after["content"] == before["content"]


# -- a server that trusts nobody -----------------------------------------------------------------------------------


@contextlib.contextmanager
def asking(production: Production, kind: str) -> Iterator[Production]:
    """PostgreSQL asks for a password on connections of a kind of pg_hba.conf: `host` or `local`."""
    file = "/var/lib/postgresql/data/pg_hba.conf"
    change = f"sed -i -E 's/^({kind} .*) trust$/\\1 scram-sha-256/' {file}"
    try:
        shell(production, f"cp {file} /tmp/pg_hba.conf && {change} && kill -HUP 1")
        yield production
    finally:
        shell(production, f"cp /tmp/pg_hba.conf {file} && kill -HUP 1")
        production.wait_for_database()


def shell(production: Production, script: str) -> None:
    done = production.replica.execute("postgres", ["bash", "-c", script])
    assert done.returncode == 0, done.stderr


@pytest.fixture
def strict(production: Production) -> Iterator[Production]:
    """PostgreSQL asks for a password on the container's own loopback, too; not on its socket."""
    with asking(production, "host"):
        yield production


@pytest.fixture
def strict_socket(production: Production) -> Iterator[Production]:
    """PostgreSQL asks for a password on its socket."""
    with asking(production, "local"):
        yield production


def test_s02_pg_backup_takes_the_password_that_the_server_was_given_and_shows_it_to_nobody(
    strict: Production, tmp_path: Path
) -> None:
    options = {
        "database": strict.options()["database"],
        "directory": str(tmp_path / "backups"),
        "run_id": strict.run_id("strict"),
    }
    with watch(strict.replica, MARKER) as started:
        done = run_module("pg_backup", options)
    assert done["changed"] is True, done
    assert started.secrets == set()
    backup = started.one_off("backup")
    assert MARKER not in json.dumps(backup)
    assert MARKER not in json.dumps(started.execs)
    assert MARKER not in json.dumps(done)
    assert any("pg_dump" in words for words in started.programs(backup["Id"]))


def test_s02_the_lock_is_taken_where_the_socket_asks_for_a_password_and_nobody_sees_it(
    strict_socket: Production, tmp_path: Path
) -> None:
    run_id = strict_socket.run_id("socket")
    options = {
        "database": {**strict_socket.options()["database"], "password": PASSWORD},
        "services": strict_socket.variables()["recovery_stack"]["services"],
        "run_id": run_id,
        "run_directory": str(tmp_path / "runs" / run_id),
    }
    with watch(strict_socket.replica, MARKER) as started:
        done = run_module("recovery_lock", options)
        again = run_module("recovery_lock", options)
        gone = run_module("recovery_lock", {**options, "state": "absent"})
    assert [result.get("changed") for result in (done, again, gone)] == [True, False, True], done
    assert done["holder"]["run_id"] == run_id
    assert started.secrets == set()
    assert MARKER not in json.dumps([started.execs, done])
    page = Path(done["page"]).read_text()
    assert MARKER not in page
    assert "PGPASSWORD" not in page, "nothing has to be done"


def test_the_outage_of_containers_ends_without_anybody_when_the_run_is_dead(
    production: Production, tmp_path: Path
) -> None:
    """The keeper runs what the page says: `docker exec`, `docker update`, `docker start`."""
    replica, run_id = production.replica, production.run_id("outage")
    stack = production.variables()["recovery_stack"]
    there = {"run_id": run_id, "run_directory": str(tmp_path / "runs" / run_id)}
    both = {"database": stack["database"], "services": stack["services"], **there}
    taken = run_module("recovery_lock", {**both, "grace": 20})
    assert taken.get("changed") is True, taken
    stopped = run_module("service_stop", {"services": stack["services"], **there})
    assert len(stopped["stopped"]) == 2, stopped
    closed = run_module("pg_fence", {**both, "state": "closed"})
    assert closed.get("changed") is True, closed

    def states() -> list[tuple[str, str]]:
        containers = [replica.container(name) for name in ("aiproxysrv", "celery-worker")]
        return [(one.attrs["HostConfig"]["RestartPolicy"]["Name"], one.attrs["State"]["Status"]) for one in containers]

    assert states() == [("no", "exited")] * 2
    page = Path(taken["page"]).read_text()
    assert f"docker start {replica.name('aiproxysrv')}" in page
    wait_until((Path(there["run_directory"]) / "keeper.json").exists, "the keeper has acted", 600)

    did = json.loads((Path(there["run_directory"]) / "keeper.json").read_text())
    assert [step["rc"] for step in did["commands"]] == [0] * len(did["commands"]) != [], did
    assert states() == [("unless-stopped", "running")] * 2
    assert ask(replica, f"select datallowconn from pg_database where datname = '{DATABASE}'", "postgres") == "t"


def test_what_ended_runs_have_left_in_the_engine_goes_and_what_is_in_use_stays(
    production: Production, tmp_path: Path
) -> None:
    client, stack = production.replica.client, production.variables()["recovery_stack"]
    image = production.replica.container("aiproxysrv").image
    runs = {kind: production.run_id(f"left-{kind}") for kind in ("ended", "at-work", "elsewhere")}
    for kind, run_id in runs.items():
        database = "another" if kind == "elsewhere" else DATABASE
        record.Record.start(str(tmp_path / run_id), run_id=run_id, stack="prod", database=database).note("done")
        client.containers.create(image, name=f"{run_id}-look", labels={ONE_OFF_LABEL: run_id})
        client.volumes.create(f"{run_id}-data", labels={ONE_OFF_LABEL: run_id})

    def left() -> list[str]:
        names = [one.name for one in containers(client, label=ONE_OFF_LABEL)]
        return sorted(name for name in names if any(name.startswith(run_id) for run_id in runs.values()))

    options = {"database": stack["database"], "services": stack["services"], "directory": str(tmp_path)}
    options["run_id"] = production.run_id("after")
    try:
        with record.presence(str(tmp_path / runs["at-work"])):
            found = run_module("run_status", options)
            assert found["action"] == "tidy", found
            four_steps("run_settle", options, left)
        assert left() == [f"{runs['at-work']}-look", f"{runs['elsewhere']}-look"]
        with pytest.raises(docker.errors.NotFound):
            client.volumes.get(f"{runs['ended']}-data")
    finally:
        for run_id in runs.values():
            with contextlib.suppress(docker.errors.NotFound):
                client.containers.get(f"{run_id}-look").remove(force=True)
            with contextlib.suppress(docker.errors.NotFound):
                client.volumes.get(f"{run_id}-data").remove(force=True)


def test_pg_backup_says_which_key_to_set_where_the_password_is_wrong(strict: Production, tmp_path: Path) -> None:
    wrong = base64.b64encode(b"wrong").decode()
    database = {**strict.options()["database"], "password": wrong}
    refused = run_module("pg_backup", {"database": database, "directory": str(tmp_path / "backups")})
    assert refused["failed"] is True
    assert "recovery_stack.database.password" in refused["msg"]
    assert not list((tmp_path / "backups").iterdir())


# -- another user, and variables of the application's own --------------------------------------------------------------

ENV_PY = "/app/src/alembic/env.py"
CHECKED = (
    "import os; assert (os.getuid(), os.environ.get('SHOP')) == (65534, 'a \"b\" $c'), (os.getuid(), os.environ)\n"
)


@pytest.fixture
def particular(production: Production) -> Iterator[str]:
    """The application's env.py needs a user and a variable, in its container and in an image; the image's name."""
    container = production.replica.container("aiproxysrv")
    name = f"{production.replica.prefix}-particular:1"
    original = b"".join(container.get_archive(ENV_PY)[0])
    with tarfile.open(fileobj=io.BytesIO(original)) as archive:
        file = archive.extractfile(archive.getmembers()[0])
        assert file is not None
        text = file.read().decode()
    changed = io.BytesIO()
    with tarfile.open(fileobj=changed, mode="w") as archive:
        # Imports from __future__ come first.
        content = text.replace("import annotations\n", f"import annotations\n\n{CHECKED}", 1).encode()
        assert CHECKED.encode() in content
        member = tarfile.TarInfo("env.py")
        member.size, member.mode = len(content), 0o644
        archive.addfile(member, io.BytesIO(content))
    container.put_archive(str(Path(ENV_PY).parent), changed.getvalue())
    try:
        container.commit(*name.split(":"))
        yield name
    finally:
        container.put_archive(str(Path(ENV_PY).parent), original)
        production.replica.client.images.remove(name, force=True)


def test_a_system_user_and_an_environment_in_the_container_and_in_a_one_off(
    production: Production, particular: str
) -> None:
    for image in (None, particular):
        options = production.options(run_id=production.run_id(f"particular-{bool(image)}"))
        options["application"]["image"] = image
        unread = run_module("alembic_status", options)
        assert unread["verdict"] == "UNREADABLE"
        assert "AssertionError" in unread["summary"]

        options["application"] |= {"system_user": "65534", "environment": {"SHOP": 'a "b" $c'}}
        assert run_module("alembic_status", options)["verdict"] == "BEHIND"

    done = run_module("alembic_migrate", options)
    assert done.get("after") == [HEAD], done
