"""pg_restore_foreign: what others have dumped, restored and compared, or refused before anything is made."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import postgres
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from psycopg import sql

from replica.application import BROKEN
from replica.databases import AppDatabase
from replica.postgres import EmbeddedPostgres
from tests.support.dumps import counts, dumper
from tests.support.evidence import Witness, files, mode
from tests.support.modules import run_module
from tests.support.stacks import database_options

AWKWARD_NAME = "we\"ird $HOME;-- ' =x\\ ä"


@pytest.fixture
def dump(broken: AppDatabase, tmp_path: Path) -> Callable[..., Path]:
    """Dump the database, with awkward things in it, to a file whose name says nothing."""
    return dumper(broken, tmp_path)


@pytest.fixture
def into(broken: AppDatabase) -> Iterator[str]:
    """The name of a database that is not there."""
    name = f"{broken.name}_restored"
    yield name
    broken.server.drop_database(name)


def databases(server: EmbeddedPostgres) -> list[str]:
    return [row[0] for row in Witness(server.conninfo()).query("select datname from pg_database order by 1")]


def restore(database: AppDatabase, path: Path, into: str, /, *, check: bool = False, **more: Any) -> dict[str, Any]:
    options = {"database": database_options(database, admin_user="postgres"), "path": str(path), "into": into}
    return run_module("pg_restore_foreign", {**options, **more}, check=check)


def test_row_49_what_hangs_on_the_databases_entry_comes_with_it(
    broken: AppDatabase, dump: Callable[..., Path], into: str
) -> None:
    """It is in no dump of one database."""
    name = f'"{broken.name}"'
    server = Witness(broken.server.conninfo())
    server.execute(
        f"alter database {name} set work_mem = '5MB'",
        f"alter role {broken.user} in database {name} set search_path = public, pg_temp",
        f"comment on database {name} is 'of the shop'",
        f"alter database {name} connection limit 7",
        f"revoke connect on database {name} from public",
    )
    done = restore(broken, dump("--format=custom"), into)
    assert done["changed"] is True, done
    entry = """
        select datconnlimit, shobj_description(oid, 'pg_database'), datacl::text,
               (select array_agg((setrole, setconfig)::text order by setrole) from pg_db_role_setting
                where setdatabase = d.oid)
        from pg_database d where datname = '{}'"""
    made, own = (server.query(entry.format(one))[0] for one in (into, broken.name))
    assert made == own
    assert made[0] == 7


def assert_four_steps(database: AppDatabase, path: Path, into: str, directory: Path, /, **more: Any) -> dict[str, Any]:
    """Check, real, check, real; return the result of the second. What is restored is compared by our own reading."""
    witness = Witness(database.server.conninfo(database.name))
    before, there, left = witness.look(), databases(database.server), files(directory)
    would = restore(database, path, into, check=True, **more)
    assert would["changed"] is True, would
    assert "seconds" not in would
    assert (databases(database.server), files(directory)) == (there, left)

    done = restore(database, path, into, **more)
    assert done["changed"] is True, done
    assert done["seconds"] > 0
    copy = Witness(database.server.conninfo(into))
    seen = copy.look()
    assert (seen.catalog, seen.rows, seen.content, seen.sequences) == (
        before.catalog, before.rows, before.content, before.sequences,
    )  # fmt: skip
    owner, settings = copy.query(
        "select pg_get_userbyid(datdba), (encoding, datcollate, datctype)::text from pg_database "
        "where datname = current_database()"
    )[0]
    assert owner == database.user
    assert settings == witness.value(
        "select (encoding, datcollate, datctype)::text from pg_database where datname = current_database()"
    )
    assert copy.value("select count(*) from pg_statistic") > 0, "analyzed"

    for check in (True, False):
        again = restore(database, path, into, check=check, **more)
        assert again["failed"] is True
        assert f"There is a database {into} already" in again["msg"]
    assert copy.look().content == seen.content
    assert witness.look().content == before.content
    witness.wait_until_alone()
    copy.wait_until_alone()
    return done


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--format=custom",), "custom"),
        (("--format=custom", "--compress=0", "--inserts"), "custom"),
        (("--format=directory",), "directory"),
        (("--format=tar",), "tar"),
        ((), "plain"),
        (("--column-inserts", "--rows-per-insert=7"), "plain"),
    ],
    ids=lambda value: " ".join(value) or "copy" if isinstance(value, tuple) else value,
)
def test_four_steps(
    broken: AppDatabase, dump: Callable[..., Path], into: str, tmp_path: Path, options: tuple[str, ...], kind: str
) -> None:
    path = dump(*options)
    plain = {"plain_sql": "execute"} if kind == "plain" else {}
    done = assert_four_steps(broken, path, into, tmp_path, **plain)
    assert (done["kind"], done["compression"], done["revisions"]) == (kind, "", [BROKEN])
    expected = counts(Witness(broken.server.conninfo(broken.name)))
    assert {name: count for name, count in expected.items() if count} == {
        name: count for name, count in done["rows"].items() if count
    }
    assert done["total_rows"] == sum(expected.values())
    assert done["dumped_from"].startswith("16.")
    if path.is_file():
        assert done["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("program", ["gzip", "zstd"])
@pytest.mark.parametrize("options", [(), ("--format=custom",), ("--format=tar",)], ids=["plain", "custom", "tar"])
def test_compressed(
    broken: AppDatabase, dump: Callable[..., Path], into: str, tmp_path: Path, options: tuple[str, ...], program: str
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    path = dump(*options)
    packed = tmp_path / "packed"
    packed.write_bytes(subprocess.run([program, "-c", path], capture_output=True, check=True).stdout)
    refused = restore(broken, packed, into, plain_sql="execute")
    assert "Set work_directory" in refused["msg"]
    work = tmp_path / "work"
    done = assert_four_steps(broken, packed, into, tmp_path / "backup", plain_sql="execute", work_directory=str(work))
    assert done["compression"] == program
    assert mode(work) == 0o700
    assert list(work.iterdir()) == []


class TestRefused:
    """Before anything is made, with the reason."""

    @pytest.fixture
    def refusal(self, broken: AppDatabase, into: str) -> Callable[..., str]:
        there = databases(broken.server)

        def run(path: Path, **more: Any) -> str:
            said = ""
            for check in (True, False):
                result = restore(broken, path, into, check=check, **more)
                assert result["failed"] is True, result
                assert databases(broken.server) == there
                said = result["msg"]
            return said

        return run

    def test_s20_plain_sql_without_the_word(self, dump: Callable[..., Path], refusal: Callable[..., str]) -> None:
        assert "say plain_sql: execute" in refusal(dump())

    def test_commands_of_psql(self, dump: Callable[..., Path], refusal: Callable[..., str], tmp_path: Path) -> None:
        path, proof = dump(), tmp_path / "proof"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("SET row_security", f"\\! touch {proof}\nSET row_security", 1), encoding="utf-8")
        assert "has commands for psql itself (\\!" in refusal(path, plain_sql="execute")
        assert not proof.exists()

    @pytest.mark.parametrize("options", [(), ("--format=custom",), ("--format=tar",)], ids=["plain", "custom", "tar"])
    def test_row_01_through_a_terminal(
        self, dump: Callable[..., Path], refusal: Callable[..., str], options: tuple[str, ...]
    ) -> None:
        path = dump(*options)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert "written through a terminal" in refusal(path, plain_sql="execute")

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
    @pytest.mark.parametrize("options", [(), ("--format=custom",), ("--format=tar",)], ids=["plain", "custom", "tar"])
    def test_row_08_cut_off(
        self, dump: Callable[..., Path], refusal: Callable[..., str], options: tuple[str, ...], part: float
    ) -> None:
        path = dump(*options)
        os.truncate(path, int(path.stat().st_size * part))
        assert "cut off" in refusal(path, plain_sql="execute")

    def test_row_09_a_byte_flipped(self, dump: Callable[..., Path], refusal: Callable[..., str]) -> None:
        path = dump("--format=custom")
        content = bytearray(path.read_bytes())
        content[len(content) * 3 // 4] ^= 0x5A
        path.write_bytes(content)
        assert "cannot be read through" in refusal(path)

    def test_row_10_a_file_of_a_directory_is_missing(
        self, dump: Callable[..., Path], refusal: Callable[..., str]
    ) -> None:
        path = dump("--format=directory")
        max(path.glob("*.dat.gz"), key=lambda file: file.stat().st_size).unlink()
        assert "cannot be read through" in refusal(path)

    def test_row_16_an_archive_of_a_newer_pg_dump(self, dump: Callable[..., Path], refusal: Callable[..., str]) -> None:
        path = dump("--format=custom")
        content = bytearray(path.read_bytes())
        content[6] = 99
        path.write_bytes(content)
        assert "made by a newer pg_dump" in refusal(path)

    def test_row_17_from_a_newer_server(self, dump: Callable[..., Path], refusal: Callable[..., str]) -> None:
        path = dump()
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("-- Dumped from database version 16.", "-- Dumped from database version 77."))
        assert "is from a server of version 77." in refusal(path, plain_sql="execute")

    def test_names(self, broken: AppDatabase, dump: Callable[..., Path]) -> None:
        path = dump("--format=custom")
        for name in (broken.name, "postgres", "x" * 64):
            assert "cannot be the name of a new database" in restore(broken, path, name)["msg"]
        assert "does not begin at the root" in restore(broken, Path("backup"), "x")["msg"]


class TestFailing:
    """While it is restored: the new database is dropped, and the application's own is as it was."""

    @pytest.fixture
    def ending(self, dump: Callable[..., Path]) -> Callable[[str], Path]:
        """Make a plain dump that ends with a statement of the test's own."""

        def make(statement: str) -> Path:
            path = dump()
            head, end, tail = path.read_bytes().rpartition(b"--\n-- PostgreSQL database dump complete")
            path.write_bytes(head + statement.encode() + b"\n\n" + end + tail)
            return path

        return make

    def test_an_error_in_the_file(
        self, broken: AppDatabase, ending: Callable[[str], Path], into: str, witness: Witness
    ) -> None:
        path = ending("SELECT 1/0;")
        before, there = witness.look(), databases(broken.server)
        result = restore(broken, path, into, plain_sql="execute")
        assert "division by zero" in result["msg"]
        assert f"The new database {into} was dropped" in result["msg"]
        assert databases(broken.server) == there
        after = witness.look()
        assert (after.catalog, after.content) == (before.catalog, before.content)

    def test_row_20_a_role_that_is_not_there(
        self, broken: AppDatabase, ending: Callable[[str], Path], into: str
    ) -> None:
        path = ending("ALTER TABLE public.songs OWNER TO nobody_here;")
        result = restore(broken, path, into, plain_sql="execute")
        assert 'role "nobody_here" does not exist' in result["msg"]
        assert into not in databases(broken.server)

    @pytest.mark.parametrize(
        ("statement", "said"),
        [
            ("DELETE FROM public.awkward;", "public.awkward has 0 rows, the file has 20"),
            ("UPDATE public.alembic_version SET version_num = 'x';", "the version rows are ['x'], the file has"),
            ("DROP TABLE public.nothing;", "public.nothing is not there"),
        ],
    )
    def test_not_what_the_file_says(
        self, broken: AppDatabase, ending: Callable[[str], Path], into: str, statement: str, said: str
    ) -> None:
        result = restore(broken, ending(statement), into, plain_sql="execute")
        assert said in result["msg"]
        assert into not in databases(broken.server)

    def test_one_that_cannot_be_dropped(
        self, broken: AppDatabase, ending: Callable[[str], Path], into: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        act = postgres.Database.act

        def refuse(self: postgres.Database, statements: Sequence[str], **more: Any) -> None:
            if statements[0].startswith("drop"):
                raise DatabaseError("PostgreSQL refused a question: no.")
            act(self, statements, **more)

        monkeypatch.setattr(postgres.Database, "act", refuse)
        result = restore(broken, ending("SELECT 1/0;"), into, plain_sql="execute")
        assert "division by zero" in result["msg"]
        assert f"Drop database {into} by hand" in result["msg"]

    def test_s21_data_are_not_in_the_message(
        self, broken: AppDatabase, ending: Callable[[str], Path], into: str
    ) -> None:
        """S21: PostgreSQL shows the row that it refuses; here nobody does."""
        path = ending("INSERT INTO public.alembic_version VALUES ('s3cret'), ('s3cret');")
        result = restore(broken, path, into, plain_sql="execute")
        assert "duplicate key value" in result["msg"]
        assert "s3cret" not in result["msg"]


def test_an_awkward_name_and_no_rights(broken: AppDatabase, dump: Callable[..., Path]) -> None:
    path = dump("--format=custom")
    try:
        assert restore(broken, path, AWKWARD_NAME)["changed"] is True
        assert AWKWARD_NAME in databases(broken.server)
    finally:
        broken.server.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(AWKWARD_NAME)))
    options = {"database": database_options(broken), "path": str(path), "into": "no_rights"}
    broken.server.execute(sql.SQL("alter role aiuser nocreatedb"))
    try:
        refused = run_module("pg_restore_foreign", options)
    finally:
        broken.server.execute(sql.SQL("alter role aiuser createdb"))
    assert "permission denied to create database" in refused["msg"]


def test_grants_on_request(broken: AppDatabase, dump: Callable[..., Path], into: str, witness: Witness) -> None:
    witness.execute("grant select on songs to pg_monitor")
    path = dump("--format=custom")
    granted = "select has_table_privilege('pg_monitor', 'songs', 'select')"
    restore(broken, path, into)
    assert Witness(broken.server.conninfo(into)).value(granted) is False
    broken.server.drop_database(into)
    restore(broken, path, into, privileges=True)
    assert Witness(broken.server.conninfo(into)).value(granted) is True


def test_a_file_that_was_compressed_twice(broken: AppDatabase, dump: Callable[..., Path], into: str) -> None:
    path = dump("--compress=6")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "compressed twice" in restore(broken, path, into, plain_sql="execute")["msg"]
