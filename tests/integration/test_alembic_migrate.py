"""alembic_migrate against real databases and real Alembic: the four steps, and what goes wrong in the middle."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from replica.application import BASE, BROKEN, ENCODED, HEAD, State
from replica.databases import AppDatabase
from tests.support.ansible_run import ROOT
from tests.support.evidence import files, mode
from tests.support.modules import run_module
from tests.support.songs import assert_only_the_revisions_have_changed_it, encoded, replacements
from tests.support.stacks import Deployment, options, witness_of
from tests.support.waiting import wait_until

Make = Callable[..., AppDatabase]
NEW = "aaaa00000001"
SLEEPS = "op.execute('create table made_by_it ()')\nop.execute('select pg_sleep(60)')"


def migrate(
    database: AppDatabase, directory: Path | None = None, *, check: bool = False, diff: bool = False, **more: Any
) -> dict[str, Any]:
    """Run the module; bounds are short, for nothing here takes long that is well."""
    return run_module("alembic_migrate", options(database, directory, **more), check=check, diff=diff)


def sessions(database: AppDatabase) -> list[Any]:
    """Sessions of a migration."""
    return witness_of(database).query(
        "select pid, query from pg_stat_activity "
        f"where application_name like 'alembic-recovery:%:migrate' and datname = '{database.name}'"
    )


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Act in a thread; what it raises is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 (raised again below)
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if raised:
        raise raised[0]


class TestFourSteps:
    @pytest.mark.parametrize("state", [State.UNTOUCHED, State.REWRITTEN])
    def test_check_real_check_real(self, make_database: Make, tmp_path: Path, state: State) -> None:
        database = make_database(state)
        witness = witness_of(database)
        journal = tmp_path / "runs" / "1.jsonl"
        before, rules = witness.look(), replacements(witness)

        planned = migrate(database, check=True, diff=True, journal=str(journal))
        assert planned["changed"] is True
        assert (planned["before"], planned["after"]) == ([BROKEN], [HEAD])
        assert (planned["steps"], planned["applied"]) == ([ENCODED, HEAD], [])
        assert witness.look() == before
        assert not journal.parent.exists()

        done = migrate(database, journal=str(journal))
        assert done["changed"] is True
        assert (done["before"], done["after"]) == ([BROKEN], [HEAD])
        assert [step["revision"] for step in done["applied"]] == [ENCODED, HEAD]
        assert [step["healed"] for step in done["applied"]] == [["revision_ended_transaction"], []]
        moment = datetime.datetime.fromisoformat(done["finished_at"])
        assert abs(datetime.datetime.now(datetime.UTC) - moment) < datetime.timedelta(minutes=1)
        after = witness.look()
        assert witness.versions() == [HEAD]
        assert_only_the_revisions_have_changed_it(before, after)
        assert replacements(witness) == {rule: encoded(text) for rule, text in rules.items()}
        assert mode(journal) == 0o600
        assert mode(journal.parent) == 0o700
        left = files(tmp_path)

        for check in (True, False):
            again = migrate(database, check=check, diff=True, journal=str(journal))
            assert again["changed"] is False
            assert (again["before"], again["after"], again["steps"]) == ([HEAD], [HEAD], [])
            assert "diff" not in again
        assert witness.look() == after
        assert files(tmp_path) == left
        witness.wait_until_alone()

    def test_diff_shows_the_version_and_the_sql(self, broken: AppDatabase) -> None:
        versions, encode, sketches = migrate(broken, check=True, diff=True)["diff"]
        assert (versions["before"], versions["after"]) == (f"{BROKEN}\n", f"{HEAD}\n")
        assert encode["prepared"].startswith(f"-- revision {ENCODED}\n-- no SQL without running it: ")
        assert "CREATE TABLE song_sketches" in sketches["prepared"]
        assert "ALTER TABLE songs ADD COLUMN sketch_id UUID" in sketches["prepared"]

    def test_a_plan_whose_revision_opens_a_connection_of_its_own_writes_nothing(
        self, broken: AppDatabase, deployment: Deployment
    ) -> None:
        deployment.add(
            NEW,
            "import os\n"
            "with sa.create_engine(os.environ['DATABASE_URL']).begin() as mine:\n"
            "    mine.execute(sa.text('create table made_by_a_plan ()'))",
        )
        before = witness_of(broken).look()
        planned = migrate(broken, deployment.directory, check=True)
        assert "read-only transaction" in planned["plan"][NEW]["reason"]
        assert witness_of(broken).look() == before


class TestTargets:
    def test_one_revision_then_head(self, broken: AppDatabase) -> None:
        witness = witness_of(broken)
        first = migrate(broken, target=ENCODED)
        assert [step["revision"] for step in first["applied"]] == [ENCODED]
        assert witness.versions() == first["after"] == [ENCODED]
        assert not witness.has("song_sketches")
        assert migrate(broken, target=ENCODED)["changed"] is False
        assert migrate(broken, target=BASE)["changed"] is False, "a target that is behind is there already"
        assert witness.versions() == [ENCODED]
        second = migrate(broken, target=HEAD)
        assert [step["revision"] for step in second["applied"]] == [HEAD]
        assert witness.versions() == [HEAD]
        assert witness.has("songs.sketch_id")

    @pytest.mark.parametrize("target", ["0123456789ab", "+1", f"{BROKEN}+1", HEAD[:6]])
    def test_others_are_refused(self, broken: AppDatabase, target: str) -> None:
        before = witness_of(broken).look()
        seen = migrate(broken, target=target)
        assert seen["failed"] is True
        assert f"The code has no revision {target!r}; its heads are {HEAD}." in seen["msg"]
        assert "Relative revisions (+1, -1) are not taken" in seen["msg"]
        assert witness_of(broken).look() == before

    def test_states_that_are_no_start_are_refused(self, broken: AppDatabase, tmp_path: Path) -> None:
        witness = witness_of(broken)
        witness.execute("update alembic_version set version_num = 'feedc0ffee00'")
        before = witness.look()
        seen = migrate(broken, journal=str(tmp_path / "runs" / "1.jsonl"), limit="demo")
        assert (seen["failed"], seen["verdict"]) == (True, "AHEAD")
        assert seen["msg"].startswith("Nothing was migrated. The database is at feedc0ffee00")
        assert "Next: Deploy the code that has feedc0ffee00" in seen["msg"]
        assert seen["msg"].endswith("ansible-playbook playbooks/status.yml -l demo")
        assert witness.look() == before
        assert not (tmp_path / "runs").exists()

    def test_several_branches_at_once(self, make_database: Make, deployment: Deployment) -> None:
        """A dependency and a merge: the order is Alembic's own, and each is proved."""
        deployment.add("bbbb00000001", "op.create_table('b1', sa.Column('id', sa.Integer))", down=())
        deployment.add("bbbb00000002", "op.create_table('b2', sa.Column('id', sa.Integer))", depends_on="bbbb00000001")
        deployment.add("bbbb00000003", "pass", down=("bbbb00000001", "bbbb00000002"))
        database = make_database(State.HEALTHY)
        done = migrate(database, deployment.directory)
        assert done["after"] == witness_of(database).versions() == ["bbbb00000003"]
        assert [step["revision"] for step in done["applied"]] == ["bbbb00000001", "bbbb00000002", "bbbb00000003"]
        assert witness_of(database).has("b1")
        assert witness_of(database).has("b2")


class TestHealing:
    def test_row_34_sql_before_configure_is_healed(self, broken: AppDatabase, deployment: Deployment) -> None:
        """Trap 2: plain Alembic exits 0 and has done nothing at all."""
        deployment.change_env(
            {
                "        context.configure(connection=connection,": (
                    "        connection.exec_driver_sql('select pg_advisory_lock(42)')\n"
                    "        context.configure(connection=connection,"
                )
            }
        )
        (deployment.versions / f"{ENCODED}_base64_encode_lyric_parsing_rule_replacements.py").unlink()
        head = next(deployment.versions.glob(f"{HEAD}_*.py"))
        head.write_text(head.read_text().replace(f'down_revision = "{ENCODED}"', f'down_revision = "{BROKEN}"'))
        witness = witness_of(broken)
        plain = AppDatabase(broken.server, deployment.directory, broken.name, broken.user, broken.password)
        assert plain.alembic("upgrade", "head").returncode == 0
        assert (witness.versions(), witness.has("song_sketches")) == ([BROKEN], False)

        done = migrate(broken, deployment.directory)

        assert [step["healed"] for step in done["applied"]] == [["external_transaction"]]
        assert witness.versions() == [HEAD]
        assert witness.has("song_sketches")

    def test_row_34_what_cannot_be_healed_is_noticed(self, broken: AppDatabase, deployment: Deployment) -> None:
        """No step is believed: Alembic reports success, and a trigger of somebody's has put the version back."""
        witness_of(broken).execute(
            "create function put_back() returns trigger language plpgsql as $$ begin "
            "update alembic_version set version_num = old.version_num; return null; end $$",
            "create trigger put_back after update on alembic_version for each row "
            f"when (new.version_num = '{NEW}') execute function put_back()",
        )
        deployment.add(NEW, "pass")
        seen = migrate(broken, deployment.directory)
        assert seen["failed"] is True
        assert f"Alembic reported revision {NEW} as applied, but a new connection reads {HEAD}" in seen["msg"]
        assert f"The database is at {HEAD}" in seen["msg"]
        assert f"applied and proved in this run: {ENCODED}, {HEAD}; not applied: {NEW}." in seen["msg"]
        assert witness_of(broken).versions() == [HEAD]


class TestFailures:
    def test_row_32_an_error_in_the_middle_of_a_revision(
        self, broken: AppDatabase, deployment: Deployment, tmp_path: Path
    ) -> None:
        """Fault 32: nothing of it stays, what was proved before it does, and the message says where that is."""
        deployment.add(
            NEW,
            "op.create_table('half_done', sa.Column('id', sa.Integer))\n"
            "op.execute('alter table songs add column extra text')\n"
            "op.execute('select 1/0')",
        )
        journal = tmp_path / "runs" / "1.jsonl"
        seen = migrate(broken, deployment.directory, journal=str(journal))
        witness = witness_of(broken)
        assert seen["failed"] is True
        assert "DivisionByZero: division by zero" in seen["msg"]
        assert f"The database is at {HEAD} (read over a new connection)" in seen["msg"]
        assert f"applied and proved in this run: {ENCODED}, {HEAD}; not applied: {NEW}." in seen["msg"]
        assert "may have stayed" not in seen["msg"]
        assert [step["revision"] for step in seen["applied"]] == [ENCODED, HEAD]
        assert seen["not_applied"] == [NEW]
        assert witness.versions() == [HEAD]
        assert not witness.has("half_done")
        assert not witness.has("songs.extra")
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [item["revision"] for item in events if item["event"] == "proved"] == [ENCODED, HEAD]
        assert events[-1]["event"] == "error"
        witness.wait_until_alone()

    def test_row_33_a_part_that_stayed_is_named(self, broken: AppDatabase, deployment: Deployment) -> None:
        """Trap 4, fault 33: an autocommit block has committed what came before it."""
        deployment.add(
            NEW,
            "op.create_table('half_done', sa.Column('id', sa.Integer))\n"
            "with op.get_context().autocommit_block():\n"
            "    op.execute('create index concurrently ix_half on songs (title)')\n"
            "op.execute('select 1/0')",
        )
        seen = migrate(broken, deployment.directory)
        witness = witness_of(broken)
        assert (witness.versions(), witness.has("half_done")) == ([HEAD], True)
        assert f"not applied: {NEW}." in seen["msg"]
        assert f"Revision {NEW} had committed before it failed: a part of its work may have stayed." in seen["msg"]

    def test_s21_an_error_does_not_tell_the_data(
        self, broken: AppDatabase, deployment: Deployment, tmp_path: Path
    ) -> None:
        """S21: PostgreSQL's detail and the statement's parameters are people's data."""
        deployment.add(
            NEW,
            "op.get_bind().execute(sa.text('insert into users (email, display_name) values (:mail, :name)'),\n"
            "                      {'mail': 'user0@songs.example', 'name': 'Somebody Private'})",
        )
        journal = tmp_path / "runs" / "1.jsonl"
        seen = migrate(broken, deployment.directory, journal=str(journal))
        assert "UniqueViolation: duplicate key value violates unique constraint" in seen["msg"]
        for text in (json.dumps(seen), journal.read_text()):
            assert "user0@songs.example" not in text
            assert "Somebody Private" not in text

    def test_row_36_a_lock_that_somebody_holds(self, broken: AppDatabase) -> None:
        """Trap 15, fault 36: a short wait, so that readers do not queue for long; then it works."""
        witness = witness_of(broken)
        with psycopg.connect(witness.conninfo, application_name="long report") as other:
            other.execute("select count(*) from songs")
            started = time.monotonic()
            seen = migrate(broken, lock_timeout=1, lock_attempts=1)
            assert time.monotonic() - started < 60
            blocker = other.info.backend_pid
        assert seen["failed"] is True
        assert seen["sqlstate"] == "55P03"
        assert "canceling statement due to lock timeout" in seen["msg"]
        assert f"{blocker} (postgres, long report, " in seen["msg"]
        assert f"The database is at {ENCODED} (read over a new connection)" in seen["msg"]
        assert witness.versions() == [ENCODED]
        assert not witness.has("song_sketches")
        assert migrate(broken, lock_timeout=1)["after"] == witness.versions() == [HEAD]

    def test_row_42_a_statement_that_takes_too_long(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.add(NEW, SLEEPS)
        seen = migrate(broken, deployment.directory, statement_timeout=1)
        assert "canceling statement due to statement timeout" in seen["msg"]
        assert not witness_of(broken).has("made_by_it")

    def test_row_38_a_timeout_that_hangs_on_the_database_does_not_count(
        self, broken: AppDatabase, deployment: Deployment
    ) -> None:
        """Fault 38."""
        witness_of(broken).execute(f"alter database {broken.name} set statement_timeout = '300ms'")
        deployment.add(NEW, "op.execute('select pg_sleep(0.6)')")
        assert migrate(broken, deployment.directory)["after"] == [NEW]

    def test_row_42_an_application_that_falls_silent(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.add(NEW, "import time\nop.execute('create table made_by_it ()')\ntime.sleep(300)")
        seen = migrate(broken, deployment.directory, timeout=25)
        assert "has been silent for 25 s and was ended" in seen["msg"]
        assert f"The database is at {HEAD}" in seen["msg"]
        assert not witness_of(broken).has("made_by_it")
        assert sessions(broken) == []

    def test_a_journal_that_is_there_is_not_overwritten(self, broken: AppDatabase, tmp_path: Path) -> None:
        journal = tmp_path / "runs" / "1.jsonl"
        journal.parent.mkdir(mode=0o700)
        journal.write_text("mine\n")
        before = witness_of(broken).look()
        seen = migrate(broken, journal=str(journal))
        assert seen["failed"] is True
        assert f"{journal} cannot be made" in seen["msg"]
        assert journal.read_text() == "mine\n"
        assert witness_of(broken).look() == before


class TestKilled:
    """Fault 35: whoever is killed, nothing of the revision stays, and nobody is left behind."""

    @pytest.fixture
    def sleeping(self, broken: AppDatabase, deployment: Deployment) -> AppDatabase:
        deployment.add(NEW, SLEEPS)
        return broken

    @staticmethod
    def agent(deployment: Deployment) -> psutil.Process | None:
        """The application's process, by what it runs and where."""
        for process in psutil.process_iter(["cmdline", "cwd"]):
            if "alembic-recovery-agent" in " ".join(process.info["cmdline"] or []) and process.info["cwd"] == str(
                deployment.directory
            ):
                return process
        return None

    def is_asleep(self, database: AppDatabase) -> bool:
        return any("pg_sleep" in query for _pid, query in sessions(database))

    def test_row_35_the_application_is_killed(self, sleeping: AppDatabase, deployment: Deployment) -> None:
        killed: list[float] = []

        def kill() -> None:
            wait_until(lambda: self.is_asleep(sleeping), "the revision to sleep")
            process = self.agent(deployment)
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            killed.append(time.monotonic())

        with meanwhile(kill):
            seen = migrate(sleeping, deployment.directory)
        assert time.monotonic() - killed[0] < 40, "the server must not sleep to the end"
        assert seen["failed"] is True
        assert "was killed (signal 9)" in seen["msg"]
        assert "Are app.python" not in seen["msg"], "it had started well"
        assert f"The database is at {HEAD} (read over a new connection)" in seen["msg"]
        assert f"not applied: {NEW}" in seen["msg"]
        assert not witness_of(sleeping).has("made_by_it")
        assert sessions(sleeping) == []

    def test_row_35_the_module_is_killed(self, sleeping: AppDatabase, deployment: Deployment) -> None:
        code = (
            "import json, sys\nfrom tests.support.modules import run_module\n"
            "run_module('alembic_migrate', json.load(sys.stdin))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "library")])}
        boot = f"import ansible.module_utils as m; m.__path__.append({str(ROOT / 'module_utils')!r})\n"
        with subprocess.Popen(
            [sys.executable, "-c", boot + code], cwd=ROOT, env=environment, stdin=subprocess.PIPE, text=True
        ) as module:
            assert module.stdin is not None
            json.dump(options(sleeping, deployment.directory), module.stdin)
            module.stdin.close()
            wait_until(lambda: self.is_asleep(sleeping), "the revision to sleep")
            assert self.agent(deployment) is not None
            module.send_signal(signal.SIGKILL)
        wait_until(lambda: self.agent(deployment) is None, "the application's process to end")
        wait_until(lambda: not sessions(sleeping), "the server to end the session")
        witness = witness_of(sleeping)
        assert (witness.versions(), witness.has("made_by_it")) == ([HEAD], False)


class TestJournal:
    def test_s21_the_journal_tells_what_was_done_and_no_secret(
        self, broken: AppDatabase, deployment: Deployment, tmp_path: Path
    ) -> None:
        """Statements with counts and durations, commits, proofs; neither the password nor anybody's data."""
        journal = tmp_path / "runs" / "1.jsonl"
        rules = replacements(witness_of(broken))
        migrate(broken, deployment.directory, journal=str(journal), run_id="20251021T031500Z-7f3a")
        text = journal.read_text()
        events = [json.loads(line) for line in text.splitlines()]
        assert [item["event"] for item in events if item["event"] in ("starting", "applied", "proved")] == [
            "starting", "applied", "proved", "starting", "applied", "proved",
        ]  # fmt: skip
        assert all(datetime.datetime.fromisoformat(item["at"]) for item in events)
        updates = [item for item in events if item["event"] == "statement" and item["sql"].startswith("UPDATE lyric")]
        expected = sum(encoded(value) != value for value in rules.values())
        assert sum(item["count"] for item in updates) == sum(item["rows"] for item in updates) == expected > 0
        assert [item["revision"] for item in events if item["event"] == "commit"] == [ENCODED, HEAD]
        assert "song_sketches" in text
        assert broken.password not in text
        assert "postgresql" not in text.replace("sqlalchemy.dialects.postgresql", "")
        assert "Refrain" not in text

    def test_the_sessions_settings(self, broken: AppDatabase, deployment: Deployment) -> None:
        """What the migration's own session runs with, written down by a revision."""
        deployment.add(
            NEW,
            'op.execute("create table kept as select name, setting from pg_settings where name in '
            "('lock_timeout', 'statement_timeout', 'application_name', 'client_connection_check_interval')\")",
        )
        migrate(broken, deployment.directory, lock_timeout=7, statement_timeout=900, run_id="r1")
        assert dict(witness_of(broken).query("select name, setting from kept")) == {
            "application_name": "alembic-recovery:r1:migrate",
            "client_connection_check_interval": "1000",
            "lock_timeout": "7000",
            "statement_timeout": "900000",
        }
