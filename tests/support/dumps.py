"""Dumps of a replica's database with awkward things in it, made by pg_dump itself."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from replica.databases import AppDatabase
from tests.support.evidence import Witness
from tests.support.stacks import witness_of

AWKWARD = [
    'create table awkward ("a ""b"" (c)" int, "x;y" text default \'a;b\'\'c\\d\')',
    (
        "insert into awkward select i, E'a\\\\.\\n\\\\.\\r\\n-- PostgreSQL database dump complete\\n\\t\\\\! ls; '' \"'"
        " from generate_series(1, 20) i"
    ),
    (
        "create function awkward_function() returns text language plpgsql as "
        "$f$ begin return 'COPY x FROM stdin;' || E'\\n\\\\! ls'; end $f$"
    ),
    (
        "create function atomic(n int) returns void language sql begin atomic insert into awkward values (n, 'x'); "
        "select case when n > 1 then 2 else 3 end; end"
    ),
    "comment on table awkward is E'\\\\! ls\n\\\\connect x\nWARNING: none'",
    "create view awkward_view as select 'a\\' as a, E'\\'\\\\' as b from awkward",
    "create table nothing ()",
    "insert into nothing default values",
    "create table parts (id int, t text) partition by range (id)",
    "create table part_a partition of parts for values from (1) to (10)",
    "create table part_b partition of parts for values from (10) to (20)",
    "insert into parts select i, 'p' from generate_series(1, 15) i",
]


def dumper(database: AppDatabase, directory: Path) -> Callable[..., Path]:
    """Put awkward things into a database, as its owner, and return what dumps it into a directory."""
    owned = [f"set role {database.user}", *AWKWARD]
    witness_of(database).execute("; ".join(owned))

    def make(*options: str, name: str = "backup") -> Path:
        path = directory / name
        argv = [database.server.bin_dir / "pg_dump", "--file", path, *options, database.server.conninfo(database.name)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return path

    return make


def counts(witness: Witness, *, leaves: bool = True) -> dict[str, int]:
    """The rows of each table that a dump has, by our own reading."""
    names = witness.query(
        "select relname from pg_class where relnamespace = 'public'::regnamespace "
        + ("and relkind = 'r'" if leaves else "and relkind in ('r', 'p') and not relispartition")
    )
    return {f"public.{name}": int(witness.value(f'select count(*) from "{name}"')) for (name,) in names}
