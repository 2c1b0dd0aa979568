"""Rows 23 to 30 of docs/faults.md: what is found on arrival. A look names it without a write; nothing is migrated."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replica import application
from replica.application import BASE, BROKEN, ENCODED, HEAD
from replica.databases import AppDatabase
from replica.fixtures import running_server
from replica.postgres import EmbeddedPostgres
from tests.support.copied import Copied
from tests.support.host_runs import AUTOVACUUM
from tests.support.looking import findings, status_twice
from tests.support.modules import run_module
from tests.support.stacks import Deployment, database_options, options, witness_of
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def quiet_server(embedded_postgres: EmbeddedPostgres) -> Iterator[None]:
    """Without autovacuum, the server's counters tell whether anybody has written."""
    embedded_postgres.execute(sql.SQL("alter system set autovacuum = off"))
    embedded_postgres.execute(sql.SQL("select pg_reload_conf()"))
    wait_until(lambda: not embedded_postgres.execute(sql.SQL(AUTOVACUUM)), "autovacuum has ended")
    yield
    embedded_postgres.execute(sql.SQL("alter system reset autovacuum"))
    embedded_postgres.execute(sql.SQL("select pg_reload_conf()"))


@pytest.fixture
def deployed(broken_database: AppDatabase, tmp_path: Path) -> tuple[AppDatabase, Deployment]:
    """A broken database, and a deployment of its own that a test may change."""
    deployment = Deployment(tmp_path / "app")
    database = AppDatabase(
        broken_database.server,
        deployment.directory,
        broken_database.name,
        broken_database.user,
        broken_database.password,
    )
    return database, deployment


def refused(database: AppDatabase, **more: Any) -> str:
    """Let the migration try: it must refuse, and leave everything as it was. Return why."""
    before = witness_of(database).look()
    done = run_module("alembic_migrate", options(database, **more))
    assert done["failed"] is True
    assert witness_of(database).look() == before
    message: str = done["msg"]
    return message


def test_row_23_two_version_rows_on_a_linear_history(broken_database: AppDatabase) -> None:
    """What a plain restore into a database that was not empty leaves."""
    witness_of(broken_database).execute(f"insert into alembic_version values ('{BASE}')")
    plain = broken_database.alembic("upgrade", "head")
    assert plain.returncode != 0

    seen = status_twice(broken_database)
    assert (seen["verdict"], seen["current"]) == ("DIVERGED", sorted([BASE, BROKEN]))
    assert f"{BASE} already is part of the others" in seen["summary"]
    assert "No relative downgrade" in seen["will_not"]
    assert BASE in refused(broken_database)


@pytest.mark.parametrize("how", ["drop table alembic_version", "delete from alembic_version"])
def test_row_24_no_version(broken_database: AppDatabase, how: str) -> None:
    witness_of(broken_database).execute(how)
    plain = broken_database.alembic("upgrade", "head")
    assert plain.returncode == 1
    assert "already exists" in plain.stderr
    # The plain command has made the table before it failed, or has not: whichever, there is no row.
    seen = status_twice(broken_database)
    assert seen["verdict"] == "UNVERSIONED"
    assert "Nothing is stamped" in seen["will_not"]
    assert "Nothing was migrated." in refused(broken_database)


def test_row_25_a_revision_that_the_code_does_not_have(broken_database: AppDatabase) -> None:
    witness_of(broken_database).execute("update alembic_version set version_num = 'feedc0ffee00'")
    plain = broken_database.alembic("upgrade", "head")
    assert plain.returncode == 255
    assert "Can't locate revision identified by 'feedc0ffee00'" in plain.stdout + plain.stderr

    seen = status_twice(broken_database)
    assert seen["verdict"] == "AHEAD"
    assert "Deploy the code that has feedc0ffee00" in seen["next_step"]
    assert "feedc0ffee00" in refused(broken_database)


def test_row_26_several_heads_in_the_code(deployed: tuple[AppDatabase, Deployment]) -> None:
    database, deployment = deployed
    deployment.add("aaaa00000001", "pass")
    deployment.add("bbbb00000002", "pass")
    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 255
    assert "Multiple head revisions are present" in plain.stdout + plain.stderr

    seen = status_twice(database)
    assert (seen["verdict"], seen["heads"]) == ("MULTIPLE_HEADS", ["aaaa00000001", "bbbb00000002"])
    assert "aaaa00000001, bbbb00000002" in refused(database)


def test_row_27_a_part_applied_by_hand(deployed: tuple[AppDatabase, Deployment]) -> None:
    """The column is there, the table is not; the plain command fails half-way, on what is there."""
    database, _deployment = deployed
    witness = witness_of(database)
    witness.execute("alter table songs add column sketch_id integer")
    seen = status_twice(database)
    assert seen["verdict"] == "PARTIAL"
    assert f"Revision {HEAD}: there: column songs.sketch_id; not there: table song_sketches" in seen["summary"]
    assert seen["declared"]["unknown"] == {ENCODED: "it uses the connection (execute)"}
    assert "column songs.sketch_id" in refused(database)

    witness.execute(f"update alembic_version set version_num = '{ENCODED}'")
    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 1
    assert "already exists" in plain.stderr


@pytest.mark.parametrize(
    ("by_hand", "expected"),
    [
        (["alter table songs add column sketch_id uuid"], []),
        (
            ["alter table songs add column sketch_id bigint", "create index by_hand on songs (sketch_id, title)"],
            [
                "columns: public.songs.sketch_id is made otherwise: type was 'bigint', is 'uuid'.",
                "indexes: public.songs.by_hand was there, and no revision makes it.",
            ],
        ),
    ],
    ids=["as the revision makes it", "otherwise, and with an index of its own, which goes with the column"],
)
def test_row_27_a_part_applied_by_hand_is_made_anew_and_compared(
    broken_database: AppDatabase, by_hand: list[str], expected: list[str]
) -> None:
    """On a copy: the column is removed, the revision makes it, and it must be what it was."""
    witness_of(broken_database).execute(f"update alembic_version set version_num = '{ENCODED}'", *by_hand)
    copied = Copied(broken_database)
    try:
        before = copied.witness.look()
        done = copied.repair(partial="resume")
        assert done["statements"] == ['ALTER TABLE "public"."songs" DROP COLUMN "sketch_id"']
        assert sorted(copied.migrate(done)) == expected
        assert copied.witness.has("song_sketches")
        after = copied.witness.look()
        unlike = {name for name, text in before.content.items() if after.content[name] != text}
        assert unlike == {"alembic_version.version_num"}
        assert before.rows.items() <= after.rows.items()
    finally:
        copied.remove()


def test_row_28_an_invalid_index_of_an_earlier_attempt(broken_database: AppDatabase) -> None:
    witness = witness_of(broken_database)
    with pytest.raises(psycopg.errors.UniqueViolation):
        witness.execute("create unique index concurrently ix_half on songs (user_id)")
    assert broken_database.alembic("current").returncode == 0  # says nothing of it

    seen = status_twice(broken_database)
    assert seen["verdict"] == "BEHIND"
    assert "public.ix_half" in findings(seen)["invalid_index"]
    assert 'REINDEX INDEX CONCURRENTLY "public"."ix_half";' in findings(seen)["invalid_index"]


def test_row_29_an_open_transaction_and_who_it_is(broken_database: AppDatabase) -> None:
    """A look does not wait; the migration waits a little, names who is in the way, and has done nothing."""
    witness = witness_of(broken_database)
    witness.execute(f"update alembic_version set version_num = '{ENCODED}'")
    with psycopg.connect(broken_database.conninfo, application_name="forgotten console") as idle:
        idle.execute("lock table songs in access exclusive mode")
        with pytest.raises(subprocess.TimeoutExpired):
            plain_upgrade(broken_database, seconds=6)
        with_nobody_waiting(broken_database)
        seen = run_module("alembic_status", options(broken_database))
        assert seen["verdict"] == "BEHIND"
        done = run_module("alembic_migrate", options(broken_database, lock_timeout=1, lock_attempts=1))
        assert done["failed"] is True
        assert "forgotten console" in done["msg"]
    assert witness.versions() == [ENCODED]
    assert not witness.has("song_sketches")


def test_row_30_another_server_with_a_database_of_the_same_name(
    broken_database: AppDatabase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_server(tmp_path_factory.mktemp("second")) as second:
        second.create_role(broken_database.user, broken_database.password)
        second.create_database(broken_database.name, broken_database.user)
        place = database_options(broken_database, unix_socket=str(second.socket_dir))
        seen = run_module("alembic_status", {**options(broken_database), "database": place})
        assert "server started" in findings(seen)["other_database"]
        assert seen["refusals"]
        done = run_module("alembic_migrate", {**options(broken_database), "database": place})
        assert done["failed"] is True
    assert witness_of(broken_database).versions() == [BROKEN]


def plain_upgrade(database: AppDatabase, *, seconds: float) -> None:
    """Run `alembic upgrade head`, and end it when the time is over; raise TimeoutExpired then."""
    subprocess.run(
        ["alembic", "upgrade", "head"],
        cwd=database.application,
        env=application.environment(database.url),
        check=True,
        capture_output=True,
        timeout=seconds,
    )


def with_nobody_waiting(database: AppDatabase) -> None:
    """End the sessions whose client is gone and that still wait for a lock."""
    witness_of(database).query(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
        "where wait_event_type = 'Lock' and datname = current_database()"
    )
