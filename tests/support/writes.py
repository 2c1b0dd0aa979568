"""What is written to a database of the replica after a moment, in many ways, and what can be seen of it."""

from __future__ import annotations

from typing import Any

import psycopg

from replica.databases import AppDatabase
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.stacks import database_options

ODD = 'tab\t line\n return\r quote" slash\\ \\n \\\\. ä 🎵 \u2028 end'


EXPECTED = {
    'public.Odd "name': (1, 1, True),
    "public.child": (1, 1, False),
    "public.no_key": (2, -1, False),
    # As many more as pg_catalog counts, with the rows of its child.
    "public.parent": (1, 2, False),
    "public.part_one": (1, 1, True),
    "public.songs": (3, 0, True),
}


def prepare(broken: AppDatabase, witness: Witness) -> dict[str, Any]:
    """Make tables of many kinds; return the options of pg_written for what is written from now on."""
    witness.execute(
        "create table no_key (note text)",
        "insert into no_key select 'n' || i from generate_series(1, 5) i",
        "create table parts (id int primary key, note text) partition by list (id)",
        "create table part_one partition of parts for values in (1, 2, 3)",
        "create table parent (id int)",
        "create table child () inherits (parent)",
        "insert into child values (1), (2)",
        'create table "Odd ""name" (id int primary key, note text)',
        "create materialized view seen as select count(*) from no_key",
        f"grant select on all tables in schema public to {broken.user}",
    )
    counts = run_module("pg_catalog", {"database": database_options(broken)})["row_counts"]
    xid = witness.value("select pg_current_xact_id()::text")
    return {"database": database_options(broken), "since_xid": xid, "row_counts_before": counts}


def write(witness: Witness) -> None:
    """Insert, update and delete in many ways."""
    witness.execute(
        "insert into no_key values ('new'), ('newer')",
        "delete from no_key where note in ('n1', 'n2', 'n3')",
        "insert into parts values (1, 'one')",
        "insert into child values (3)",
        "begin; savepoint a; insert into parent values (9); release a; commit",
        "begin; insert into parent values (10); rollback",
        "update songs set title = title where id in (select id from songs order by id limit 3)",
        "update alembic_version set version_num = version_num",
        "refresh materialized view seen",
    )
    with psycopg.connect(witness.conninfo) as connection:
        connection.execute('insert into "Odd ""name" values (1, %s)', (ODD,))


def seen_by(result: dict[str, Any]) -> dict[str, tuple[int, int | None, bool]]:
    return {row["table"]: (row["written"], row["net"], row["has_key"]) for row in result["tables"]}
