"""Rows 32 to 43: what goes wrong while a clone is migrated, and production is what it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from ansible.module_utils.alembic_recovery import naming
from psycopg import sql

from replica.application import BROKEN, ENCODED, HEAD, USER
from replica.databases import AppDatabase
from replica.postgres import EmbeddedPostgres
from tests.faults.injections import ModuleProcess, described, small_disk
from tests.support.evidence import Seen, Witness
from tests.support.modules import run_module
from tests.support.stacks import Deployment, application_options, witness_of
from tests.support.waiting import wait_until

NEW = "aaaa00000001"
RUN = "20251021T031500Z-7f3a1c"
SLEEPS = "op.execute('alter table songs add column slow int')\nop.execute('select pg_sleep(60)')"
UNTIDY = ("catalog", "rows", "content", "sequences")


@dataclass
class Ground:
    """A database of production, a clone of it, and code whose last revision goes wrong."""

    database: AppDatabase
    code: Deployment
    journal: Path

    def __post_init__(self) -> None:
        self.name = naming.database(self.database.name, "new", RUN)
        self.before = witness_of(self.database).look()
        self.clone()

    @property
    def copy(self) -> Witness:
        """An independent look at the clone."""
        return Witness(self.database.server.conninfo(self.name))

    def clone(self, state: str = "present") -> None:
        """Make the clone, or drop it."""
        options = {"database": described(self.database), "clone": self.name, "state": state}
        Witness(self.database.server.conninfo()).wait_until_left(self.database.name)
        done = run_module("pg_clone", options)
        assert not done.get("failed"), done

    def options(self, **more: Any) -> dict[str, Any]:
        """As recover.yml has them: the application keeps its URL, and is sent to the clone."""
        return {
            "database": {**described(self.database), "name": self.name},
            "application": application_options(self.database, self.code.directory, redirect=self.name),
            "run_id": RUN,
            **more,
        }

    def migrate(self, **more: Any) -> dict[str, Any]:
        """Migrate the clone."""
        return run_module("alembic_migrate", self.options(**more))

    def fails(self, **more: Any) -> str:
        """Migrate the clone; it has to fail, to leave nobody at work, and production as it was. Return the message."""
        seen = self.migrate(**more)
        assert seen.get("failed") is True, seen
        self.assert_untouched()
        return str(seen["msg"])

    def assert_untouched(self) -> None:
        """Production is what it was, and nobody of the migration is in the server."""
        wait_until(lambda: not self.sessions(), "the migration's sessions to end")
        production = witness_of(self.database)
        assert production.versions() == [BROKEN]
        after = production.look()
        for part in UNTIDY:
            assert getattr(after, part) == getattr(self.before, part), part

    def sessions(self) -> list[tuple[Any, ...]]:
        """The sessions of the migration, with what they do."""
        with psycopg.connect(self.database.server.conninfo(), autocommit=True) as connection:
            return connection.execute(
                "select pid, datname, query from pg_stat_activity where application_name = %s",
                [f"alembic-recovery:{RUN}:migrate"],
            ).fetchall()

    def is_asleep(self) -> bool:
        """Whether the last revision is at work, in the clone."""
        found = [(name, query) for _pid, name, query in self.sessions() if "pg_sleep" in query]
        assert all(name == self.name for name, _query in found)
        return bool(found)

    def works_once_the_cause_is_removed(self) -> None:
        """On a new clone, which is what the next run has."""
        next(self.code.versions.glob(f"{NEW}_*.py")).unlink()
        self.clone("absent")
        self.clone()
        assert self.migrate().get("after") == [HEAD]
        self.assert_untouched()


@pytest.fixture
def ground(broken_database: AppDatabase, tmp_path: Path) -> Iterator[Ground]:
    made = Ground(broken_database, Deployment(tmp_path / "app"), tmp_path / "runs" / "journal.jsonl")
    yield made
    broken_database.server.drop_database(made.name)


def rows_of(seen: Seen, table: str) -> dict[str, str]:
    return {name: text for name, text in seen.content.items() if name.startswith(f"{table}.")}


def test_row_32_an_error_in_ddl_after_a_change_of_data(ground: Ground) -> None:
    ground.code.add(
        NEW,
        "op.execute(\"update songs set title = 'lost'\")\n"
        "op.execute('alter table songs add column extra text')\n"
        "op.execute('alter table songs add constraint once unique (no_such)')",
    )
    said = ground.fails()

    assert 'UndefinedColumn: column "no_such" named in key does not exist' in said
    assert f"The database is at {HEAD} (read over a new connection)" in said
    assert f"not applied: {NEW}." in said
    assert "may have stayed" not in said
    copy = ground.copy.look()
    assert rows_of(copy, "songs").items() >= rows_of(ground.before, "songs").items()
    assert not ground.copy.has("songs.extra")
    ground.works_once_the_cause_is_removed()


def test_row_33_an_autocommit_block_and_then_an_error(ground: Ground) -> None:
    ground.code.add(
        NEW,
        "op.execute('alter table songs add column half text')\n"
        "with op.get_context().autocommit_block():\n"
        "    op.execute('create index concurrently ix_half on songs (half)')\n"
        "op.execute('select 1/0')",
    )
    said = ground.fails()

    assert "DivisionByZero" in said
    assert f"Revision {NEW} had committed before it failed: a part of its work may have stayed." in said
    assert ground.copy.has("songs.half"), "nothing has stayed: the fault was not injected"
    # Run again on what has stayed, it would die of that: it is not started.
    again = ground.fails()
    assert "Nothing was migrated." in again
    assert "has a part of what comes after that" in again
    assert "songs.half" in again
    ground.works_once_the_cause_is_removed()


def test_row_33_an_index_that_cannot_be_made_concurrently(ground: Ground) -> None:
    ground.code.add(
        NEW,
        "with op.get_context().autocommit_block():\n"
        "    op.execute('create unique index concurrently ix_once on songs (user_id)')",
    )
    said = ground.fails()

    assert 'UniqueViolation: could not create unique index "ix_once"' in said
    assert "is duplicated" not in said, "PostgreSQL's detail has the value"
    assert f"not applied: {NEW}." in said
    invalid = run_module("pg_catalog", {"database": {**described(ground.database), "name": ground.name}})
    assert invalid["invalid_indexes"] == ["public.ix_once"], "nothing has stayed: the fault was not injected"
    ground.works_once_the_cause_is_removed()


def commits_itself(code: Deployment) -> str:
    """The incident's own revision: it calls commit()."""
    return ENCODED


def takes_a_lock_before(code: Deployment) -> str:
    """SQL before `configure`: Alembic takes the transaction for somebody else's."""
    without_the_incident(code)
    code.change_env(
        {
            "        context.configure(connection=connection,": (
                "        connection.exec_driver_sql('select pg_advisory_lock(42)')\n"
                "        context.configure(connection=connection,"
            )
        }
    )
    return HEAD


def nobody_commits(code: Deployment) -> str:
    """As with an asynchronous connection that is closed without a commit."""
    without_the_incident(code)
    code.change_env(
        {
            "target_metadata=target_metadata)\n        with context.begin_transaction():\n            context.run": (
                "target_metadata=target_metadata)\n        connection.begin()\n        if connection:\n"
                "            context.run"
            )
        }
    )
    return HEAD


def without_the_incident(code: Deployment) -> None:
    """Take the revision out that commits itself."""
    next(code.versions.glob(f"{ENCODED}_*.py")).unlink()
    head = next(code.versions.glob(f"{HEAD}_*.py"))
    head.write_text(head.read_text().replace(f'down_revision = "{ENCODED}"', f'down_revision = "{BROKEN}"'))


@pytest.mark.parametrize("kind", [commits_itself, takes_a_lock_before, nobody_commits])
def test_row_34_alembic_says_yes_and_nothing_was_committed(ground: Ground, kind: Callable[[Deployment], str]) -> None:
    """Plain Alembic ends with 0; without healing that is noticed, with healing it is what Alembic said."""
    first = kind(ground.code)
    plain = AppDatabase(ground.database.server, ground.code.directory, ground.name, USER, ground.database.password)
    assert plain.alembic("upgrade", "head").returncode == 0
    assert ground.copy.versions() == [BROKEN]
    ground.clone("absent")
    ground.clone()

    said = ground.fails(heal=False)

    assert f"Alembic reported revision {first} as applied, but a new connection reads {BROKEN} from" in said
    assert "it was rolled back" in said
    assert f"The database is at {BROKEN} (read over a new connection)" in said
    assert ground.copy.versions() == [BROKEN]
    assert not ground.copy.has("song_sketches")

    ground.clone("absent")
    ground.clone()
    done = ground.migrate()
    assert done.get("after") == ground.copy.versions() == [HEAD], done
    assert ground.copy.has("song_sketches")
    ground.assert_untouched()


def test_row_35_the_module_is_killed_and_the_server_ends_the_session(ground: Ground) -> None:
    ground.code.add(NEW, SLEEPS)
    module = ModuleProcess("alembic_migrate", ground.options())
    wait_until(ground.is_asleep, "the revision to sleep")

    started = time.monotonic()
    module.kill()

    wait_until(lambda: not ground.sessions(), "the session to end")
    assert time.monotonic() - started < 45, "the statement ran on"
    assert not ground.copy.has("songs.slow")
    ground.assert_untouched()
    ground.works_once_the_cause_is_removed()


def test_row_36_a_lock_in_the_clone_ends_the_wait_and_names_who_holds_it(ground: Ground) -> None:
    """Whoever reads meanwhile waits no longer than the migration does."""
    waited: list[float] = []

    def read() -> None:
        wait_until(lambda: any("ALTER" in query for _pid, _name, query in ground.sessions()), "the migration to wait")
        began = time.monotonic()
        ground.copy.query("select count(*) from songs")
        waited.append(time.monotonic() - began)

    with psycopg.connect(ground.copy.conninfo, application_name="a report") as other:
        other.execute("select count(*) from songs")
        reader = threading.Thread(target=read)
        reader.start()
        said = ground.fails(lock_timeout=5, lock_attempts=1)
        reader.join()

        assert "canceling statement due to lock timeout" in said
        assert f"{other.info.backend_pid} (postgres, a report, " in said
    assert waited
    assert waited[0] < 15
    assert ground.migrate().get("after") == [HEAD]


def test_row_36_a_lock_in_production_is_in_nobodys_way(ground: Ground) -> None:
    with psycopg.connect(ground.database.conninfo) as other:
        other.execute("lock table songs in access exclusive mode")
        assert ground.migrate(lock_timeout=1).get("after") == [HEAD]
    ground.assert_untouched()


def test_row_37_the_settings_are_those_of_the_applications_own_session(ground: Ground) -> None:
    """Asked with SHOW by a revision, in the application's own connection; PGOPTIONS say otherwise and do not decide."""
    names = ("lock_timeout", "statement_timeout", "client_connection_check_interval", "application_name")
    shown = "\n".join(
        f"op.execute(sa.text('insert into shown values (:name, :value)').bindparams(name='{name}', "
        f"value=op.get_bind().exec_driver_sql('show {name}').scalar()))"
        for name in names
    )
    ground.code.add(NEW, f"op.execute('create table shown (name text, value text)')\n{shown}")
    options = ground.options(lock_timeout=7, statement_timeout=900)
    options["application"]["environment"]["PGOPTIONS"] = "-c lock_timeout=77s -c statement_timeout=77s"

    done = run_module("alembic_migrate", options)

    assert done.get("after") == [NEW], done
    assert dict(ground.copy.query("select name, value from shown")) == {
        "lock_timeout": "7s",
        "statement_timeout": "15min",
        "client_connection_check_interval": "1s",
        "application_name": f"alembic-recovery:{RUN}:migrate",
    }
    ground.assert_untouched()


def test_row_38_a_timeout_that_hangs_on_database_and_role_kills_neither_migration_nor_checks(
    ground: Ground, tmp_path: Path
) -> None:
    ground.copy.execute(
        "create table bulky as select i, repeat(md5(i::text), 5) as text from generate_series(1, 200000) i",
        f"alter table bulky owner to {USER}",
        f"alter database {ground.name} set statement_timeout = '200ms'",
        f"alter role {USER} in database {ground.name} set statement_timeout = '200ms'",
    )
    try:
        ground.code.add(NEW, "op.execute('select pg_sleep(0.6)')")
        place = {**described(ground.database), "name": ground.name}
        with (
            psycopg.connect(psycopg.conninfo.make_conninfo(ground.database.conninfo, dbname=ground.name)) as connection,
            pytest.raises(psycopg.errors.QueryCanceled),
        ):
            connection.execute("select md5(string_agg(md5(text), ',' order by text)) from bulky")

        done = ground.migrate()
        assert done.get("after") == [NEW], done
        seen = run_module("pg_catalog", {"database": place, "content": True})
        assert seen.get("row_counts", {}).get("public.bulky") == 200000, seen
        query = {"name": "slow", "sql": "select count(*) from bulky, pg_sleep(0.6)", "equals": 200000}
        assert run_module("sql_check", {"database": place, "queries": [query]}).get("problems") == []
        backup = {"database": place, "directory": str(tmp_path / "backups"), "run_id": RUN}
        assert run_module("pg_backup", backup).get("changed") is True
        ground.assert_untouched()
    finally:
        ground.database.server.execute(
            sql.SQL("alter role {} in database {} reset all").format(sql.Identifier(USER), sql.Identifier(ground.name))
        )


@pytest.fixture
def small_tablespace(embedded_postgres: EmbeddedPostgres) -> Iterator[Path]:
    """A tablespace with room for 16 MiB that everybody may use."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    owner = embedded_postgres.data.stat()
    # Where the server's user may go.
    with small_disk(embedded_postgres.data.parent / "small", 16) as disk:
        place = disk / "space"
        place.mkdir(mode=0o700)
        os.chown(place, owner.st_uid, owner.st_gid)
        embedded_postgres.execute(sql.SQL("create tablespace small location {}").format(sql.Literal(str(place))))
        embedded_postgres.execute(sql.SQL("grant create on tablespace small to public"))
        yield place
        embedded_postgres.execute(sql.SQL("drop tablespace small"))


def test_row_39_the_disk_gets_full_while_a_table_is_rewritten(
    small_tablespace: Path, broken_database: AppDatabase, tmp_path: Path
) -> None:
    del small_tablespace
    ground = Ground(broken_database, Deployment(tmp_path / "app"), tmp_path / "journal.jsonl")
    ground.code.add(
        NEW,
        "op.execute('create table big tablespace small as select i, repeat(md5(i::text), 30) from "
        "generate_series(1, 2000) i')\n"
        "op.execute('insert into big select i, repeat(md5(i::text), 30) from generate_series(1, 60000) i')",
    )
    try:
        said = ground.fails()

        assert "DiskFull: could not extend file" in said
        assert "No space left on device" in said
        assert f"The database is at {HEAD} (read over a new connection)" in said
        assert not ground.copy.has("big")
        ground.works_once_the_cause_is_removed()
    finally:
        broken_database.server.drop_database(ground.name)


def test_row_40_the_backend_is_killed_and_postgresql_restarts(ground: Ground) -> None:
    # The server of the tests may lose its last commits in a crash; production's does not.
    ground.copy.execute(f"alter database {ground.name} set synchronous_commit = on")
    ground.code.add(NEW, SLEEPS)
    killed: list[int] = []

    def kill() -> None:
        wait_until(ground.is_asleep, "the revision to sleep")
        [pid] = [pid for pid, _name, query in ground.sessions() if "pg_sleep" in query]
        psutil.Process(pid).kill()
        killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    seen = ground.migrate()
    killer.join()

    assert killed
    assert seen.get("failed") is True, seen
    assert f"The database is at {HEAD} (read over a new connection)" in seen["msg"]
    assert f"applied and proved in this run: {ENCODED}, {HEAD}; not applied: {NEW}." in seen["msg"]
    assert not ground.copy.has("songs.slow")
    ground.assert_untouched()
    ground.works_once_the_cause_is_removed()


@pytest.mark.parametrize(
    ("body", "limit", "words"),
    [
        pytest.param(SLEEPS, {"statement_timeout": 5}, "canceling statement due to statement timeout", id="statement"),
        pytest.param(
            "import time\nop.execute('alter table songs add column slow int')\ntime.sleep(300)",
            {"timeout": 25},
            "has been silent for 25 s and was ended",
            id="silence",
        ),
    ],
)
def test_row_42_what_takes_too_long_is_cancelled(ground: Ground, body: str, limit: dict[str, int], words: str) -> None:
    ground.code.add(NEW, body)
    started = time.monotonic()
    said = ground.fails(**limit)

    assert time.monotonic() - started < 120
    assert words in said
    assert f"The database is at {HEAD} (read over a new connection)" in said
    assert not ground.copy.has("songs.slow")
    ground.works_once_the_cause_is_removed()


def test_row_43_data_that_are_lost_or_wrong_are_found_on_the_clone(ground: Ground) -> None:
    """Every revision is green; the rows that are gone and the values that are wrong are found before the swap."""
    production, place = described(ground.database), {**described(ground.database), "name": ground.name}
    queries = [
        {"name": "titles", "sql": "select count(distinct title) from songs", "at_least": "before"},
        {"name": "nobody's songs", "sql": "select count(*) from songs where user_id is null", "equals": 0},
    ]
    asked = {"database": production, "queries": queries, "phase": "before"}
    before = run_module("sql_check", asked)["measured"]
    counts = run_module("pg_catalog", {"database": production})["row_counts"]
    ground.code.add(
        NEW, "op.execute(\"update songs set title = 'x'\")\nop.execute('delete from songs where number % 3 = 0')"
    )

    assert ground.migrate().get("after") == [NEW]

    lost = run_module("pg_catalog", {"database": place, "row_counts_before": counts})["lost_rows"]
    assert [line.split()[0] for line in lost] == ["public.songs"], lost
    [wrong] = run_module("sql_check", {"database": place, "queries": queries, "before": before})["problems"]
    assert wrong.startswith("titles: the query gives 1, expected at least ")
    ground.assert_untouched()


def test_s21_no_value_of_a_row_is_in_a_message_or_a_journal(ground: Ground) -> None:
    """What PostgreSQL, the driver and Python quote of somebody's data when they do not like it."""
    private = "Somebody Private"
    bodies = {
        "unique": "op.get_bind().execute(sa.text('insert into users (email, display_name, created_at) select email, "
        f":name, now() from users limit 1'), {{'name': '{private}'}})",
        "syntax": f"op.get_bind().execute(sa.text('select cast(:value as int)'), {{'value': \"O'{private}\\\"\\nX\"}})",
        "python": f"int('{private}')",
        "json": f"import json\njson.loads('{private}')",
        "echo": "import logging, os, sys\n"
        f'print(\'[generated in 0.1s] {{"name": "{private}"}}\', file=sys.stderr, flush=True)\nos._exit(9)',
    }
    for number, (name, body) in enumerate(bodies.items()):
        path = ground.code.add(NEW, body)
        journal = ground.journal.with_name(f"{number}.jsonl")
        seen = ground.migrate(journal=str(journal))
        assert seen.get("failed") is True, name
        assert ("sqlstate" in seen) == (name in ("unique", "syntax", "python", "json")), seen
        for text in (json.dumps(seen), journal.read_text()):
            assert "Private" not in text, (name, text)
            assert "@" not in text, (name, text)
        path.unlink()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(ground.code.versions / "__pycache__")
    ground.assert_untouched()
