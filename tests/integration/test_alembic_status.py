"""alembic_status: each verdict produced for real, against a reading of our own, and never a write."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replica.application import BASE, BROKEN, ENCODED, HEAD, State
from replica.databases import AppDatabase
from replica.postgres import LOCATION, EmbeddedPostgres
from tests.support.evidence import files
from tests.support.modules import run_module
from tests.support.stacks import Deployment, application_options, database_options, options, witness_of

Make = Callable[..., AppDatabase]
RELATIONS = ["song_sketches", "songs.sketch_id"]


def status(
    database: AppDatabase, /, directory: Path | None = None, *, check: bool = False, **more: Any
) -> dict[str, Any]:
    """Run the module, and require that it has changed nothing: no row, no table, no file."""
    arguments = options(database, directory, **{"relations": RELATIONS, "limit": "demo", **more})
    witness = witness_of(database)
    place = directory or database.application
    before, left = witness.look(), files(place, without=["__pycache__"])
    result = run_module("alembic_status", arguments, check=check)
    assert result["changed"] is False
    assert witness.look() == before
    assert files(place, without=["__pycache__"]) == left
    return result


class TestVerdicts:
    def test_behind_with_what_is_missing_and_why_plain_alembic_would_not_do(self, broken: AppDatabase) -> None:
        seen = status(broken)
        assert seen["verdict"] == "BEHIND"
        assert seen["recoverable"] is True
        assert seen["current"] == [BROKEN]
        assert seen["heads"] == [HEAD]
        assert [step["revision"] for step in seen["missing"]] == [ENCODED, HEAD]
        assert seen["missing"][1] == {
            "revision": HEAD,
            "message": "add_song_sketches_table",
            "file": f"{HEAD}_add_song_sketches_table.py",
            "downgrade": "present",
        }
        assert seen["missing_relations"] == RELATIONS
        assert seen["next_step"] == "ansible-playbook recover.yml -l demo"
        assert seen["refusals"] == []
        assert [(item["name"], item["severity"]) for item in seen["findings"]] == [("commits_itself", "warning")]
        assert ENCODED in seen["findings"][0]["text"]
        assert seen["revision_count"] == len(list(broken.application.glob("src/alembic/versions/*.py")))

    def test_check_mode_gives_the_same_answer_and_nobody_stays_connected(self, broken: AppDatabase) -> None:
        assert status(broken, check=True) == status(broken)
        witness_of(broken).wait_until_alone()

    def test_who_was_asked_is_what_the_server_itself_says(self, broken: AppDatabase) -> None:
        seen = status(broken)
        witness = witness_of(broken)
        oid, version, system = witness.query(
            "select oid::bigint, current_setting('server_version'), "
            "(select system_identifier::text from pg_control_system()) "
            "from pg_database where datname = current_database()"
        )[0]
        assert seen["database"]["oid"] == oid
        assert seen["database"]["name"] == broken.name
        assert seen["database"]["user"] == broken.user
        assert seen["database"]["server_version"] == version
        assert seen["database"]["system_identifier"] == system
        assert seen["application"]["workdir"] == str(broken.application)
        assert seen["application"]["python"] == sys.version.split()[0]
        assert broken.password not in str(seen)

    def test_at_head(self, make_database: Make) -> None:
        database = make_database(State.HEALTHY)
        seen = status(database, expected_current=BROKEN, expected_head=HEAD)
        assert (seen["verdict"], seen["recoverable"], seen["missing"], seen["refusals"]) == ("AT_HEAD", True, [], [])
        assert seen["current"] == witness_of(database).versions() == [HEAD]

    def test_ahead_the_database_has_a_revision_that_the_code_does_not(self, broken: AppDatabase) -> None:
        witness_of(broken).execute("update alembic_version set version_num = 'feedc0ffee00'")
        seen = status(broken)
        assert (seen["verdict"], seen["recoverable"]) == ("AHEAD", False)
        assert "feedc0ffee00, which the code does not know" in seen["summary"]
        assert "Deploy the code that has feedc0ffee00" in seen["next_step"]

    def test_diverged_two_rows_of_one_history(self, broken: AppDatabase) -> None:
        witness_of(broken).execute(f"insert into alembic_version values ('{BASE}')")
        seen = status(broken)
        assert (seen["verdict"], seen["recoverable"]) == ("DIVERGED", False)
        assert seen["current"] == sorted([BASE, BROKEN])
        assert f"{BASE} already is part of the others" in seen["summary"]
        assert "No relative downgrade" in seen["will_not"]

    def test_diverged_one_row_known_and_one_not(self, broken: AppDatabase) -> None:
        witness_of(broken).execute("insert into alembic_version values ('feedc0ffee00')")
        seen = status(broken)
        assert (seen["verdict"], seen["recoverable"]) == ("DIVERGED", False)
        assert "the code does not know feedc0ffee00" in seen["summary"]

    def test_multiple_heads(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.add("aaaa00000001", "pass")
        deployment.add("bbbb00000002", "pass")
        seen = status(broken, deployment.directory)
        assert (seen["verdict"], seen["recoverable"]) == ("MULTIPLE_HEADS", False)
        assert seen["heads"] == ["aaaa00000001", "bbbb00000002"]
        assert "alembic merge" in seen["next_step"]

    def test_a_head_that_another_one_depends_on_is_no_second_head(
        self, make_database: Make, deployment: Deployment
    ) -> None:
        """Trap 8: `alembic current --check-heads` fails on a complete database of this kind."""
        deployment.add("aaaa00000001", "pass", down=())
        deployment.add("bbbb00000002", "pass", depends_on="aaaa00000001")
        database = make_database(State.HEALTHY)
        seen = status(database, deployment.directory)
        assert seen["verdict"] == "BEHIND"
        assert [step["revision"] for step in seen["missing"]] == ["aaaa00000001", "bbbb00000002"]
        witness_of(database).execute("update alembic_version set version_num = 'bbbb00000002'")
        assert status(database, deployment.directory)["verdict"] == "AT_HEAD"

    def test_empty(self, make_database: Make) -> None:
        seen = status(make_database(None))
        assert (seen["verdict"], seen["recoverable"], seen["current"]) == ("EMPTY", False, [])
        assert "recovery_stack.database.name" in seen["next_step"]

    @pytest.mark.parametrize("how", ["drop table alembic_version", "delete from alembic_version"])
    def test_unversioned(self, broken: AppDatabase, how: str) -> None:
        witness_of(broken).execute(how)
        seen = status(broken)
        assert (seen["verdict"], seen["recoverable"]) == ("UNVERSIONED", False)
        assert "Nothing is stamped" in seen["will_not"]
        # Alembic's own commands would have made the table only to look (trap 11).
        assert witness_of(broken).has("alembic_version") == how.startswith("delete")

    def test_stamped_not_applied(self, broken: AppDatabase) -> None:
        assert broken.alembic("stamp", "head").returncode == 0
        seen = status(broken)
        assert (seen["verdict"], seen["recoverable"]) == ("STAMPED_NOT_APPLIED", False)
        assert seen["missing_relations"] == RELATIONS
        assert "song_sketches, songs.sketch_id" in seen["summary"]

    def test_foreign_the_code_has_no_revisions(self, broken: AppDatabase, deployment: Deployment) -> None:
        for path in deployment.versions.glob("*.py"):
            path.unlink()
        seen = status(broken, deployment.directory)
        assert (seen["verdict"], seen["recoverable"]) == ("FOREIGN", False)
        assert "the code has no revisions at all" in seen["summary"]


class TestUnreadable:
    """Each with its cause, and what to correct."""

    def unreadable(self, broken: AppDatabase, /, **more: Any) -> str:
        seen = status(broken, **more)
        assert (seen["verdict"], seen["recoverable"]) == ("UNREADABLE", False)
        assert seen["next_step"] == "Remove the cause, then: ansible-playbook playbooks/status.yml -l demo"
        assert broken.password not in str(seen)
        summary: str = seen["summary"]
        return summary

    def test_env_that_raises(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.change_env({"target_metadata = Base.metadata\n": "raise RuntimeError('no settings for today')\n"})
        assert "RuntimeError: no settings for today" in self.unreadable(broken, directory=deployment.directory)

    def test_env_that_ends_the_process(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.change_env({"target_metadata = Base.metadata\n": "raise SystemExit(0)\n"})
        assert "SystemExit" in self.unreadable(broken, directory=deployment.directory)

    def test_env_that_ends_the_process_at_once(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.change_env({"target_metadata = Base.metadata\n": "os._exit(0)\n"})
        assert "ended before it had answered (exit code 0)" in self.unreadable(broken, directory=deployment.directory)

    def test_env_that_asks_for_no_migrations(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.env.write_text("")
        assert "ran no migrations at all" in self.unreadable(broken, directory=deployment.directory)

    def test_revision_that_cannot_be_imported(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.add("aaaa00000001", "pass").write_text("import missing_package\n")
        assert "No module named 'missing_package'" in self.unreadable(broken, directory=deployment.directory)

    def test_no_ini(self, broken: AppDatabase) -> None:
        app = application_options(broken, alembic_config="config/alembic.ini")
        summary = self.unreadable(broken, application=app)
        assert f"There is no config/alembic.ini in {broken.application}" in summary
        assert "Correct app.workdir or app.alembic_config in recovery_stack." in summary

    def test_python_without_alembic(self, broken: AppDatabase, tmp_path: Path) -> None:
        venv.create(tmp_path / "bare", with_pip=False)
        python = str(tmp_path / "bare" / "bin" / "python")
        summary = self.unreadable(broken, application=application_options(broken, python=python))
        assert f"{python} in this host has no Alembic or SQLAlchemy" in summary
        assert "Set app.python in recovery_stack" in summary

    def test_python_that_is_not_there(self, broken: AppDatabase) -> None:
        summary = self.unreadable(broken, application=application_options(broken, python="/opt/none/bin/python"))
        assert "/opt/none/bin/python could not be started" in summary
        assert "app.python" in summary

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("name", "aiproxx", ['database "aiproxx" does not exist', "Correct recovery_stack.database.name"]),
            ("user", "nobody_known", ["as nobody_known", "recovery_stack.database"]),
            ("password", "wrong", ["password authentication failed", "Set recovery_stack.database.password"]),
            ("unix_socket", "/var/empty/none", ["Is the server running"]),
        ],
    )
    def test_database_that_lets_nobody_in(self, broken: AppDatabase, key: str, value: str, words: list[str]) -> None:
        summary = self.unreadable(broken, database=database_options(broken, **{key: value}))
        assert "No connection to database" in summary
        for word in words:
            assert word in summary

    def test_role_that_may_not_read_the_version_table(self, broken: AppDatabase) -> None:
        witness_of(broken).execute("alter table alembic_version owner to postgres")
        assert "permission denied for table alembic_version" in self.unreadable(broken)


class TestRefusals:
    """Findings with which a recovery does not go on, whatever the verdict."""

    def refused(self, name: str, seen: dict[str, Any]) -> str:
        found = [item for item in seen["findings"] if item["severity"] == "refusal"]
        assert [item["name"] for item in found] == [name]
        assert seen["refusals"] == [found[0]["text"]]
        text: str = found[0]["text"]
        return text

    def test_the_application_migrates_another_database(self, broken: AppDatabase, make_database: Make) -> None:
        other = make_database(State.UNTOUCHED)
        text = self.refused("other_database", status(broken, application=application_options(other)))
        assert f"The application's migrations go to database {other.name}" in text
        assert f"the stack describes {broken.name}" in text

    def test_the_same_name_in_another_server_is_another_database(
        self, broken: AppDatabase, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Fault 30: a name alone says nothing."""
        second = EmbeddedPostgres(tmp_path_factory.mktemp("second"), durable=False)
        try:
            second.create()
            second.start()
            second.create_role(broken.user, broken.password)
            second.create_database(broken.name, broken.user)
            place = database_options(broken, unix_socket=str(second.socket_dir))
            seen = run_module("alembic_status", {**options(broken), "database": place})
        finally:
            second.remove()
        assert "other_database" in [item["name"] for item in seen["findings"]]
        assert "server started" in seen["refusals"][0]

    def test_the_search_path_leads_to_another_version_table(self, broken: AppDatabase) -> None:
        witness_of(broken).execute(
            "create schema other",
            "create table other.alembic_version (version_num varchar(32) primary key)",
            f"insert into other.alembic_version values ('{HEAD}')",
            f"grant usage on schema other to {broken.user}",
            f"grant select on other.alembic_version to {broken.user}",
        )
        url = broken.url + "&options=-csearch_path%3Dother,public"
        app = application_options(broken, environment={"DATABASE_URL": url})
        seen = status(broken, application=app)
        assert (seen["version_table"], seen["current"]) == ("other.alembic_version", [HEAD])
        # What the application believes is read, and compared with what is there.
        assert (seen["verdict"], seen["recoverable"]) == ("STAMPED_NOT_APPLIED", False)
        found = [item for item in seen["findings"] if item["name"] == "version_table_by_search_path"]
        assert "other.alembic_version" in found[0]["text"]
        assert "would find public.alembic_version: their search paths differ" in found[0]["text"]

    def test_another_head_than_expected(self, broken: AppDatabase) -> None:
        text = self.refused("unexpected_head", status(broken, expected_head="0123456789ab"))
        assert f"expects head 0123456789ab; the code's head is {HEAD}" in text
        assert "The code has no revision 0123456789ab: is the right image deployed?" in text

    def test_a_revision_that_is_no_head_any_more(self, broken: AppDatabase) -> None:
        text = self.refused("unexpected_head", status(broken, expected_head=ENCODED))
        assert f"expects head {ENCODED}" in text
        assert "has no revision" not in text

    def test_another_current_than_expected(self, broken: AppDatabase) -> None:
        text = self.refused("unexpected_current", status(broken, expected_current=ENCODED))
        assert f"expects the database at {ENCODED}; it is at {BROKEN}" in text
        assert "expect.current" in text

    def test_further_than_the_plan_expects_is_where_an_earlier_run_has_stopped(self, broken: AppDatabase) -> None:
        seen = status(broken, expected_current=BASE)
        found = {item["name"]: item for item in seen["findings"]}
        assert found["further_than_expected"]["severity"] == "warning"
        assert f"expects the database at {BASE}; it is at {BROKEN}" in found["further_than_expected"]["text"]
        assert (seen["refusals"], seen["recoverable"]) == ([], True)

    def test_a_revision_id_that_does_not_fit(self, broken: AppDatabase, deployment: Deployment) -> None:
        """Trap 12: it would fail after its changes."""
        long = "a" * 33
        deployment.add(long, "pass")
        text = self.refused("version_column_too_narrow", status(broken, deployment.directory))
        assert f"Revision id {long} has 33 characters, the version column holds 32" in text

    def test_a_standby(self, broken: AppDatabase, tmp_path_factory: pytest.TempPathFactory) -> None:
        standby = make_standby(broken.server, tmp_path_factory.mktemp("standby"))
        try:
            standby.start()
            url = broken.url.replace(str(broken.server.socket_dir), str(standby.socket_dir))
            seen = run_module(
                "alembic_status",
                {
                    "database": database_options(broken, unix_socket=str(standby.socket_dir)),
                    "application": application_options(broken, environment={"DATABASE_URL": url}),
                },
            )
        finally:
            standby.remove()
        assert seen["verdict"] == "BEHIND"
        assert "This server is a standby" in self.refused("standby", seen)


class TestFindings:
    def test_an_invalid_index(self, broken: AppDatabase) -> None:
        """Trap 5: what a failed CREATE INDEX CONCURRENTLY has left."""
        witness = witness_of(broken)
        with pytest.raises(Exception, match="could not create unique index"):
            witness.execute("create unique index concurrently ix_half on songs (user_id)")
        found = {item["name"]: item for item in status(broken)["findings"]}
        assert found["invalid_index"]["severity"] == "warning"
        assert "public.ix_half" in found["invalid_index"]["text"]

    def test_an_autocommit_block(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.add("aaaa00000001", "with op.get_context().autocommit_block():\n    op.execute('select 1')")
        found = {item["name"]: item["text"] for item in status(broken, deployment.directory)["findings"]}
        assert "aaaa00000001 uses an autocommit block" in found["autocommit_block"]


class TestWhatTheApplicationDoes:
    """env.py decides where things are, and may say what it likes."""

    def test_version_table_in_a_schema_of_its_own(self, broken: AppDatabase, deployment: Deployment) -> None:
        """Trap 10: only env.py knows."""
        deployment.change_env(
            {
                "connection=connection, target_metadata": (
                    "connection=connection, version_table='moved', version_table_schema='kept', target_metadata"
                )
            }
        )
        witness_of(broken).execute(
            "create schema kept",
            "alter table alembic_version rename to moved",
            "alter table moved set schema kept",
            f"grant usage on schema kept to {broken.user}",
        )
        seen = status(broken, deployment.directory)
        assert (seen["verdict"], seen["version_table"], seen["current"]) == ("BEHIND", "kept.moved", [BROKEN])

    def test_version_locations_set_by_env(self, broken: AppDatabase, deployment: Deployment, tmp_path: Path) -> None:
        moved = tmp_path / "elsewhere"
        shutil.move(deployment.versions, moved)
        deployment.change_env(
            {
                "target_metadata = Base.metadata\n": (
                    f"target_metadata = Base.metadata\ncontext.script.version_locations = [{str(moved)!r}]\n"
                )
            }
        )
        seen = status(broken, deployment.directory)
        assert (seen["verdict"], seen["heads"]) == ("BEHIND", [HEAD])

    def test_what_env_prints_does_not_get_in_the_way(self, broken: AppDatabase, deployment: Deployment) -> None:
        deployment.change_env(
            {
                "target_metadata = Base.metadata\n": (
                    "target_metadata = Base.metadata\n"
                    "print('hello')\nos.write(1, b'\\nnoise {\\n')\nos.system('echo more')\n"
                )
            }
        )
        assert status(broken, deployment.directory)["verdict"] == "BEHIND"

    def test_an_env_that_writes_before_it_configures_cannot(self, broken: AppDatabase, deployment: Deployment) -> None:
        """A look is a read-only session, whatever the application does in it."""
        deployment.change_env(
            {
                "        context.configure(connection=connection,": (
                    "        connection.exec_driver_sql('create table made_by_env ()')\n"
                    "        context.configure(connection=connection,"
                )
            }
        )
        seen = status(broken, deployment.directory)
        assert seen["verdict"] == "UNREADABLE"
        assert "read-only transaction" in seen["summary"]
        assert not witness_of(broken).has("made_by_env")

    def test_a_password_with_every_awkward_sign(self, broken: AppDatabase) -> None:
        """Trap 18, and the way of libpq for quotes, blanks and backslashes."""
        password = "p%40@:/ '\"\\ ä#?&=%(x)s"
        broken.server.create_role("awkward", password)
        witness_of(broken).execute("grant select on all tables in schema public to awkward")
        try:
            database = AppDatabase(broken.server, broken.application, broken.name, "awkward", password)
            seen = status(database)
        finally:
            witness_of(broken).execute("drop owned by awkward", "drop role awkward")
        assert seen["verdict"] == "BEHIND"
        assert password not in str(seen)

    def test_a_missing_working_directory_fails_with_what_to_correct(self, broken: AppDatabase) -> None:
        seen = run_module(
            "alembic_status", options(broken, application=application_options(broken, workdir="/none/app"))
        )
        assert seen["failed"] is True
        assert "The working directory /none/app is not there. Correct app.workdir in recovery_stack." in seen["msg"]

    def test_a_missing_environment_file_fails_with_its_name(self, broken: AppDatabase) -> None:
        app = application_options(broken, environment=None, environment_file="/none/app.env")
        seen = run_module("alembic_status", options(broken, application=app))
        assert seen["failed"] is True
        assert "The environment file /none/app.env cannot be read" in seen["msg"]


def make_standby(primary: EmbeddedPostgres, directory: Path) -> EmbeddedPostgres:
    """A standby of a server, made with pg_basebackup, not started yet."""
    home = Path(tempfile.mkdtemp(prefix="replica-postgres-"))  # remove() takes it away
    home.chmod(0o711)
    for name in ("run", "log"):
        (home / name).mkdir()
    (directory / LOCATION).write_text(json.dumps({"home": str(home), "version": primary.version}))
    command = [primary.bin_dir / "pg_basebackup", "-D", home / "data", "-d", primary.conninfo(), "-R", "-c", "fast"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with (home / "data" / "postgresql.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{home / 'run'}'\n")
    if os.geteuid() == 0:
        owner = pwd.getpwnam("nobody")
        for path in [home, *home.rglob("*")]:
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    return EmbeddedPostgres(directory, durable=False)
