"""Whether what is there too early holds anything that somebody could miss, asked of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible.module_utils.alembic_recovery import postgres, repair_evidence
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.repair import Object

from replica.databases import AppDatabase, DatabaseFactory
from tests.support.stacks import witness_of

PREPARED = (
    "create table songs (id integer primary key, empty text, calm text default 'calm', price numeric(9,2) default 0)",
    "alter table songs add made timestamptz default now(), add given text, add doc json",
    "alter table songs add doubled integer generated always as (id * 2) stored",
    "insert into songs (id) values (1), (2)",
    "alter table songs add opted boolean default true, add later boolean",
    "alter table songs alter later set default true",
    "update songs set opted = null where id = 2",
    "update songs set given = 'x' where id = 2",
    "create table nothing_in_it (id serial primary key)",
    "create table counted (a integer, b integer, c integer)",
    "create statistics of_both on a, b from counted",
    "grant select (c) on counted to public",
    "create table hidden (id integer)",
    "insert into hidden values (1)",
    "create view shown as select 1 as id",
    "create table parts (id integer) partition by range (id)",
    "create table parent (id integer)",
    "create table child () inherits (parent)",
)
WHY = [
    ("table nothing_in_it", None),
    ("table songs", "it has rows"),
    ("table counted", "it has extended statistics"),
    ("column counted.a", "it has extended statistics"),
    ("column counted.c", "it has privileges of its own"),
    ("table shown", "shown is no ordinary table"),
    ("table parts", "parts is no ordinary table"),
    ("table child", "child is a part of another table, or has parts"),
    ("column songs.empty", None),
    ("column songs.calm", None),
    ("column songs.price", None),
    ("column songs.opted", "some rows have its default, and others NULL"),
    ("column songs.later", None),
    ("column songs.made", "it has values"),
    ("column songs.doubled", None),
    ("column songs.given", "it has values"),
    ("column songs.doc", None),
    ("column songs.id", "it has values"),
    ("index songs.songs_pkey", None),
    ("constraint songs.songs_pkey", None),
]


def named(text: str) -> Object:
    kind, _, path = text.partition(" ")
    table, _, name = path.partition(".")
    return Object(kind, "public", table, name or table)


def asked_as(database: AppDatabase) -> postgres.Database:
    login = postgres.Login(database.name, database.user, str(database.server.socket_dir), None, database.password, "t")
    return postgres.PsycopgDatabase(login)


@pytest.fixture(scope="module")
def database(databases: DatabaseFactory) -> Iterator[AppDatabase]:
    """A database with something of each kind, which belongs to the application's role."""
    made = databases.empty()
    witness_of(made).execute(f"set role {made.user}; " + "; ".join(PREPARED))
    yield made
    made.drop()


def test_only_what_nobody_can_miss_may_go(database: AppDatabase) -> None:
    with asked_as(database).snapshot(search_path="pg_catalog") as snapshot:
        found = repair_evidence.kept(snapshot, [named(text) for text, _why in WHY])
    assert found == {named(text): why for text, why in WHY if why}


def test_rows_that_a_policy_hides_are_not_taken_for_none(database: AppDatabase) -> None:
    witness_of(database).execute(
        "alter table hidden enable row level security", "alter table hidden force row level security"
    )
    with (
        pytest.raises(DatabaseError, match="row-level security"),
        asked_as(database).snapshot(search_path="pg_catalog") as snapshot,
    ):
        repair_evidence.kept(snapshot, [named("table hidden")])
