"""A migration that does not get a lock: it lets others pass, tries again, and says who it was; on several drivers."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from ansible.module_utils.alembic_recovery.blockers import _LEAVES_BY_ITSELF, Watch
from ansible.module_utils.alembic_recovery.postgres import Login, PsycopgDatabase

from tests.layouts.test_layouts import ASYNC_ENV
from tests.support.layout_app import PASSWORD, ROLE, LayoutApp
from tests.support.waiting import wait_until

ALTERS = "op.execute(\"alter table t_one add column kept text default 'a literal'\")"
LOCK_TIMEOUT = 5
# Of this machine: two processors, and others at work on them. Less than a second attempt would take.
SLACK = 5.5


@dataclass
class Reader:
    """Reads the table all the time, and knows how long it had to wait."""

    app: LayoutApp
    waits: list[float] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        with psycopg.connect(self.app.server.conninfo(self.app.database), autocommit=True) as connection:
            while not stop.is_set():
                began = time.monotonic()
                connection.execute("select count(*) from t_one")
                self.waits.append(time.monotonic() - began)
                time.sleep(0.01)


@contextmanager
def reading(app: LayoutApp) -> Iterator[Reader]:
    """Somebody reads meanwhile."""
    reader, stop = Reader(app), threading.Event()
    thread = threading.Thread(target=reader.run, args=[stop])
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join()


def client(app: LayoutApp, name: str, *, superuser: bool = False) -> psycopg.Connection[Any]:
    """A session of somebody else."""
    if superuser:
        return psycopg.connect(app.server.conninfo(app.database), application_name=name)
    return psycopg.connect(
        host=str(app.server.socket_dir), dbname=app.database, user=ROLE, password=PASSWORD, application_name=name
    )


@contextmanager
def holding(app: LayoutApp, name: str, **more: Any) -> Iterator[psycopg.Connection[Any]]:
    """Somebody has read the table, and does not end the transaction."""
    holder = client(app, name, **more)
    try:
        holder.execute("select count(*) from t_one where id = 4711 or 'somebody''s' = 'private data'")
        yield holder
    finally:
        holder.close()


def waiting(app: LayoutApp) -> bool:
    """Whether the migration waits for a lock now."""
    query = "select count(*) from pg_locks l join pg_stat_activity a using (pid) where not granted"
    return bool(app.witness.value(f"{query} and application_name like 'alembic-recovery%'"))


@pytest.fixture
def behind(app: LayoutApp) -> LayoutApp:
    """At its first revision; the second one changes the table of the first."""
    app.ini()
    app.env()
    app.chain("one")
    app.revision("two", "one", ALTERS)
    app.witness.execute(
        "create table alembic_version (version_num varchar(32) primary key)",
        "insert into alembic_version values ('one')",
        "create table t_one (id int)",
        *(f"alter table {table} owner to {ROLE}" for table in ("alembic_version", "t_one")),
    )
    return app


def test_acceptance_4_the_lock_is_released_and_it_recovers(behind: LayoutApp) -> None:
    """Through asyncpg."""
    behind.env(text=ASYNC_ENV)
    behind.environment = {"DATABASE_URL": behind.url("asyncpg")}
    with reading(behind) as reader, holding(behind, "nightly report") as holder:

        def release() -> None:
            wait_until(lambda: waiting(behind), "the migration waits")
            wait_until(lambda: not waiting(behind), "it gives up")
            holder.rollback()

        thread = threading.Thread(target=release)
        thread.start()
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT)
        thread.join()
        pid = holder.info.backend_pid

    assert not done.get("failed"), done
    assert done["after"] == behind.rows() == ["two"]
    assert done["applied"][0]["attempts"] == len(done["lock_retries"]) + 1 > 1
    first = done["lock_retries"][0]
    assert (first["revision"], first["attempt"], first["ended"]) == ("two", 1, [])
    assert 0.75 <= first["pause"] <= 1.25
    [blocker] = first["blockers"]
    assert f"{pid} ({ROLE}, nightly report, idle in transaction, for " in blocker
    assert "its statement: select count(*) from t_one where id = … or '…' = '…'" in blocker
    assert len(reader.waits) > 20
    assert max(reader.waits) < LOCK_TIMEOUT + SLACK


def test_acceptance_4_the_lock_stays_and_it_is_as_it_was(behind: LayoutApp) -> None:
    """Through psycopg."""
    before = behind.witness.look()
    with reading(behind) as reader, holding(behind, "nightly report") as holder:
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT, lock_attempts=2)
        assert holder.execute("select 1").fetchone() == (1,), "nobody is ended without being told"
        pid = holder.info.backend_pid

    assert done["failed"] is True
    assert done["sqlstate"] == "55P03"
    assert "It was tried 2 times in " in done["msg"]
    assert f"Whom it waited for, by process id: {pid} ({ROLE}, nightly report, idle in transaction, " in done["msg"]
    assert "-e recovery_terminate_blockers=terminate" in done["msg"]
    assert "Nothing of revision two has stayed." in done["msg"]
    assert "The database is at one (read over a new connection)" in done["msg"]
    # Times to the microsecond are in it, too: a number of four digits would be found in one of hundreds.
    assert "somebody" not in str(done)
    assert "private data" not in str(done)
    assert "4711" not in done["msg"] + str([one["query"] for one in done["blockers"]])
    assert [item["pause"] is None for item in done["lock_retries"]] == [False, True]
    assert [one["pid"] for one in done["blockers"]] == [pid]
    assert max(reader.waits) < LOCK_TIMEOUT + SLACK
    after = behind.witness.look()
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
    assert behind.rows() == ["one"]


def test_who_is_in_the_way_is_ended_where_that_was_said_and_nobody_else(behind: LayoutApp) -> None:
    behind.witness.execute("create table aside ()")
    behind.witness.execute(f"grant all on aside to {ROLE}")
    with client(behind, "bystander") as bystander, holding(behind, "nightly report") as holder:
        bystander.execute("lock table aside in access exclusive mode")
        pid = holder.info.backend_pid
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT, terminate_blockers="terminate")
        assert bystander.execute("select 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            holder.execute("select 1")

    assert not done.get("failed"), done
    assert behind.rows() == ["two"]
    [retry] = done["lock_retries"]
    [ended] = retry["ended"]
    assert ended.startswith(f"{pid} ({ROLE}, nightly report, ")


def test_who_may_not_be_ended_is_named_with_the_reason(behind: LayoutApp) -> None:
    with holding(behind, "of a superuser", superuser=True) as holder:
        options = {"lock_timeout": LOCK_TIMEOUT, "lock_attempts": 2, "terminate_blockers": "terminate"}
        done = behind.migrate(**options)
        assert holder.execute("select 1").fetchone() == (1,)
        pid = holder.info.backend_pid
    assert done["failed"] is True
    assert f"{pid} (postgres, of a superuser, state not shown)" in done["msg"]
    assert done["lock_retries"][0]["ended"] == []
    assert f"{pid} was not ended: when it started is not shown to {ROLE}" in " ".join(done["lock_retries"][0]["left"])
    assert behind.rows() == ["one"]


def test_a_later_session_with_the_same_number_is_left_alone(behind: LayoutApp) -> None:
    login = Login("postgres", "postgres", host=str(behind.server.socket_dir))
    watch = Watch(PsycopgDatabase(login), behind.database, "nobody")
    with holding(behind, "nightly report") as holder:
        [seen] = watch.holders()
        earlier = dataclasses.replace(seen, started=str(int(seen.started) - 1))
        watch.end([earlier])
        assert holder.execute("select 1").fetchone() == (1,)
        assert watch.end([seen]) == ([str(seen)], [])
        with pytest.raises(psycopg.OperationalError):
            holder.execute("select 1")


def test_a_session_that_has_gone_on_to_something_else_is_left_alone(behind: LayoutApp) -> None:
    """As those of a pool do, between the look and the end."""
    login = Login("postgres", "postgres", host=str(behind.server.socket_dir))
    watch = Watch(PsycopgDatabase(login), behind.database, "nobody")
    with holding(behind, "of a pool") as holder:
        seen = watch.holders()
        pid = holder.info.backend_pid
        left = f"{pid} was not ended: it is in another transaction by now."
        holder.rollback()
        assert watch.end(seen) == ([], [left]), "it is in none"
        holder.execute("select count(*) from t_one")
        assert watch.end(seen) == ([], [left])
        assert holder.execute("select 1").fetchone() == (1,)
        [now] = watch.holders()
        assert watch.end([now]) == ([str(now)], [])


@pytest.mark.parametrize(
    ("kind", "query", "leaves"),
    [
        ("autovacuum worker", "autovacuum: VACUUM public.t_one", True),
        ("autovacuum worker", "autovacuum: VACUUM public.t_one (to prevent wraparound)", False),
        ("client backend", "autovacuum: VACUUM public.t_one", False),
        (None, None, False),
    ],
)
def test_who_leaves_by_itself(behind: LayoutApp, kind: str | None, query: str | None, leaves: bool) -> None:
    shown = "select {} is true from (values (%s::text, %s::text)) a(backend_type, query)"
    with client(behind, "asks") as asks:
        statement = shown.format(_LEAVES_BY_ITSELF.replace("%", "%%")).encode()
        assert asks.execute(statement, [kind, query]).fetchone() == (leaves,)


def test_without_a_bound_nobody_is_in_the_way_beforehand(behind: LayoutApp) -> None:
    behind.revision("two", "one", "op.execute('create table t_two (id int)')")
    needed = [{"relation": "public.t_one", "mode": "ACCESS EXCLUSIVE", "seconds": 0.1, "blocks_reads": True}]
    with holding(behind, "nightly report") as holder:
        done = behind.migrate(lock_timeout=0, rehearsed_locks=needed, terminate_blockers="terminate")
        assert holder.execute("select 1").fetchone() == (1,)
    assert not done.get("failed"), done
    assert done["lock_retries"] == []


def test_who_is_in_the_way_after_a_long_statement_is_seen(behind: LayoutApp) -> None:
    alters = "alter table t_one add column kept int"
    behind.revision("two", "one", f"op.execute('select pg_sleep(11); {alters}')")
    with holding(behind, "nightly report") as holder:
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT, lock_attempts=1)
        pid = holder.info.backend_pid
    assert done["sqlstate"] == "55P03"
    assert f"Whom it waited for, by process id: {pid} ({ROLE}, nightly report, " in done["msg"]
    assert [one["pid"] for one in done["blockers"]] == [pid]


def test_a_prepared_transaction_is_named_and_cannot_be_ended(behind: LayoutApp) -> None:
    """No session holds it any more."""
    behind.witness.execute("begin", "lock table t_one in share mode", "prepare transaction 'left by somebody'")
    try:
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT, lock_attempts=1, terminate_blockers="terminate")
    finally:
        behind.witness.execute("rollback prepared 'left by somebody'")
    assert (
        "Whom it waited for, by process id: the prepared transaction 'left by somebody' of postgres, since "
        in (done["msg"])
    )
    assert (done["blockers"], done["lock_retries"][0]["ended"]) == ([], [])
    assert behind.rows() == ["one"]


def test_no_revision_is_begun_while_somebody_keeps_what_one_will_need(behind: LayoutApp) -> None:
    """Else the first would be applied, and stay, before the second finds that out."""
    behind.revision("two", "one", "op.execute('create table t_two (id int)')")
    behind.revision("three", "two", ALTERS)
    needed = [{"relation": "public.t_one", "mode": "ACCESS EXCLUSIVE", "seconds": 0.1, "blocks_reads": True}]
    options: dict[str, Any] = {"lock_timeout": LOCK_TIMEOUT, "lock_attempts": 2, "rehearsed_locks": needed}
    with reading(behind) as reader, holding(behind, "nightly report") as holder:
        time.sleep(LOCK_TIMEOUT + 0.2)
        refused = behind.migrate(**options)
        pid = holder.info.backend_pid
        assert behind.rows() == ["one"]
        ended = behind.migrate(**options, terminate_blockers="terminate")

    assert refused["failed"] is True
    assert refused["msg"].startswith("No revision was begun: locks that they took in the rehearsal (public.t_one) are")
    assert f"Whom it waited for, by process id: {pid} ({ROLE}, nightly report, idle in transaction, " in refused["msg"]
    assert refused["not_applied"] == ["two", "three"]
    assert max(reader.waits) < LOCK_TIMEOUT + SLACK
    assert not ended.get("failed"), ended
    assert behind.rows() == ["three"]
    assert [item["ended"][0].split()[0] for item in ended["lock_retries"]] == [str(pid)]
    again = behind.migrate(rehearsed_locks=[{"relation": "t_one", "mode": "RATHER EXCLUSIVE"}])
    assert "There is no lock mode 'RATHER EXCLUSIVE'" in again["msg"]


BOTH = """op.execute("create table half (id int)")
op.get_bind().commit()
with op.get_context().autocommit_block():
    op.execute("create table other_half (id int)")
op.execute("create table undone (id int)")"""
IN_SQL = """op.execute("create table half (id int)")
op.execute("commit; create table other_half (id int)")
op.execute("commit")
op.execute("create table undone (id int)")"""


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        pytest.param(BOTH, ["create table half (id int)", "create table other_half (id int)"], id="by itself"),
        pytest.param(
            IN_SQL, ["create table half (id int)", "commit; create table other_half (id int)"], id="in its SQL"
        ),
    ],
)
def test_a_revision_that_has_committed_is_not_tried_again(behind: LayoutApp, body: str, kept: list[str]) -> None:
    behind.revision("two", "one", f"{body}\n{ALTERS}")
    with holding(behind, "nightly report"):
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT)
    assert done["failed"] is True
    assert "nightly report" in done["msg"]
    assert (
        "Revision two had committed before it failed: a part of its work may have stayed. It had run, and that has "
        f"stayed: {'; '.join(kept)}. Compare it"
    ) in done["msg"]
    assert done["kept"] == kept
    assert [(item["attempt"], item["pause"]) for item in done["lock_retries"]] == [(1, None)]
    assert [name for name in ("half", "other_half", "undone") if behind.witness.has(name)] == ["half", "other_half"]
    assert behind.rows() == ["one"]


DRIVERS = """op.execute("create table half (id int)")
op.get_bind().connection.commit()"""
RAW = """op.get_bind().connection.cursor().execute("create table half (id int)")
op.get_bind().connection.commit()"""


@pytest.mark.parametrize(
    ("driver", "body", "kept"),
    [
        pytest.param("psycopg", DRIVERS, ["create table half (id int)"], id="on the driver's connection"),
        pytest.param("asyncpg", DRIVERS, ["create table half (id int)"], id="the same of asyncpg"),
        pytest.param("psycopg", RAW, [], id="all of it on the driver's connection"),
        pytest.param(
            "psycopg",
            'op.execute("create table half (id int); COMMIT;")',
            ["create table half (id int); COMMIT;"],
            id="at once",
        ),
        pytest.param(
            "psycopg",
            """op.execute("create table half (id int)")\nop.execute("/* /* */ ; it's */ commit; -- it's")""",
            ["create table half (id int)"],
            id="hidden",
        ),
    ],
)
def test_a_commit_that_no_event_tells_of(behind: LayoutApp, driver: str, body: str, kept: list[str]) -> None:
    if driver == "asyncpg":
        behind.env(text=ASYNC_ENV)
        behind.environment = {"DATABASE_URL": behind.url("asyncpg")}
    behind.revision("two", "one", f"{body}\n{ALTERS}")
    with holding(behind, "nightly report"):
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT)
    assert done["failed"] is True
    assert done["sqlstate"] == "55P03"
    assert "Revision two had committed before it failed" in done["msg"]
    assert done["kept"] == kept
    assert [(item["attempt"], item["pause"]) for item in done["lock_retries"]] == [(1, None)]
    assert behind.witness.has("half")


def test_a_commit_of_nothing_is_no_commit(behind: LayoutApp) -> None:
    """What env.py commits before the revision begins has written nothing, as the server says: it is tried again."""
    before = "connection.exec_driver_sql('set search_path to public')\n    connection.commit()\n    context.configure("
    path = behind.directory / "migrations" / "env.py"
    text = path.read_text()
    assert "    context.configure(connection=connection" in text
    path.write_text(text.replace("context.configure(connection=connection", f"{before}connection=connection"))
    with holding(behind, "nightly report"):
        done = behind.migrate(lock_timeout=LOCK_TIMEOUT, lock_attempts=2)
    assert "Nothing of revision two has stayed." in done["msg"]
    assert "may have stayed" not in done["msg"]
    assert len(done["lock_retries"]) == 2


def test_a_limit_for_statements_follows_from_a_rehearsal(behind: LayoutApp) -> None:
    behind.revision("two", "one", "op.execute(\"create table t_two as select setting from pg_settings where name = "
                    "'statement_timeout'\")")  # fmt: skip
    refused = behind.migrate(lock_attempts=0)
    assert refused["msg"] == "lock_attempts is 0: it must be at least 1. Nothing was touched."
    planned = behind.migrate(check=True, statement_timeout=-1)
    assert (planned["limits"]["statement_timeout"], "nothing was rehearsed" in str(planned["limits"])) == (0, True)
    done = behind.migrate(statement_timeout=-1, rehearsed_seconds=42, measure=True)
    assert done["limits"]["statement_timeout"] == 425
    assert "its slowest statement took 42 s" in done["limits"]["statement_timeout_reason"]
    assert behind.witness.value("select setting from t_two") == "425000"
    assert 0 < done["applied"][0]["longest_seconds"] <= done["applied"][0]["seconds"]


def test_a_statement_that_is_cut_off_says_where_its_limit_comes_from(behind: LayoutApp) -> None:
    behind.revision("two", "one", "op.execute('select pg_sleep(60)')")
    done = behind.migrate(statement_timeout=1)
    assert (
        "A statement may take 1 s (as it was set (statement_timeout)); for more: -e migrate_statement_timeout=2."
        in (done["msg"])
    )
