"""pg_backup: the four steps, a manifest that equals its dump, and nothing left where it fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replica.application import BROKEN
from replica.databases import AppDatabase
from tests.support.evidence import Witness, files, mode
from tests.support.modules import run_module
from tests.support.stacks import database_options, witness_of

Make = Callable[..., AppDatabase]
RUN = "20251021T031500Z-7f3a"
AWKWARD = "we\"ird $HOME;-- ' =x\\ ä"


def backup(database: AppDatabase, directory: Path, /, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module."""
    place = {"database": database_options(database), "directory": str(directory), "run_id": RUN}
    return run_module("pg_backup", {**place, **more}, check=check)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def restored(broken: AppDatabase, make_database: Make) -> Callable[[str], Witness]:
    """Restore a dump into a database of its own, with pg_restore, and stop at the first error."""

    def restore(dump: str) -> Witness:
        empty = make_database(None)
        command = [broken.server.bin_dir / "pg_restore", "--exit-on-error", "--dbname", empty.conninfo, dump]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return witness_of(empty)

    return restore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where backups go; not there yet."""
    return tmp_path / "state" / "demo" / "backups"


class TestFourSteps:
    def test_check_real_check_real(
        self, broken: AppDatabase, directory: Path, restored: Callable[[str], Witness]
    ) -> None:
        witness = witness_of(broken)
        before = witness.look()

        planned = backup(broken, directory, check=True)
        assert planned["changed"] is True
        assert "files" not in planned
        assert planned["needed_bytes"] > witness.value("select pg_database_size(current_database())")
        assert not directory.parent.parent.exists()
        assert witness.look() == before

        done = backup(broken, directory)
        assert done["changed"] is True
        assert done["dump"] == planned["dump"] == str(directory / f"{broken.name}_{RUN}.dump")
        assert witness.look() == before
        left = files(directory)

        for check in (True, False):
            again = backup(broken, directory, check=check)
            assert again["changed"] is False
            assert (again["files"], again["manifest"]) == (done["files"], done["manifest"])
        assert files(directory) == left
        witness.wait_until_alone()

        copy = restored(done["dump"]).look()
        assert (copy.catalog, copy.rows, copy.content, copy.sequences) == (
            before.catalog, before.rows, before.content, before.sequences,
        )  # fmt: skip

    def test_the_manifest_says_what_there_is(self, broken: AppDatabase, directory: Path) -> None:
        """Each figure against a reading of our own."""
        done = backup(broken, directory)
        manifest = json.loads(Path(done["manifest_file"]).read_text())
        witness = witness_of(broken)
        seen = witness.look()
        assert manifest["revisions"] == witness.versions() == [BROKEN]
        assert manifest["row_counts"] == {f"public.{name}": count for name, count in seen.rows.items()}
        assert manifest["sequence_values"]["public.song_number_seq"] == seen.sequences["song_number_seq"][0]
        oid, version, system = witness.query(
            "select oid::bigint, current_setting('server_version'), "
            "(select system_identifier::text from pg_control_system()) "
            "from pg_database where datname = current_database()"
        )[0]
        assert (manifest["database"]["oid"], manifest["database"]["name"]) == (oid, broken.name)
        assert (manifest["database"]["server_version"], manifest["database"]["system_identifier"]) == (version, system)
        assert manifest["run_id"] == RUN
        assert manifest["tools"]["pg_dump"].startswith(f"pg_dump (PostgreSQL) {version}")
        assert manifest["proved"] == "read through"
        assert manifest["seconds"] > 0
        for part in (manifest["file"], manifest["globals"]):
            path = directory / part["name"]
            assert (part["size_bytes"], part["sha256"]) == (path.stat().st_size, sha256(path))
        listed = {item["path"]: item["sha256"] for item in done["files"]}
        assert listed == {str(path): sha256(path) for path in directory.iterdir()}
        assert done["files"][-1]["path"] == done["manifest_file"], "the manifest last: without it, there is no backup"
        assert "structure" in manifest
        assert "structure" not in done["manifest"]

    def test_row_56_it_is_private_and_tells_no_password(self, broken: AppDatabase, directory: Path) -> None:
        old = os.umask(0o000)
        try:
            done = backup(broken, directory)
        finally:
            os.umask(old)
        assert mode(directory) == 0o700
        assert {mode(path) for path in directory.iterdir()} == {0o600}
        assert {path.suffix for path in directory.iterdir()} == {".dump", ".sql", ".json"}
        for path in directory.iterdir():
            if path.suffix != ".dump":
                text = path.read_text()
                assert broken.password not in text
                assert "SCRAM-SHA-256$" not in text
        assert "CREATE ROLE aiuser" in next(directory.glob("*.globals.sql")).read_text()
        assert broken.password not in json.dumps(done)


class TestOneMoment:
    """Fault 13: dump, counts and version are of one snapshot."""

    @pytest.fixture
    def writing(self, broken: AppDatabase) -> Iterator[Callable[[], int]]:
        """Somebody who adds a rule and moves the version on, in one transaction, again and again."""
        witness = witness_of(broken)
        witness.execute("truncate lyric_parsing_rules", "update alembic_version set version_num = '0'")
        stop = threading.Event()
        written = [0]

        def write() -> None:
            with psycopg.connect(witness.conninfo) as connection:
                while not stop.is_set():
                    connection.execute("insert into lyric_parsing_rules (name, pattern) values ('x', 'y')")
                    connection.execute("update alembic_version set version_num = %s", [str(written[0] + 1)])
                    connection.commit()
                    written[0] += 1

        thread = threading.Thread(target=write)
        thread.start()
        yield lambda: written[0]
        stop.set()
        thread.join()

    def test_manifest_and_dump_agree_while_others_write(
        self,
        broken: AppDatabase,
        directory: Path,
        writing: Callable[[], int],
        restored: Callable[[str], Witness],
    ) -> None:
        first = writing()
        done = backup(broken, directory)
        assert writing() > first, "nobody wrote meanwhile"
        manifest = done["manifest"]
        rows = manifest["row_counts"]["public.lyric_parsing_rules"]
        assert first <= rows
        assert manifest["revisions"] == [str(rows)], "the version and the rows are of different moments"

        copy = restored(done["dump"])

        assert {f"public.{name}": count for name, count in copy.look().rows.items()} == manifest["row_counts"]
        assert copy.versions() == manifest["revisions"]
        assert copy.query("select count(*), count(distinct id) from lyric_parsing_rules") == [(rows, rows)]

    def test_the_restored_copy_has_the_fingerprint_of_the_manifest(
        self, broken: AppDatabase, directory: Path, restored: Callable[[str], Witness]
    ) -> None:
        """Also where the role's own search_path is another one, and with every kind of object."""
        witness_of(broken).execute(
            "create schema extra",
            "create view extra.titles as select title from songs",
            "create materialized view extra.ready as select id from songs where status = 'ready'",
            "create table extra.part (id int, at date) partition by range (at)",
            "create table extra.part_2025 partition of extra.part for values from ('2025-01-01') to ('2026-01-01')",
            "insert into extra.part values (1, '2025-02-03')",
            "alter table songs add constraint later check (number > 0) not valid",
            "create unique index ix_lower on users (lower(email))",
            "comment on table songs is 'what people sing'",
            "grant select on songs to public",
            "alter table users enable row level security",
            "create policy mine on users using (true)",
            "alter schema extra owner to aiuser",
            "alter table extra.part owner to aiuser",
            "alter table extra.part_2025 owner to aiuser",
            "alter view extra.titles owner to aiuser",
            "alter materialized view extra.ready owner to aiuser",
        )
        done = backup(broken, directory)
        copy = restored(done["dump"])
        name = copy.value("select current_database()")
        copy.execute(f"alter database {name} set search_path = extra, public")
        place = database_options(broken, name=name)
        again = run_module("pg_catalog", {"database": place})
        assert again["fingerprint"] == done["manifest"]["fingerprint"]
        assert again["row_counts"] == done["manifest"]["row_counts"]
        assert set(copy.look().catalog) == set(witness_of(broken).look().catalog)
        copy.execute("alter table songs drop constraint later")
        assert run_module("pg_catalog", {"database": place})["fingerprint"] != done["manifest"]["fingerprint"]


class TestRefusals:
    def test_a_directory_that_is_open_to_others(self, broken: AppDatabase, directory: Path) -> None:
        directory.mkdir(parents=True)
        directory.chmod(0o755)
        for check in (True, False):
            seen = backup(broken, directory, check=check)
            assert seen["failed"] is True
            assert seen["msg"] == (
                f"{directory} is open to others (mode 0755); it holds whole databases. Close it: chmod 0700 {directory}"
            )
        assert list(directory.iterdir()) == []

    def test_a_directory_that_is_a_link(self, broken: AppDatabase, directory: Path, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir(mode=0o700)
        directory.parent.mkdir(parents=True)
        directory.symlink_to(target)
        seen = backup(broken, directory)
        assert "is a link; links are not followed" in seen["msg"]
        assert list(target.iterdir()) == []

    @pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm", "/tmp/../tmp/"])
    def test_everybodys_directories(self, broken: AppDatabase, place: str) -> None:
        before = {path for path in Path(place).iterdir() if RUN in path.name}
        seen = backup(broken, Path(place))
        assert "is everybody's: a dump holds the whole database. Set recovery_directory." in seen["msg"]
        assert {path for path in Path(place).iterdir() if RUN in path.name} == before

    @pytest.mark.parametrize("run_id", ["../x", "a b", "", "-x", "x" * 65, "$HOME", "a/b"])
    def test_a_run_id_that_would_be_a_path(self, broken: AppDatabase, directory: Path, run_id: str) -> None:
        seen = backup(broken, directory, run_id=run_id)
        assert f"run_id {run_id!r} has other characters than letters, digits" in seen["msg"]
        assert not directory.exists()

    def test_a_damaged_file_of_the_same_run(self, broken: AppDatabase, directory: Path) -> None:
        """Fault 9: a flipped bit is found before it is relied on, also where the size is right."""
        dump = Path(backup(broken, directory)["dump"])
        content = bytearray(dump.read_bytes())
        content[len(content) // 2] ^= 1
        dump.write_bytes(content)
        left = files(directory)
        seen = backup(broken, directory)
        assert seen["failed"] is True
        assert f"{dump} is not what was written: its SHA-256 differs from the manifest's." in seen["msg"]
        assert files(directory) == left

    def test_row_57_a_dump_without_a_manifest_is_not_overwritten(self, broken: AppDatabase, directory: Path) -> None:
        dump = Path(backup(broken, directory)["dump"])
        dump.with_suffix(".manifest.json").unlink()
        left = files(directory)
        seen = backup(broken, directory)
        assert f"{dump} is there already; nothing is overwritten. Choose another run id." in seen["msg"]
        assert files(directory) == left

    def test_a_database_that_is_not_there(self, broken: AppDatabase, directory: Path) -> None:
        seen = backup(broken, directory, database=database_options(broken, name="aiproxx"))
        assert 'database "aiproxx" does not exist' in seen["msg"]
        assert not directory.exists()

    def test_programs_that_are_not_there(self, broken: AppDatabase, directory: Path, tmp_path: Path) -> None:
        place = database_options(broken, bin_dir=str(tmp_path))
        for check in (True, False):
            seen = backup(broken, directory, check=check, database=place)
            assert f"pg_dump is not in {tmp_path}. Set bin_dir in recovery_stack.database" in seen["msg"]
        assert not directory.exists()


class TestFailures:
    def test_a_table_that_the_role_may_not_read_leaves_nothing(self, broken: AppDatabase, directory: Path) -> None:
        """Found by pg_dump or by the count beside it: either way no file stays, and older backups do."""
        older = backup(broken, directory, run_id="older")
        left = files(directory)
        witness_of(broken).execute("create table hidden (id int)", "revoke all on hidden from aiuser")
        before = witness_of(broken).look()
        seen = backup(broken, directory)
        assert seen["failed"] is True
        assert "permission denied for table hidden" in seen["msg"]
        assert files(directory) == left
        assert older["manifest"]["run_id"] == "older"
        assert witness_of(broken).look() == before
        witness_of(broken).wait_until_alone()

    def test_a_table_that_only_the_dump_trips_over_leaves_nothing(self, broken: AppDatabase, directory: Path) -> None:
        """Row security: a count is silently short, pg_dump refuses, and so does the module."""
        witness_of(broken).execute(
            "create table secret (id int)",
            "insert into secret values (1)",
            "alter table secret enable row level security",
            "grant select on secret to aiuser",
        )
        seen = backup(broken, directory)
        assert seen["failed"] is True
        assert "pg_dump ended with exit code 1" in seen["msg"]
        assert "row-level security policy for table" in seen["msg"]
        assert list(directory.iterdir()) == []


def test_a_database_with_an_awkward_name(broken: AppDatabase, directory: Path) -> None:
    """S15: quotes, blanks, dollars, a leading hyphen; nothing of it reaches a path or a shell."""
    for name in (AWKWARD, "-host"):
        broken.server.create_database(name, broken.user, broken.name)
        try:
            place = database_options(broken, name=name)
            done = backup(broken, directory, database=place)
            assert done["manifest"]["database"]["name"] == name
            assert done["manifest"]["revisions"] == [BROKEN]
            assert Path(done["dump"]).parent == directory
            assert set(Path(done["dump"]).name) <= set(
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
            )
        finally:
            broken.server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_a_moved_version_table(broken: AppDatabase, directory: Path) -> None:
    witness_of(broken).execute(
        "create schema kept",
        "alter table alembic_version set schema kept",
        f"grant usage on schema kept to {broken.user}",
    )
    done = backup(broken, directory, version_table="kept.alembic_version")
    assert done["manifest"]["revisions"] == [BROKEN]
