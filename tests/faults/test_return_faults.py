"""Rows 44 to 57: what goes wrong on the way back and at the end, and the security points of both ways."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import naming, record

from replica.application import HEAD
from replica.databases import AppDatabase
from replica.docker import DockerReplica
from tests.faults.conftest import Place, Site
from tests.faults.injections import described, modes
from tests.support.evidence import Seen, Witness
from tests.support.fenced import FencedStack
from tests.support.modules import run_module
from tests.support.stacks import Deployment, application_options, witness_of
from tests.support.supervised import STEADY, Supervised

NEW = "aaaa00000001"
RUN = "20251021T031500Z-7f3a1c"


def same(one: Seen, other: Seen) -> bool:
    """Whether catalog, rows, content and sequences are equal."""
    return (one.catalog, one.rows, one.content, one.sequences) == (
        other.catalog, other.rows, other.content, other.sequences,
    )  # fmt: skip


def beside(database: AppDatabase) -> list[str]:
    """The databases of the server that have this one's name in theirs, without itself."""
    rows = Witness(database.server.conninfo()).query(
        f"select datname from pg_database where datname ~ '^{database.name}_' order by 1"
    )
    return [row[0] for row in rows]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    """A supervisord of its own with two programs that run."""
    with Supervised(tmp_path, {"api": STEADY, "worker": STEADY}) as supervisor:
        for name in ("api", "worker"):
            supervisor.wait_for(name, "RUNNING")
        yield supervisor


@pytest.fixture
def stack(broken_database: AppDatabase, supervised: Supervised, tmp_path: Path) -> Iterator[FencedStack]:
    """A database with supervised services, and a place for runs."""
    made = FencedStack(broken_database, supervised, tmp_path / "state" / "demo" / "runs")
    yield made
    made.tidy()


@pytest.fixture
def restored(broken_database: AppDatabase) -> Iterator[str]:
    """The name of a restored database, which goes with the test."""
    name = naming.database(broken_database.name, "restored", RUN)
    yield name
    broken_database.server.drop_database(name)


def test_row_44_a_backup_is_restored_into_a_new_database_only(place: Place, broken_database: AppDatabase) -> None:
    backup = run_module("pg_backup", place.arguments(broken_database))
    witness = witness_of(broken_database)
    witness.execute("update songs set title = 'written since'")
    before = witness.look()
    for into in (broken_database.name, "postgres", "template1"):
        options = {"database": described(broken_database), "manifest": backup["manifest_file"], "into": into}
        for check in (True, False):
            refused = run_module("pg_restore", options, check=check)
            assert f"A database {into} is there already" in refused["msg"], refused
    assert same(witness.look(), before)


def test_rows_45_50_stored_text_stays_text_and_there_are_statistics(
    place: Place, broken_database: AppDatabase, restored: str, tmp_path: Path
) -> None:
    owned = tmp_path / "owned"
    witness = witness_of(broken_database)
    texts = [
        "Bobby'; drop table songs; --",
        "Bobby; drop table songs; --",
        f"\\! touch {owned}",
        f"\\.\n\\! touch {owned}",
        f"$$; copy songs to program 'touch {owned}'; $$",
    ]
    for number, text in enumerate(texts):
        quoted = text.replace("\\", "\\\\").replace("'", "''")
        witness.execute(f"insert into users (email, display_name, created_at) values ('x{number}', E'{quoted}', now())")
    before = witness.look()
    backup = run_module("pg_backup", place.arguments(broken_database))

    options = {"database": described(broken_database), "manifest": backup["manifest_file"], "into": restored}
    done = run_module("pg_restore", options)

    assert done.get("changed") is True, done
    copy = Witness(broken_database.server.conninfo(restored))
    assert [row[0] for row in copy.query("select display_name from users where email ~ '^x[0-9]$' order by email")] == (
        texts
    )
    assert same(copy.look(), before)
    assert same(witness.look(), before)
    assert not owned.exists()
    # Without statistics, PostgreSQL guesses, and the first queries are slow.
    [(plan,)] = copy.query("explain (format json) select * from songs")
    assert plan[0]["Plan"]["Plan Rows"] == before.rows["songs"]
    known = {row[0] for row in copy.query("select distinct tablename from pg_stats where schemaname = 'public'")}
    assert known >= {table for table, count in before.rows.items() if count}


def test_row_50_a_clone_has_the_statistics_of_its_original(broken_database: AppDatabase) -> None:
    witness = witness_of(broken_database)
    witness.execute("analyze")
    Witness(broken_database.server.conninfo()).wait_until_left(broken_database.name)
    clone = naming.database(broken_database.name, "new", RUN)
    known = "select tablename, attname, n_distinct from pg_stats where schemaname = 'public' order by 1, 2"
    options = {"database": described(broken_database), "clone": clone}
    try:
        done = run_module("pg_clone", options)
        assert done.get("changed") is True, done
        assert Witness(broken_database.server.conninfo(clone)).query(known) == witness.query(known) != []
    finally:
        broken_database.server.drop_database(clone)


def test_row_52_what_was_written_since_the_swap_is_counted_exported_and_kept(stack: FencedStack) -> None:
    name, before = stack.database.name, witness_of(stack.database).look()
    oids = stack.databases()
    new, old = stack.copied()
    run_module("pg_fence", stack.options(state="closed"))
    swapped = stack.swap(replacement=new, keep_as=old)
    assert swapped.get("changed") is True, swapped
    place = stack.options()["database"]
    witness_of(stack.database).execute(
        "insert into users (email, display_name, created_at) values ('new@songs.example', 'New', now())",
        "update songs set title = 'new title' where number = (select min(number) from songs)",
    )
    since = {"database": place, "since_xid": swapped["xid"]}

    counts = {f"public.{table}": count for table, count in before.rows.items()}
    seen = run_module("pg_written", {**since, "row_counts_before": counts})
    file = stack.runs.parent / "backups" / "written.jsonl"
    kept = run_module("pg_export", {**since, "path": str(file)})

    written = {row["table"]: (row["written"], row["net"]) for row in seen["tables"]}
    assert written == {"public.users": (1, 1), "public.songs": (1, 0)}
    assert kept["tables"] == {"public.users": 1, "public.songs": 1}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["row"]["email"] for line in lines if line["table"] == "public.users"] == ["new@songs.example"]
    assert modes(file.parent) == {".": "0700", "written.jsonl": "0600"}

    run_module("pg_fence", stack.options(state="closed"))
    replaced = naming.database(name, "replaced", stack.run_id)
    back = stack.swap(replacement=old, keep_as=replaced)
    assert back.get("changed") is True, back
    assert same(witness_of(stack.database).look(), before)
    # What was written is lost to nobody: it is in the file, and in the database that was in use.
    databases = stack.databases()
    assert databases[name] == (oids[name][0], True)
    assert databases[replaced][1] is False
    stack.admin(f'alter database "{replaced}" allow_connections true')
    emails = Witness(stack.database.server.conninfo(replaced)).query("select email from users where email ~ '^new@'")
    assert emails == [("new@songs.example",)]


@pytest.mark.parametrize("seconds", [0.2, 1.5])
def test_row_53_a_service_that_starts_and_ends_is_not_up(stack: FencedStack, seconds: float) -> None:
    """Supervisord calls it RUNNING after a second, and starts it again and again."""
    stack.supervised.set_program("api", f"import time\nprint('ready')\ntime.sleep({seconds})\nraise SystemExit(1)\n")
    worker = stack.supervised.process("worker")

    seen = run_module("service_restart", {"services": stack.options()["services"], "timeout": 8})

    assert seen.get("failed") is True, seen
    assert seen["service"] == "api"
    assert "api (supervisor unit api) was restarted and" in seen["msg"]
    assert stack.supervised.process("worker") == worker, "the next one was touched"


@pytest.mark.docker
@pytest.mark.xdist_group("tests/faults/test_docker_faults.py")
def test_row_53_a_container_that_is_up_and_unhealthy(docker_replica: DockerReplica) -> None:
    client = docker_replica.client
    image = docker_replica.container("aiproxysrv").image
    container = client.containers.create(
        image,
        ["-c", "import time; time.sleep(600)"],
        entrypoint="python3",
        name=f"{docker_replica.prefix}-unhealthy-1",
        labels={"com.docker.compose.project": "other"},
        healthcheck={"test": ["CMD", "false"], "interval": 10**9, "retries": 1},
    )
    try:
        container.start()
        service = {"name": "api", "runtime": "docker", "container": container.name, "stop_timeout": 1}
        seen = run_module("service_restart", {"services": [service], "timeout": 30})
        container.reload()
        assert container.status == "running"
        assert seen.get("failed") is True, seen
        assert "unhealthy" in seen["msg"]
        looked = run_module("service_status", {"services": [service]})
        assert ["is unhealthy" in problem for problem in looked["problems"]] == [True]
    finally:
        container.remove(force=True)


def test_row_57_the_name_of_a_run_is_not_used_twice(stack: FencedStack, place: Place) -> None:
    """As a clock that jumps back would have it: neither record nor backup nor copy is overwritten."""
    stack.lock()
    record.begin(str(stack.directory), "cloning")
    stack.kill_keeper()
    kept = {path.name: path.read_bytes() for path in stack.directory.iterdir() if path.is_file()}
    refused = stack.lock()
    assert "there is a run of that name. Choose another run id." in refused["msg"], refused
    for name in (record.RECORD, record.AUDIT, record.PAGE):
        assert (stack.directory / name).read_bytes() == kept[name]

    arguments = {**place.arguments(stack.database), "run_id": stack.run_id}
    made = run_module("pg_backup", arguments)
    content = Path(made["dump"]).read_bytes()
    witness_of(stack.database).execute("update songs set title = 'written since'")
    again = run_module("pg_backup", arguments)
    assert again.get("changed") is False or again.get("failed") is True, again
    assert Path(made["dump"]).read_bytes() == content

    options = {
        "database": described(stack.database),
        "clone": naming.database(stack.database.name, "new", stack.run_id),
    }
    Witness(stack.database.server.conninfo()).wait_until_left(stack.database.name)
    assert run_module("pg_clone", options)["changed"] is True
    assert "is there already" in run_module("pg_clone", options)["msg"]


def test_s20_what_destroys_needs_the_name_of_what_is_destroyed(stack: FencedStack) -> None:
    """Neither the database itself, nor one that was kept, nor somebody else's is dropped by whatever name is given."""
    name = stack.database.name
    old = naming.database(name, "old", stack.run_id)
    stack.admin(f'create database "{old}" allow_connections false', f'create database "{name}_songs"')
    there = stack.databases()
    for victim in (name, old, f"{name}_songs", "postgres", "template0", f"{name}_new_%", f"{name}_new_", "*", ""):
        options = {"database": described(stack.database), "clone": victim, "state": "absent"}
        refused = run_module("pg_clone", options)
        assert refused.get("failed") is True, (victim, refused)
    assert stack.databases() == there
    # A run that is cut off is ended by its own name only.
    stack.lock()
    stack.run("service_stop")
    record.begin(str(stack.directory), "fencing")
    stack.kill_keeper()
    (stack.directory / "alive" / str(os.getpid())).write_text(record.started(os.getpid()))
    for word in ("yes", "true", "*", f"{stack.run_id}x"):
        options = stack.options(directory=str(stack.runs), settle=word)
        refused = run_module("run_settle", {**options, "run_id": RUN})
        assert refused.get("failed") is True, (word, refused)
    assert stack.record()["stage"] == "fencing"
    assert set(stack.states().values()) == {"STOPPED"}
    (stack.directory / "alive" / str(os.getpid())).unlink()


def test_s21_who_when_from_where_and_what_was_decided_and_nobodys_data(stack: FencedStack, tmp_path: Path) -> None:
    """A run whose revision trips over somebody's data: they are in none of the files that stay, and in no result."""
    private = "somebody.private@songs.example"
    witness_of(stack.database).execute(
        f"insert into users (email, display_name, created_at) values ('{private}', 'Private', now())"
    )
    code = Deployment(tmp_path / "app")
    code.add(
        NEW,
        "op.get_bind().execute(sa.text('insert into users (email, display_name, created_at) values "
        f"(:mail, :name, now())'), {{'mail': '{private}', 'name': 'Private'}})",
    )
    stack.lock()
    stack.run("service_stop")
    stack.run("pg_fence", state="closed")
    clone = naming.database(stack.database.name, "new", stack.run_id)
    directory = str(stack.directory)
    copied = {"database": described(stack.database), "clone": clone, "run_directory": directory}
    assert run_module("pg_clone", {**copied, "run_id": stack.run_id})["changed"] is True
    seen = run_module(
        "alembic_migrate",
        {
            "database": {**described(stack.database), "name": clone},
            "application": application_options(stack.database, code.directory, redirect=clone),
            "run_id": stack.run_id,
            "run_directory": directory,
            "journal": f"{directory}/journal.jsonl",
        },
    )

    assert "UniqueViolation: duplicate key value violates unique constraint" in seen["msg"], seen
    files = [path for path in stack.directory.rglob("*") if path.is_file()]
    assert {"record.json", "audit.jsonl", "journal.jsonl", "BREAK-GLASS.txt"} <= {path.name for path in files}
    for text in [json.dumps(seen), *(path.read_text() for path in files)]:
        assert "rivate" not in text
        assert "Key (" not in text
        assert stack.database.password not in text
    assert {mode for name, mode in modes(stack.directory).items() if (stack.directory / name).is_file()} == {"0600"}
    audit = [json.loads(line) for line in (stack.directory / "audit.jsonl").read_text().splitlines()]
    assert all(line["at"].endswith("+00:00") for line in audit)
    first: dict[str, Any] = audit[0]
    assert (first["operator"], first["controller"], first["run_id"]) == ("anna", "laptop", stack.run_id)
    stages = list(dict.fromkeys(line["stage"] for line in audit if "stage" in line))
    assert stages == ["locked", "fencing", "fenced", "cloning", "cloned", "migrating"]
    assert next(line for line in audit if line.get("stage") == "migrating")["revisions"][-1] == NEW


def test_s22_the_copy_of_a_rehearsal_is_gone_also_when_it_fails(broken_database: AppDatabase, tmp_path: Path) -> None:
    """The whole of recover.yml, with a revision that fails after a change of data: the rehearsal finds it."""
    code = Deployment(tmp_path / "app")
    code.add(NEW, "op.execute(\"update songs set title = 'lost'\")\nop.execute('select 1/0')")
    database = AppDatabase(
        broken_database.server, code.directory, broken_database.name, broken_database.user, broken_database.password
    )
    before = witness_of(database).look()

    run = Site(tmp_path / "site", database).recover(timeout=500)

    assert run.code == 2, run.text
    said = " ".join(run.text.split())
    assert "division by zero" in said
    assert f"The database is at {HEAD} (read over a new connection)" in said
    assert beside(database) == []
    assert same(witness_of(database).look(), before)
