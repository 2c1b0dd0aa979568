"""The traps: in each test first what plain Alembic does, then what the tool does; docs/verdicts.md has the table.

The numbers are those of the project's list of what really goes wrong.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica import application
from replica.databases import AppDatabase
from tests.support.looking import findings, status_twice
from tests.support.modules import run_module
from tests.support.pooler import PORT, pgbouncer
from tests.support.small_app import ENV, Revision
from tests.support.stacks import application_options, database_options, options, witness_of
from tests.support.waiting import wait_until
from tests.verdicts.conftest import MakeApp

SONGS = Revision(
    "songs", "op.create_table('songs', sa.Column('id', sa.Integer, primary_key=True), sa.Column('n', sa.Text))"
)
SKETCHES = Revision("sketches", "op.create_table('sketches', sa.Column('id', sa.Integer))")
COMMITS = Revision(
    "commits",
    """
    connection = op.get_bind()
    connection.execute(sa.text("update songs set n = upper(n)"))
    connection.commit()
    """,
)


ASYNC_ENV = """import asyncio
import os

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import context

URL = os.environ["DATABASE_URL"].replace("+psycopg", "+asyncpg")


def migrate(connection):
    assert connection.dialect.driver == "asyncpg"
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def online():
    engine = create_async_engine(URL, poolclass=sa.NullPool)
    async with engine.connect() as connection:
        await connection.execute(sa.text("set search_path to public"))
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(online())
"""
# Models with two indexes, of which the migrations make one under another name, as in many an application.
MODELS_ENV = ENV.replace(
    "engine =",
    """models = sa.MetaData()
sa.Table("songs", models, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Text, index=True),
    sa.Index("by_both", "id", "n"))
engine =""",
).replace("connection=connection", "connection=connection, target_metadata=models")
INDEXES = Revision(
    "indexes", "op.create_index('old_name', 'songs', ['n'])\nop.create_index('by_both', 'songs', ['id', 'n'])"
)


def prepared(make_app: MakeApp, chain: list[Revision], env: str = ENV) -> AppDatabase:
    """Give a database at the first revision, with a row in it, and the whole chain beside it."""
    assert make_app(chain[:1]).alembic("upgrade", "head").returncode == 0
    database = make_app(chain, env)
    witness_of(database).execute("insert into songs (n) values ('x')")
    return database


def migrate(database: AppDatabase, **more: Any) -> dict[str, Any]:
    """Run the module that migrates."""
    return run_module("alembic_migrate", options(database, **more))


def refuses(database: AppDatabase) -> str:
    """Let the migration try; it must refuse and write nothing. Return why."""
    before = witness_of(database).look()
    done = migrate(database)
    assert done["failed"] is True
    assert witness_of(database).look() == before
    message: str = done["msg"]
    return message


def test_trap_01_a_revision_commits(make_app: MakeApp) -> None:
    database = prepared(make_app, [SONGS, COMMITS, SKETCHES])
    witness = witness_of(database)
    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 0
    assert witness.versions() == ["songs"]
    assert not witness.has("sketches")
    assert witness.value("select n from songs") == "X"  # half of it has stayed

    seen = status_twice(database)
    assert seen["verdict"] == "BEHIND"
    assert "`alembic upgrade` would report success" in findings(seen)["commits_itself"]
    done = migrate(database)
    assert "failed" not in done, done
    assert witness.versions() == ["sketches"]
    assert witness.has("sketches")


def test_trap_02_sql_before_configure(make_app: MakeApp) -> None:
    env = ENV.replace("    context.configure(", "    connection.exec_driver_sql('select 1')\n    context.configure(")
    database = prepared(make_app, [SONGS, SKETCHES], env)
    witness = witness_of(database)
    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 0
    assert witness.versions() == ["songs"]
    assert not witness.has("sketches")

    assert status_twice(database)["verdict"] == "BEHIND"
    done = migrate(database)
    assert "failed" not in done, done
    assert witness.versions() == ["sketches"]
    assert witness.has("sketches")


def test_trap_03_an_async_env_without_a_commit(make_app: MakeApp) -> None:
    """With asyncpg: what the connection does first begins a transaction, and nobody commits it after `run_sync`."""
    told = Revision("told", "op.execute(\"create table told as select current_setting('lock_timeout') as patience\")")
    database = prepared(make_app, [SONGS, told], ASYNC_ENV)
    witness = witness_of(database)
    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 0, plain.stderr
    assert witness.versions() == ["songs"]
    assert not witness.has("told")

    assert status_twice(database)["verdict"] == "BEHIND"
    done = migrate(database, lock_timeout=7)
    assert "failed" not in done, done
    assert witness.versions() == ["told"]
    assert witness.value("select patience from told") == "7s"


def test_trap_04_an_autocommit_block_and_then_an_error(make_app: MakeApp) -> None:
    failing = Revision(
        "half",
        """
        op.create_table('sketches', sa.Column('id', sa.Integer))
        with op.get_context().autocommit_block():
            op.execute('select 1')
        op.create_table('drafts', sa.Column('id', sa.Integer))
        op.execute('select 1 / 0')
        """,
    )
    database = prepared(make_app, [SONGS, failing])
    assert "division by zero" in database.alembic("upgrade", "head").stderr
    again = database.alembic("upgrade", "head")
    assert again.returncode == 1
    assert 'relation "sketches" already exists' in again.stderr

    seen = status_twice(database)
    assert seen["verdict"] == "PARTIAL"
    assert "Revision half: there: table sketches; not there: table drafts." in seen["summary"]
    assert "-e recovery_partial=resume" in seen["next_step"]
    assert "table sketches" in refuses(database)


def test_trap_05_an_invalid_index_stays(make_app: MakeApp) -> None:
    indexed = Revision(
        "indexed",
        """
        with op.get_context().autocommit_block():
            op.create_index('ix_n', 'songs', ['n'], unique=True, postgresql_concurrently=True)
        """,
    )
    database = prepared(make_app, [SONGS, indexed])
    witness = witness_of(database)
    witness.execute("insert into songs (n) values ('x')")
    assert "could not create unique index" in database.alembic("upgrade", "head").stderr
    witness.execute("delete from songs")
    again = database.alembic("upgrade", "head")
    assert again.returncode == 1
    assert 'relation "ix_n" already exists' in again.stderr

    seen = status_twice(database)
    assert seen["verdict"] == "PARTIAL"
    assert "index ix_n on songs (INVALID: it was never finished)" in seen["summary"]
    assert "recover.yml -l demo -e recovery_partial=resume" in seen["next_step"]
    assert "ix_n" in refuses(database)


def test_trap_06_stamped_and_never_applied(make_app: MakeApp) -> None:
    database = prepared(make_app, [SONGS, SKETCHES])
    assert database.alembic("stamp", "head").returncode == 0
    assert database.alembic("current").stdout == "sketches (head)\n"
    assert database.alembic("upgrade", "head").returncode == 0  # and nothing happens
    assert not witness_of(database).has("sketches")

    seen = status_twice(database)
    assert seen["verdict"] == "STAMPED_NOT_APPLIED"
    assert "Revision sketches: there: nothing; not there: table sketches." in seen["summary"]
    assert "recover.yml -l demo -e recovery_stamped=repair" in seen["next_step"]
    assert "sketches" in refuses(database)


def test_trap_07_the_database_is_ahead_of_the_code(make_app: MakeApp) -> None:
    database = prepared(make_app, [SONGS, SKETCHES])
    assert database.alembic("upgrade", "head").returncode == 0
    make_app([SONGS])
    for command in (["current"], ["upgrade", "head"], ["check"], ["stamp", "head"]):
        plain = database.alembic(*command)
        assert plain.returncode == 255
        assert "Can't locate revision identified by 'sketches'" in plain.stderr + plain.stdout

    seen = status_twice(database)
    assert seen["verdict"] == "AHEAD"
    assert "was an image rolled back?" in seen["next_step"]
    assert "sketches" in refuses(database)


def test_trap_08_a_head_that_another_head_depends_on(make_app: MakeApp) -> None:
    needed = Revision("needed", "pass", down=())
    head = Revision("needs_it", "pass", down="songs", depends_on="needed")
    database = prepared(make_app, [SONGS, needed, head])
    assert database.alembic("upgrade", "heads").returncode == 0
    plain = database.alembic("current", "--check-heads")
    assert plain.returncode == 255
    assert "not on all head revisions" in plain.stderr + plain.stdout

    assert status_twice(database)["verdict"] == "AT_HEAD"


def test_trap_09_a_check_that_differs_on_a_healthy_database(make_app: MakeApp, tmp_path: Path) -> None:
    database = make_app([SONGS, INDEXES], MODELS_ENV)
    assert database.alembic("upgrade", "head").returncode == 0
    plain = database.alembic("check")
    assert plain.returncode == 255
    assert "New upgrade operations detected" in plain.stderr + plain.stdout

    known = {"compare_models": True, "baselines": str(tmp_path / "baselines")}
    seen = run_module("alembic_status", options(database, **known))
    assert seen["verdict"] == "AT_HEAD"
    assert "not there: index ix_songs_n on songs (n)" in findings(seen)["no_baseline"]
    recorded = run_module("alembic_baseline", {"directory": known["baselines"], "status": seen, "accept": True})
    assert recorded["changed"] is True, recorded
    assert recorded["recorded"] == [
        "not there: index ix_songs_n on songs (n)",
        "there, and not in the models: index old_name on songs (n)",
    ]
    seen = status_twice(database, **known)
    assert (seen["verdict"], findings(seen)) == ("AT_HEAD", {})

    witness_of(database).execute("drop index by_both")
    seen = status_twice(database, **known)
    assert seen["verdict"] == "DRIFTED"
    assert seen["summary"].endswith(" has changed: not there: index by_both on songs (id, n).")
    assert "playbooks/baseline.yml -l demo" in seen["next_step"]


def test_trap_10_what_only_env_knows(make_app: MakeApp) -> None:
    env = ENV.replace(
        "engine =", "context.script.version_locations = [os.path.abspath('migrations/later')]\nengine ="
    ).replace("configure(connection=connection", "configure(connection=connection, version_table='kept_elsewhere'")
    database = make_app([SONGS, SKETCHES], env)
    versions = database.application / "migrations" / "versions"
    versions.rename(versions.with_name("later"))
    assert database.alembic("upgrade", "songs").returncode == 0
    assert database.alembic("heads").stdout == ""

    seen = status_twice(database)
    assert (seen["verdict"], seen["heads"], seen["version_table"]) == ("BEHIND", ["sketches"], "kept_elsewhere")


def test_trap_11_a_look_makes_the_version_table(make_app: MakeApp) -> None:
    database = make_app([SONGS])
    witness = witness_of(database)
    witness.execute("create table somebodys ()")

    seen = status_twice(database)
    assert seen["verdict"] == "UNVERSIONED"
    assert not witness.has("alembic_version")

    assert database.alembic("history", "--indicate-current").returncode == 0
    assert witness.has("alembic_version")


def test_trap_12_a_revision_id_that_does_not_fit(make_app: MakeApp) -> None:
    long = "a_revision_with_a_very_long_name_of_its_own"
    body = """
    op.create_table('sketches', sa.Column('id', sa.Integer))
    with op.get_context().autocommit_block():
        op.execute('select 1')
    """
    database = prepared(make_app, [SONGS, Revision(long, body)])
    witness = witness_of(database)

    seen = status_twice(database)
    assert seen["verdict"] == "BEHIND"
    assert f"Revision id {long} has 43 characters, the version column holds 32" in seen["refusals"][0]
    assert "Widen the column first" in refuses(database)

    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 1
    assert "value too long for type character varying(32)" in plain.stderr
    assert witness.versions() == ["songs"]
    assert witness.has("sketches")  # its changes have stayed
    assert status_twice(database)["verdict"] == "PARTIAL"


def test_trap_13_a_revision_that_was_edited_after_it_was_applied(make_app: MakeApp) -> None:
    database = prepared(make_app, [SONGS, SKETCHES])
    assert database.alembic("upgrade", "head").returncode == 0
    edited = Revision(SKETCHES.name, SKETCHES.upgrade + "\nop.add_column('songs', sa.Column('sketch_id', sa.Integer))")
    make_app([SONGS, edited])
    assert database.alembic("upgrade", "head").returncode == 0  # and nothing happens
    assert database.alembic("current").stdout == "sketches (head)\n"
    assert not witness_of(database).has("songs.sketch_id")

    seen = status_twice(database)
    assert seen["verdict"] == "STAMPED_NOT_APPLIED"
    assert "Revision sketches: there: table sketches; not there: column songs.sketch_id." in seen["summary"]
    assert "songs.sketch_id" in refuses(database)


def test_trap_13_a_revision_that_was_edited_and_makes_the_same_tables(make_app: MakeApp, tmp_path: Path) -> None:
    """Where the catalog says nothing about it, what was recorded when it was applied does."""
    database = prepared(make_app, [SONGS, SKETCHES])
    done = migrate(database)
    assert "failed" not in done, done
    known = {"compare_models": True, "baselines": str(tmp_path / "baselines")}
    seen = run_module("alembic_status", options(database, **known))
    record = {"directory": known["baselines"], "applied": [step["revision"] for step in done["applied"]]}
    assert run_module("alembic_baseline", {**record, "status": seen})["changed"] is True

    make_app([SONGS, Revision(SKETCHES.name, f"# Only a comment.\n{SKETCHES.upgrade}")])
    assert "edited_revision" not in findings(run_module("alembic_status", options(database, **known)))
    make_app([SONGS, Revision(SKETCHES.name, SKETCHES.upgrade + "\nop.execute('update songs set n = upper(n)')")])
    assert database.alembic("upgrade", "head").returncode == 0  # and nothing happens
    assert witness_of(database).value("select n from songs") == "x"
    seen = status_twice(database, **known)
    assert seen["verdict"] == "AT_HEAD"
    assert "Revision sketches is applied" in findings(seen)["edited_revision"]
    assert "-l demo" in findings(seen)["edited_revision"]

    # A run does not make it the rule; a person may.
    assert run_module("alembic_baseline", {**record, "applied": [], "status": seen})["changed"] is False
    assert run_module("alembic_baseline", {**record, "applied": [], "status": seen, "accept": True})["changed"] is True
    assert "edited_revision" not in findings(run_module("alembic_status", options(database, **known)))


def test_trap_14_two_migrators_at_once(make_app: MakeApp) -> None:
    """A plain one fails on what the other has made. What each of ours has done is proved; a run has a lock besides."""
    slow = Revision(
        "slow", "op.execute('select pg_advisory_lock_shared(14)')\nop.create_table('made', sa.Column('id', sa.Integer))"
    )
    database = prepared(make_app, [SONGS, slow])
    witness = witness_of(database)
    command = ["alembic", "upgrade", "head"]
    environment = application.environment(database.url)
    with psycopg.connect(database.conninfo, autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(14)")
        plain = [
            subprocess.Popen(
                command, cwd=database.application, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            for _ in range(2)
        ]
        both = "select count(*) = 2 from pg_locks where locktype = 'advisory' and not granted"
        wait_until(lambda: witness.value(both), "both are in the revision", 60)
    said = [process.communicate(timeout=60)[1].decode() for process in plain]
    assert sorted(process.returncode for process in plain) == [0, 1]
    assert "duplicate key" in "".join(said) or "already exists" in "".join(said)

    # One that comes second, when the first has done it, has nothing to do.
    assert status_twice(database)["verdict"] == "AT_HEAD"
    done = migrate(database)
    assert ("failed" in done, done["changed"]) == (False, False)
    assert witness.versions() == ["slow"]


def test_trap_15_a_migration_that_waits_for_a_lock_and_who_queues_behind_it(make_app: MakeApp) -> None:
    column = Revision("column", "op.add_column('songs', sa.Column('sketch_id', sa.Integer))")
    database = prepared(make_app, [SONGS, column])
    alembic = ["alembic", "upgrade", "head"]
    with psycopg.connect(database.conninfo, application_name="nightly report") as reader:
        reader.execute("select count(*) from songs").fetchall()
        waiting = subprocess.Popen(
            alembic, cwd=database.application, env=application.environment(database.url), stderr=subprocess.DEVNULL
        )
        try:
            # Behind it, a mere reader waits as well.
            with psycopg.connect(database.conninfo, autocommit=True) as other:
                wait_until_blocked(database)
                other.execute("set statement_timeout = '1s'")
                with pytest.raises(psycopg.errors.QueryCanceled):
                    other.execute("select count(*) from songs")
        finally:
            waiting.kill()
            waiting.wait()
        end_waiting_sessions(database)

        done = migrate(database, lock_timeout=1, lock_attempts=2)
        assert done["failed"] is True
        assert "It was tried 2 times in " in done["msg"]
        assert "nightly report" in done["msg"]
    witness_of(database).wait_until_alone()
    assert witness_of(database).versions() == ["songs"]
    assert "failed" not in migrate(database)
    assert witness_of(database).has("songs.sketch_id")


def through(database: AppDatabase, pooler: Path) -> dict[str, Any]:
    """Options of the modules with the application's address that of a pooler."""
    url = f"postgresql+psycopg://{database.user}:{database.password}@/{database.name}?host={pooler}&port={PORT}"
    return {
        "database": database_options(database),
        "application": application_options(database, environment={"DATABASE_URL": url}),
    }


def test_trap_16_a_lock_on_the_migrations_connection_is_stranded_in_a_transaction_pooler(make_app: MakeApp) -> None:
    lock = "connection.exec_driver_sql('select pg_advisory_lock(42)')\n    connection.commit()\n    context.configure("
    database = prepared(make_app, [SONGS, SKETCHES], ENV.replace("context.configure(", lock))
    witness = witness_of(database)
    held = "select count(*) from pg_locks where locktype = 'advisory' and granted"
    with pgbouncer(database, "transaction") as pooler:
        asked = through(database, pooler)
        before = witness.look()
        seen = [run_module("alembic_status", {**asked, "limit": "demo"}) for _ in range(2)]
        assert seen[0] == seen[1]
        assert (seen[0]["verdict"], [item["name"] for item in seen[0]["findings"]]) == ("BEHIND", ["pooler"])
        assert "two connections, both open, were the same process" in seen[0]["refusals"][0]
        assert "app.environment in recovery_stack, with DATABASE_URL" in seen[0]["refusals"][0]
        refused = run_module("alembic_migrate", asked)
        assert refused["failed"] is True
        assert "goes through a pooler" in refused["msg"] or "go through a pooler" in refused["msg"]
        after = witness.look()
        assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
        with psycopg.connect(host=str(pooler), port=PORT, dbname=database.name, user=database.user) as other:
            # Nothing of ours is in the session that others get next.
            names = ["default_transaction_read_only", "lock_timeout", "application_name"]
            shown = [other.execute(f"show {name}".encode()).fetchone() for name in names]
            assert shown[:2] == [("off",), ("0",)]
            assert "alembic-recovery" not in str(shown[2])
        witness.query(
            f"select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = '{database.user}'"
        )
        assert witness.value(held) == 0

        plain = application.run_alembic(
            database.application, asked["application"]["environment"]["DATABASE_URL"], "upgrade", "head"
        )
        assert plain.returncode == 0, plain.stderr
        assert witness.value(held) == 1, "the lock went with its connection"
    assert witness.versions() == ["sketches"]


def test_trap_16_a_pooler_that_keeps_sessions_is_named(make_app: MakeApp) -> None:
    database = prepared(make_app, [SONGS, SKETCHES])
    with pgbouncer(database, "session") as pooler:
        asked = through(database, pooler)
        seen = run_module("alembic_status", {**asked, "limit": "demo"})
        assert (seen["verdict"], seen["refusals"]) == ("BEHIND", [])
        assert "A session stays with its connection, as far as could be seen." in findings(seen)["pooler"]
        place = database_options(database, unix_socket=str(pooler), port=PORT)
        ours = run_module("alembic_status", {**asked, "database": place, "limit": "demo"})
        assert ours["verdict"] == "UNREADABLE"
        assert "goes through a pooler (PgBouncer, for one), and not to the server itself" in ours["summary"]
        done = run_module("alembic_migrate", asked)
        assert "failed" not in done, done
    assert witness_of(database).versions() == ["sketches"]


def test_trap_16_a_pooler_that_has_no_second_session_is_not_waited_for(make_app: MakeApp) -> None:
    database = prepared(make_app, [SONGS, SKETCHES])
    with pgbouncer(database, "session", sessions=1) as pooler:
        began = time.monotonic()
        seen = run_module("alembic_status", {**through(database, pooler), "limit": "demo"})
        assert time.monotonic() - began < 60, "it would be two minutes"
        assert (seen["verdict"], len(seen["refusals"])) == ("BEHIND", 1)
        assert "pooler" in findings(seen)


def test_trap_17_a_chain_that_cannot_be_built_from_nothing(make_app: MakeApp) -> None:
    """The application makes its first tables itself, and its revisions only change them."""
    first = Revision("first", "op.add_column('made_by_create_all', sa.Column('n', sa.Integer))")
    database = make_app([first, SKETCHES])
    witness = witness_of(database)
    plain = database.alembic("upgrade", "head")
    assert plain.returncode == 1
    assert 'relation "made_by_create_all" does not exist' in plain.stderr

    seen = status_twice(database)
    assert (seen["verdict"], seen["will_not"]) == ("EMPTY", "A database is not built from nothing here.")
    assert "Nothing was migrated." in refuses(database)
    # One that has grown is taken as it is.
    witness.execute("create table made_by_create_all (id int)", f"grant all on made_by_create_all to {database.user}")
    witness.execute(f"alter table made_by_create_all owner to {database.user}")
    assert database.alembic("upgrade", "first").returncode == 0
    assert status_twice(database)["verdict"] == "BEHIND"
    assert "failed" not in migrate(database)
    assert witness.versions() == ["sketches"]


def test_trap_18_a_password_with_a_percent_sign(make_app: MakeApp) -> None:
    """The application's own mistake; nothing of ours makes it, and the cause is told without the password."""
    env = ENV.replace(
        "engine =", "context.config.set_main_option('sqlalchemy.url', os.environ['DATABASE_URL'])\nengine ="
    )
    database = prepared(make_app, [SONGS, SKETCHES])
    password = "50%@home"
    database.server.create_role("percent", password)
    witness = witness_of(database)
    try:
        witness.execute("grant select on all tables in schema public to percent")
        awkward = AppDatabase(database.server, database.application, database.name, "percent", password)
        assert status_twice(awkward)["verdict"] == "BEHIND"
        make_app([SONGS, SKETCHES], env)
        plain = awkward.alembic("current")
        assert plain.returncode == 1
        assert "invalid interpolation syntax" in plain.stderr
        seen = status_twice(awkward)
        assert seen["verdict"] == "UNREADABLE"
        assert "ValueError: invalid interpolation syntax" in seen["summary"]
        assert password not in str(seen)
        assert "50%" not in str(seen)
    finally:
        witness.execute("drop owned by percent", "drop role percent")


def test_trap_19_settings_in_the_environment_that_a_driver_ignores(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGOPTIONS is libpq's: asyncpg has none, so a limit that was set there is no limit."""
    told = "op.execute(\"create table {0} as select current_setting('lock_timeout') as patience\")"
    revisions = [SONGS, Revision("plain", told.format("plain")), Revision("ours", told.format("ours"))]
    database = prepared(make_app, revisions, ASYNC_ENV.replace("engine.connect()", "engine.begin()"))
    witness = witness_of(database)
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=7s")
    plain = database.alembic("upgrade", "plain")
    assert plain.returncode == 0, plain.stderr
    assert witness.versions() == ["plain"]
    assert witness.value("select patience from plain") == "0"

    done = migrate(database, lock_timeout=7)
    assert "failed" not in done, done
    assert witness.value("select patience from ours") == "7s"


def wait_until_blocked(database: AppDatabase) -> None:
    """Wait until a session of this database waits for a lock."""
    waiting = "select count(*) from pg_locks where not granted"
    wait_until(lambda: witness_of(database).value(waiting), "somebody waits for a lock", 60)


def end_waiting_sessions(database: AppDatabase) -> None:
    """End the sessions whose client is gone and that still wait."""
    witness_of(database).query(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
        "where wait_event_type = 'Lock' and datname = current_database()"
    )
