"""Rows 1 to 22 of the fault matrix, as far as they apply, each with its fault injected; docs/faults.md is the table."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql

from replica.application import BROKEN, HEAD, USER
from replica.databases import AppDatabase, DatabaseFactory
from replica.postgres import EmbeddedPostgres
from tests.faults import injections
from tests.faults.conftest import MEGABYTES, Place, Site
from tests.faults.injections import Held, ModuleProcess, SshServer, Wire, described, run_apart
from tests.support.modules import run_module
from tests.support.waiting import wait_until

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that")


def complete(names: list[str]) -> list[str]:
    """Those of a directory's names that a later run would take for a backup."""
    return [name for name in names if not name.endswith(".partial")]


def start_and_find_pg_dump(place: Place, database: AppDatabase) -> tuple[ModuleProcess, psutil.Process]:
    """Start a backup, and suspend its pg_dump once it has written something."""
    arguments = place.arguments(database)
    partial = place.directory / f"{database.name}_{arguments['run_id']}.dump.partial"
    module, (pg_dump,) = injections.caught_in_the_act(
        "pg_backup", arguments, partial, lambda: injections.processes(str(partial))
    )
    return module, pg_dump


# 1, 2, 3


@pytest.mark.parametrize(
    "mangled",
    ["sed -i 's/$/\\r/'", "sed -i '1i WARNING:  database has a collation version mismatch'"],
    ids=["line_ends", "warning_in_front"],
)
def test_row_01_a_dump_mangled_by_a_terminal_is_no_backup(
    place: Place, broken_database: AppDatabase, tmp_path: Path, mangled: str
) -> None:
    script = f"""{{real}} "$@" || exit
for word; do case $word in --file=*) {mangled} "${{word#--file=}}" ;; esac; done"""
    programs = injections.programs_with(tmp_path / "bin", broken_database.server.bin_dir, pg_dump=script)
    arguments = place.arguments(broken_database)
    arguments["database"]["bin_dir"] = str(programs)
    result = run_module("pg_backup", arguments)
    assert result["failed"]
    assert "cannot be read through" in result["msg"]
    assert place.names() == []


def test_row_01_a_dump_that_seems_to_be_empty_is_no_backup(
    place: Place, broken_database: AppDatabase, tmp_path: Path
) -> None:
    """A terminal damages the head of a dump so that it can be decoded to its end, and nothing is in it."""
    programs = injections.programs_with(
        tmp_path / "bin", broken_database.server.bin_dir, pg_dump='exec {real} "$@" --table=users'
    )
    arguments = place.arguments(broken_database)
    arguments["database"]["bin_dir"] = str(programs)
    result = run_module("pg_backup", arguments)
    assert result["failed"]
    assert "it holds the rows of 1 tables, the database has 4" in result["msg"]
    assert place.names() == []


def test_row_02_a_warning_of_the_server_is_shown_and_is_not_in_the_dump(
    place: Place, broken_database: AppDatabase
) -> None:
    name = broken_database.name
    broken_database.server.execute(
        sql.SQL("update pg_database set datcollversion = '1.0' where datname = {}").format(sql.Literal(name))
    )
    result = run_apart("pg_backup", place.arguments(broken_database))
    assert not result.get("failed"), result
    warning = f'WARNING:  database "{name}" has no actual collation version, but a version was recorded'
    assert result["manifest"]["warnings"] == [warning]
    assert f"pg_dump said: {warning}" in [entry["event"]["msg"] for entry in result["warnings"]]
    assert Path(result["dump"]).read_bytes().startswith(b"PGDMP")
    with injections.restoring(broken_database, result["dump"]) as copy:
        assert injections.counts(copy) == result["manifest"]["row_counts"]


def test_row_03_a_pg_dump_that_fails_leaves_nothing(place: Place, broken_database: AppDatabase) -> None:
    # The owner himself may not see all rows then: counting gives 0 and no error, only pg_dump notices.
    for statement in ("enable", "force"):
        broken_database.server.execute(
            sql.SQL("alter table songs {} row level security").format(sql.SQL(statement)), broken_database.name
        )
    result = run_module("pg_backup", place.arguments(broken_database))
    assert result["failed"]
    assert "pg_dump ended with exit code 1" in result["msg"]
    assert 'row-level security policy for table "songs"' in result["msg"]
    assert place.names() == []


# 4, 5: no room


def test_row_04_no_room_is_seen_before_the_dump(
    place: Place, broken_database: AppDatabase, disk: Callable[[int], Path]
) -> None:
    place.directory = disk(40) / "backups"
    result = run_module("pg_backup", place.arguments(broken_database))
    assert result["failed"]
    assert result["msg"].startswith(f"No room for a backup in {place.directory}: 40.0 MiB are free, 7")
    assert not place.directory.exists()


def test_row_04_disk_full_while_dumping(place: Place, bulky: AppDatabase, disk: Callable[[int], Path]) -> None:
    size = bulky.value("select pg_database_size(current_database())")
    small = disk((size * 11 // 10 + (64 << 20)) // 2**20 + MEGABYTES + 8)
    place.directory = small / "backups"
    earlier = run_module("pg_backup", place.arguments(bulky))
    assert not earlier.get("failed"), earlier
    before = injections.listing(place.directory)

    module, pg_dump = start_and_find_pg_dump(place, bulky)
    hog = injections.fill(small)
    pg_dump.resume()
    result = module.result()

    assert result["failed"]
    assert "No space left on device" in result["msg"]
    assert injections.listing(place.directory) == before
    hog.unlink()
    assert json.loads(Path(earlier["manifest_file"]).read_text())["file"]["sha256"] == sha256(earlier["dump"])
    assert bulky.value("select count(*) from songs") > 0
    assert not run_module("pg_backup", place.arguments(bulky)).get("failed")


def fetch(files: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """A play that copies files to the controller."""
    return [{"name": "Copy", "backup_fetch": {"files": files, "directory": str(directory)}}]


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_of(path: Path, megabytes: int) -> dict[str, Any]:
    """Make a file that does not compress, and describe it as `backup_fetch` takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(megabytes << 20))
    return {"path": str(path), "sha256": sha256(path), "size_bytes": megabytes << 20}


def test_row_05_controller_disk_full_while_copying(
    site: Site, ssh_server: SshServer, disk: Callable[[int], Path], tmp_path: Path
) -> None:
    small = disk(100)
    final = small / "backups"
    entry = file_of(tmp_path / "dumps" / "a.dump", 20)
    with Wire(ssh_server.port, after=4 << 20, times=1, deed=lambda: injections.fill(small)) as wire:
        run = site.play(fetch([entry], final), ssh_server.variables(wire.port))
    assert wire.cuts == 1
    assert run.code == 2, run.text
    assert "could not be copied to" in run.text
    assert "No space left on device" in run.text
    assert list(final.iterdir()) == []
    assert sha256(entry["path"]) == entry["sha256"]


# 6, 7: somebody dies


def test_row_06_dump_process_killed(place: Place, bulky: AppDatabase) -> None:
    module, pg_dump = start_and_find_pg_dump(place, bulky)
    pg_dump.kill()
    result = module.result()
    assert result["failed"]
    assert "pg_dump ended with exit code -9: killed" in result["msg"]
    assert place.names() == []
    wait_until(lambda: not injections.sessions(bulky), "the sessions to end")


def test_row_07_module_killed_leaves_no_pg_dump_and_nothing_that_passes_for_a_backup(
    place: Place, bulky: AppDatabase
) -> None:
    module, pg_dump = start_and_find_pg_dump(place, bulky)
    module.kill()
    wait_until(lambda: not pg_dump.is_running(), "pg_dump to end with the module")
    wait_until(lambda: not injections.sessions(bulky), "the sessions to end")
    left = place.names()
    assert len(left) == 1
    assert complete(left) == []

    # The next run neither takes it nor stumbles over it, and neither does the removal of old ones.
    arguments = place.arguments(bulky)
    result = run_module("pg_backup", arguments)
    assert result["changed"]
    pruned = run_module("pg_backup_prune", {"directory": str(place.directory), "database_name": bulky.name})
    assert pruned["kept"] == [result["manifest_file"]]
    assert left[0] in place.names()
    assert complete(place.names()) == sorted(Path(entry["path"]).name for entry in result["files"])


# 8, 9, 10: the file is not what it was


@pytest.mark.parametrize("kept", ["$((size / 2))", "$((size - 1))", "0"], ids=["half", "all_but_one_byte", "nothing"])
def test_row_08_truncated_dump_is_no_backup(
    place: Place, broken_database: AppDatabase, tmp_path: Path, kept: str
) -> None:
    script = f"""{{real}} "$@" || exit
for word; do case $word in --file=*) file="${{word#--file=}}" ;; esac; done
size=$(stat -c %s "$file") && truncate -s {kept} "$file" """
    arguments = place.arguments(broken_database)
    arguments["database"]["bin_dir"] = str(
        injections.programs_with(tmp_path / "bin", broken_database.server.bin_dir, pg_dump=script)
    )
    result = run_module("pg_backup", arguments)
    assert result["failed"]
    assert "cannot be read through" in result["msg"]
    assert place.names() == []


def truncate(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(truncate, "bytes arrived", id="row_08_truncated"),
        pytest.param(injections.flip_a_bit, "its SHA-256 is not that of the file on the target", id="row_09_bit_flip"),
    ],
)
def test_rows_08_09_a_file_damaged_on_the_target_does_not_reach_its_name_on_the_controller(
    site: Site, place: Place, damage: Callable[[Path], None], said: str
) -> None:
    made = run_module("pg_backup", place.arguments(site.database))
    damage(Path(made["dump"]))
    run = site.play(fetch(made["files"], site.controller))
    assert run.code == 2
    assert said in run.text
    assert list(site.controller.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(truncate, "the manifest says", id="row_08_truncated"),
        pytest.param(injections.flip_a_bit, "is not what was written", id="row_09_bit_flip"),
    ],
)
def test_rows_08_09_a_damaged_backup_is_noticed_before_it_is_used_again(
    site: Site, place: Place, damage: Callable[[Path], None], said: str
) -> None:
    arguments = place.arguments(site.database)
    made = run_module("pg_backup", arguments)
    assert run_module("pg_backup", arguments)["changed"] is False
    tasks = fetch(made["files"], site.controller)
    assert site.play(tasks).code == 0
    copy = site.controller / Path(made["dump"]).name

    damage(Path(made["dump"]))
    again = run_module("pg_backup", arguments)
    assert again["failed"]
    assert said in again["msg"]

    damage(copy)
    run = site.play(tasks)
    assert run.code == 2
    assert "is another file; nothing is overwritten" in run.text


def test_row_10_a_dump_is_one_file(place: Place, broken_database: AppDatabase) -> None:
    """The fault is a file missing from a directory-format dump; there is no such dump."""
    result = run_module("pg_backup", place.arguments(broken_database))
    assert result["manifest"]["file"]["format"] == "custom"
    assert Path(result["dump"]).is_file()


# 11: the database itself


@pytest.fixture
def damaged(databases: DatabaseFactory) -> Iterator[AppDatabase]:
    """A database in which the first page of the songs is not one."""
    database = databases.create()
    server = database.server
    server.execute(sql.SQL("checkpoint"))
    path = server.data / database.value("select pg_relation_filepath('songs')")
    server.stop()
    with path.open("r+b") as file:
        file.write(b"\xff" * 24)
    server.start()
    yield database
    database.drop()


def test_row_11_corrupt_heap_page_stops_the_run_before_a_change(damaged: AppDatabase, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", damaged)
    run = site.recover()
    assert run.code == 2, run.text
    said = " ".join(run.text.split())
    assert "invalid page in block 0" in said
    assert "public.songs" in said
    assert "pg_amcheck" in said
    assert "Nothing was migrated: the database is as it was. No service was stopped." in said
    assert damaged.value("select version_num from alembic_version") == BROKEN
    assert damaged.server.execute(sql.SQL("show zero_damaged_pages"), damaged.name) == [("off",)]
    assert not site.backups[0].exists() or list(site.backups[0].iterdir()) == []
    assert not site.backups[1].exists()


# 13, 14: others are at work


def test_row_13_writes_during_the_dump(place: Place, broken_database: AppDatabase, tmp_path: Path) -> None:
    """Dump and manifest are of one moment, whatever happens between the description and the end of the dump."""
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with psycopg.connect(broken_database.conninfo, autocommit=True) as connection:
            while not stop.is_set():
                written += 1
                connection.execute(
                    "insert into users (email, display_name, created_at) values (%s, 'x', now())", [f"{written}@x"]
                )
                connection.execute("delete from lyric_parsing_rules where id = %s", [written])
                connection.execute("update alembic_version set version_num = %s", [f"rev{written}"])

    script = 'sleep 0.7; exec {real} "$@"'
    arguments = place.arguments(broken_database)
    arguments["database"]["bin_dir"] = str(
        injections.programs_with(tmp_path / "bin", broken_database.server.bin_dir, pg_dump=script)
    )
    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: written > 5, "the first writes")
        result = run_module("pg_backup", arguments)
    finally:
        stop.set()
        writer.join()
    assert not result.get("failed"), result
    manifest = result["manifest"]
    with injections.restoring(broken_database, result["dump"]) as copy:
        assert injections.counts(copy) == manifest["row_counts"]
        assert [copy.value("select version_num from alembic_version")] == manifest["revisions"]
        assert run_module("pg_catalog", {"database": described(copy)})["fingerprint"] == manifest["fingerprint"]
    assert broken_database.value("select count(*) from users") > manifest["row_counts"]["public.users"]
    assert manifest["revisions"] != [broken_database.value("select version_num from alembic_version")]


@pytest.mark.parametrize(
    "statement",
    [
        "alter table songs alter column duration_seconds type double precision",
        "truncate songs cascade",
        "alter table songs drop column style",
        "alter table songs add column remark text default 'none'",
    ],
    ids=lambda statement: " ".join(statement.split()[:5]).replace(" ", "_"),
)
def test_row_14_ddl_in_flight_is_in_the_backup_as_a_whole_or_not_at_all(
    place: Place, broken_database: AppDatabase, statement: str
) -> None:
    """A table that is rewritten or truncated looks empty to an older snapshot: such a dump would be whole, and lie."""
    with Held(broken_database.conninfo, statement=statement) as deployer:
        module = ModuleProcess("pg_backup", place.arguments(broken_database))
        wait_until(lambda: injections.sessions(broken_database, waiting=True), "the backup to wait")
        time.sleep(0.3)
        deployer.commit()
        result = module.result()
    assert not result.get("failed"), result
    assert result["manifest"]["row_counts"] == injections.counts(broken_database)
    with injections.restoring(broken_database, result["dump"]) as copy:
        assert injections.counts(copy) == result["manifest"]["row_counts"]
        found = run_module("pg_catalog", {"database": described(copy)})
        assert found["fingerprint"] == result["manifest"]["fingerprint"]


@pytest.mark.parametrize("through", ["psycopg", "psql"])
def test_row_14_a_lock_that_does_not_go_away_ends_the_backup_and_names_who_holds_it(
    place: Place, broken_database: AppDatabase, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    if through == "psql":
        monkeypatch.setitem(sys.modules, "psycopg", None)
    with Held(broken_database.conninfo + " application_name=deployer"):
        result = run_module("pg_backup", place.arguments(broken_database, lock_timeout=1))
    assert result["failed"]
    assert "lock timeout" in result["msg"]
    assert "deployer" in result["msg"]
    assert "public.songs" in result["msg"]
    assert place.names() == []


# 15, 18: programs that do not fit


def test_row_15_pg_dump_older_than_the_server(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("newer"), version=18, durable=False)
    try:
        server.create()
        server.start()
        server.create_role(USER, "secret")
        server.create_database("newer", USER)
        database = AppDatabase(server, place.directory, "newer", USER, "secret")
        arguments = place.arguments(database)
        older = EmbeddedPostgres(place.directory, version=16).bin_dir
        result = run_module("pg_backup", {**arguments, "database": {**arguments["database"], "bin_dir": str(older)}})
        assert result["failed"]
        assert "server version mismatch" in result["msg"]
        assert "bin_dir" in result["msg"]
        assert place.names() == []
        assert run_module("pg_backup", arguments)["changed"]
    finally:
        server.remove()


def test_row_18_a_dump_is_nothing_that_psql_could_read(place: Place, broken_database: AppDatabase) -> None:
    result = run_module("pg_backup", place.arguments(broken_database))
    assert Path(result["dump"]).read_bytes()[:5] == b"PGDMP"
    # Roles are the only SQL text beside it; there is no meta-command in it, and nobody replays it.
    roles = next(entry["path"] for entry in result["files"] if entry["path"].endswith(".globals.sql"))
    assert f"CREATE ROLE {USER}" in Path(roles).read_text()


# 21, 22: the way to the controller


def test_row_21_copying_a_large_file_takes_little_memory(site: Site, ssh_server: SshServer, tmp_path: Path) -> None:
    size = 300
    path = tmp_path / "dumps" / "large.dump"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(size << 20)
    entry = {"path": str(path), "sha256": sha256(path), "size_bytes": size << 20}

    def playbook() -> psutil.Process | None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):  # It has ended since, or waits to be reaped.
                if "ansible-playbook" in str(child.cmdline()):
                    return child
        return None

    def sshd() -> psutil.Process:
        return psutil.Process(ssh_server._process.pid)

    with injections.memory_of([playbook, sshd]) as memory:
        run = site.play(fetch([entry], site.controller), ssh_server.variables())
    assert run.code == 0, run.text
    assert sha256(site.controller / "large.dump") == entry["sha256"]
    # Ansible by itself has about 70 MiB in each of its two processes, whatever is copied.
    assert memory.one < 120
    assert memory.all < size


def test_row_21_backing_up_takes_little_memory(place: Place, bulky: AppDatabase, broken_database: AppDatabase) -> None:
    result = run_apart("pg_backup", place.arguments(bulky))
    assert result["manifest"]["database"]["size_bytes"] > 30 << 20
    # Ansible's code and Python's take some 60 MiB in this process; a dump of 18 MB held in memory would show.
    small = run_apart("pg_backup", place.arguments(broken_database))
    assert result["peak_kib"] - small["peak_kib"] < 8 * 1024


def test_row_22_connection_cut_in_the_middle_of_the_copy(site: Site, ssh_server: SshServer, bulky: AppDatabase) -> None:
    site.database = bulky
    with Wire(ssh_server.port, after=1 << 20) as wire:
        run = site.recover(inventory=site.inventory(ssh_server.variables(wire.port)))
        cuts = wire.cuts
    assert run.code == 2, run.text
    said = " ".join(run.text.split())
    assert cuts == 3
    assert "could not be copied to" in said
    assert "in 3 attempts" in said
    assert "Nothing was migrated: the database is as it was. No service was stopped." in said
    target, controller = site.backups
    assert list(controller.iterdir()) == []
    assert len(list(target.iterdir())) == 3
    # The run has ended, and given its lock back; it has not come to a migration, not even to a rehearsal.
    (written,) = (site.target / "site" / "runs").iterdir()
    assert json.loads((written / "record.json").read_text())["stage"] == "failed"
    assert not list(written.glob("*journal*")) + list(written.glob("*rehearsal*"))
    assert not injections.sessions(bulky)
    assert bulky.value("select version_num from alembic_version") == BROKEN
    assert HEAD not in said.partition("could not be copied to")[2]


def test_row_22_a_copy_that_was_cut_once_is_made_again(site: Site, ssh_server: SshServer, tmp_path: Path) -> None:
    entry = file_of(tmp_path / "dumps" / "a.dump", 8)
    with Wire(ssh_server.port, after=4 << 20, times=1) as wire:
        run = site.play(fetch([entry], site.controller), ssh_server.variables(wire.port))
    assert wire.cuts == 1
    assert run.code == 0, run.text
    assert "attempt 1 of 3" in run.text
    assert sha256(site.controller / "a.dump") == entry["sha256"]
    assert [path.name for path in site.controller.iterdir()] == ["a.dump"]


# 55: keeping and removing


@dataclasses.dataclass
class Shelf:
    """Backups of one database in one directory, made by copying one that was really made."""

    directory: Path
    database: str
    template: dict[str, Any]

    def add(self, name: str, days_ago: float) -> Path:
        """Put one there that is so old, whatever it is called; return its dump."""
        manifest = {key: value for key, value in self.template.items() if key != "paths"}
        moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
        manifest["created_at"] = moment.isoformat()
        for part, suffix in (("file", "dump"), ("globals", "globals.sql")):
            file = self.directory / f"{name}.{suffix}"
            file.write_bytes(self.template["paths"][part].read_bytes())
            manifest[part] = {**manifest[part], "name": file.name}
        (self.directory / f"{name}.manifest.json").write_text(json.dumps(manifest))
        return self.directory / f"{name}.dump"

    def prune(self, keep: int = 2, keep_days: int = 7) -> set[str]:
        """Remove old ones; the names of those that went."""
        before = {path.name for path in self.directory.iterdir()}
        arguments = {"directory": str(self.directory), "database_name": self.database}
        result = run_module("pg_backup_prune", {**arguments, "keep": keep, "keep_days": keep_days})
        assert not result.get("failed"), result
        gone = before - {path.name for path in self.directory.iterdir()}
        names = {name.split(".")[0] for name in gone}
        assert gone == {f"{name}.{suffix}" for name in names for suffix in ("dump", "globals.sql", "manifest.json")}
        assert {Path(path).name.split(".")[0] for path in result["removed"]} == names
        return names


@pytest.fixture
def shelf(broken_database: AppDatabase, tmp_path: Path) -> Shelf:
    """A directory for backups, empty."""
    made = run_module("pg_backup", Place(tmp_path / "made").arguments(broken_database))
    manifest = json.loads(Path(made["manifest_file"]).read_text())
    manifest["paths"] = {part: tmp_path / "made" / manifest[part]["name"] for part in ("file", "globals")}
    (tmp_path / "shelf").mkdir(mode=0o700)
    return Shelf(tmp_path / "shelf", broken_database.name, manifest)


def test_row_55_by_the_manifest_and_not_by_name_or_time_of_the_file(shelf: Shelf) -> None:
    """What is called newest is the oldest, and the files of the newest have the oldest times."""
    for name, days in (("z-newest", 40), ("m", 30), ("a-oldest", 20), ("b", 10)):
        dump = shelf.add(name, days)
        os.utime(dump, (days * 1e6, days * 1e6))
        os.utime(dump.with_suffix(".manifest.json"), (days * 1e6, days * 1e6))
    assert shelf.prune() == {"z-newest", "m"}
    assert shelf.prune() == set()


def test_row_55_young_ones_and_those_of_another_database_stay(shelf: Shelf) -> None:
    for name, days in (("a", 1), ("b", 2), ("c", 6.9), ("d", 7.1)):
        shelf.add(name, days)
    other = Shelf(shelf.directory, "another", {**shelf.template, "database": {"name": "another"}})
    other.add("other", 100)
    assert shelf.prune(keep=1) == {"d"}


def test_row_55_the_newest_good_ones_stay_when_newer_ones_are_rotten(shelf: Shelf) -> None:
    """Rotten without a change of size or time: only the hash tells. The good one must not go because of it."""
    shelf.add("good-old", 40)
    shelf.add("good-older", 50)
    shelf.add("good-oldest", 60)
    injections.flip_a_bit(shelf.add("rotten", 10))
    truncate(shelf.add("cut", 9))
    shelf.add("gone", 8).unlink()
    assert shelf.prune(keep=2) == {"good-oldest"}
    assert shelf.prune(keep=1) == {"good-older"}
    assert shelf.prune(keep=0) == set(), "one good backup always stays"


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1, "file": {}}',
        '{"format": 1, "file": null, "globals": null, "created_at": "2001-01-01", "database": {"name": "NAME"}}',
        '{"format": 2, "file": {"name": "a.dump"}, "created_at": "yesterday"}',
    ],
)
def test_row_55_what_is_unfinished_or_no_manifest_is_left_alone(shelf: Shelf, manifest: str) -> None:
    for name, days in (("a", 10), ("b", 20), ("c", 30)):
        shelf.add(name, days)
    (shelf.directory / "odd.manifest.json").write_text(manifest.replace("NAME", shelf.database))
    for name in ("killed.dump.partial", "killed.manifest.json.partial", "lonely.dump", "notes.txt"):
        (shelf.directory / name).write_text("x")
    os.utime(shelf.directory / "lonely.dump", (1, 1))
    assert shelf.prune(keep=1) == {"b", "c"}


def test_row_55_a_manifest_that_points_elsewhere_removes_nothing_there(shelf: Shelf, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    shelf.add("a", 10)
    shelf.add("b", 20)
    path = shelf.directory / "b.manifest.json"
    manifest = json.loads(path.read_text())
    size = victim.stat().st_size
    manifest["file"] = {"name": "../victim", "size_bytes": size, "sha256": sha256(victim)}
    path.write_text(json.dumps(manifest))
    assert shelf.prune(keep=1) == set()
    assert victim.read_text() == "untouched"
    assert path.exists()


def test_row_55_removing_old_ones_in_check_mode_removes_nothing(shelf: Shelf) -> None:
    shelf.add("a", 10)
    shelf.add("b", 20)
    before = injections.listing(shelf.directory)
    arguments = {"directory": str(shelf.directory), "database_name": shelf.database, "keep": 1}
    result = run_module("pg_backup_prune", arguments, check=True)
    assert result["changed"]
    assert [Path(path).name for path in result["removed"]] == ["b.manifest.json"]
    assert injections.listing(shelf.directory) == before


def test_row_55_a_clock_that_is_ahead_does_not_protect_a_rotten_backup(shelf: Shelf) -> None:
    """A manifest from the future is the newest there is; it counts only if it is whole."""
    injections.flip_a_bit(shelf.add("future", -400))
    shelf.add("a", 10)
    shelf.add("b", 20)
    assert shelf.prune(keep=1) == {"b"}
