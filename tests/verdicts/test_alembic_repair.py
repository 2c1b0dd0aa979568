"""alembic_repair: a copy put right so that its revisions run as a whole, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica.databases import AppDatabase
from tests.support.copied import Copied
from tests.support.evidence import mode
from tests.support.modules import run_module
from tests.support.small_app import Revision
from tests.support.stacks import options, witness_of
from tests.verdicts.conftest import MakeApp

SONGS = Revision(
    "songs", "op.create_table('songs', sa.Column('id', sa.Integer, primary_key=True), sa.Column('n', sa.Text))"
)
SKETCHES = Revision(
    "sketches",
    """
    op.create_table('sketches', sa.Column('id', sa.Integer, primary_key=True), sa.Column('title', sa.Text))
    op.create_index('ix_title', 'sketches', ['title'])
    op.add_column('songs', sa.Column('sketch_id', sa.Integer))
    op.create_foreign_key('fk_sketch', 'songs', 'sketches', ['sketch_id'], ['id'])
    """,
)
# A unique index is made in an autocommit block, after something else; duplicates let it fail.
CONCURRENTLY = Revision(
    "concurrently",
    """
    op.create_table('drafts', sa.Column('id', sa.Integer, primary_key=True))
    op.add_column('songs', sa.Column('mood', sa.Text, server_default='calm'))
    with op.get_context().autocommit_block():
        op.create_index('ix_n', 'songs', ['n'], unique=True, postgresql_concurrently=True)
    op.add_column('drafts', sa.Column('body', sa.Text))
    """,
)
# Fails after the block, on what it finds in the data.
AFTERWARDS = Revision(
    "afterwards",
    """
    op.create_table('drafts', sa.Column('id', sa.Integer, primary_key=True))
    with op.get_context().autocommit_block():
        op.create_index('ix_n', 'songs', ['n'], postgresql_concurrently=True)
    op.create_unique_constraint('uq_n', 'songs', ['n'])
    """,
)


@pytest.fixture
def copy() -> Iterator[Callable[[AppDatabase], Copied]]:
    """Make a copy of a database; it goes with the test."""
    made: list[Copied] = []

    def make(database: AppDatabase) -> Copied:
        made.append(Copied(database))
        return made[-1]

    yield make
    for one in made:
        one.remove()


def prepared(make_app: MakeApp, chain: list[Revision], *rows: str) -> AppDatabase:
    """A database at the first revision, with rows of songs, and the whole chain beside it."""
    assert make_app(chain[:1]).alembic("upgrade", "head").returncode == 0
    database = make_app(chain)
    witness_of(database).execute(*(f"insert into songs (n) values ('{row}')" for row in rows))
    return database


def look(database: AppDatabase, **words: str) -> dict[str, Any]:
    """What would be done on a copy; nothing is written."""
    before = witness_of(database).look()
    seen = run_module("alembic_repair", options(database, **words), check=True)
    assert "failed" not in seen, seen
    assert witness_of(database).look() == before
    return seen


def repaired(copied: Copied, plan: dict[str, Any], directory: Path, **words: str) -> dict[str, Any]:
    """Check mode, the real thing, and again; then the revisions. Everything but the copy stays as it is."""
    before, at_first = witness_of(copied.database).look(), copied.witness.look()
    given = {"in_use": plan["database"], "confirmed": plan["statements"], **words}
    journal = directory / "private" / "repair.jsonl"
    checked = run_module("alembic_repair", copied.options(**given), check=True)
    assert (checked["changed"], checked["statements"]) == (True, plan["statements"])
    assert copied.witness.look() == at_first
    assert not journal.exists()

    done = run_module("alembic_repair", copied.options(**given, journal=str(journal)))
    assert "failed" not in done, done
    assert (done["changed"], done["statements"]) == (True, plan["statements"])
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [event["event"] for event in events] == ["repairing", "proved"]
    assert events[0]["statements"] == plan["statements"]
    assert mode(journal) == 0o600

    again = run_module("alembic_repair", copied.options(in_use=plan["database"], **words))
    assert (again["changed"], again["statements"], again["verdict"]) == (False, [], "BEHIND")
    after = witness_of(copied.database).look()
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
    return done


def test_trap_04_what_an_autocommit_block_has_left_is_removed_and_made_anew(
    make_app: MakeApp, copy: Callable[[AppDatabase], Copied], tmp_path: Path
) -> None:
    database = prepared(make_app, [SONGS, AFTERWARDS], "x", "x")
    assert "could not create unique index" in database.alembic("upgrade", "head").stderr
    witness_of(database).execute("update songs set n = id::text")
    assert "already exists" in database.alembic("upgrade", "head").stderr

    plan = look(database, partial="resume")
    assert (plan["possible"], plan["verdict"]) == (True, "PARTIAL")
    assert plan["statements"] == ['DROP INDEX "public"."ix_n"', 'DROP TABLE "public"."drafts"']
    assert plan["words"] == ["remove index ix_n on songs", "remove table drafts (no rows)"]
    copied = copy(database)
    assert copied.migrate(repaired(copied, plan, tmp_path, partial="resume")) == []
    assert copied.witness.versions() == ["afterwards"]
    assert copied.witness.query("select n from songs order by id") == [("1",), ("2",)]


def test_trap_05_an_invalid_index_is_built_anew_by_its_revision(
    make_app: MakeApp, copy: Callable[[AppDatabase], Copied]
) -> None:
    database = prepared(make_app, [SONGS, CONCURRENTLY], "x", "x")
    assert "could not create unique index" in database.alembic("upgrade", "head").stderr
    witness_of(database).execute("update songs set n = id::text")

    plan = look(database, partial="resume")
    assert plan["words"] == [
        "remove index ix_n on songs (INVALID)",
        "remove column songs.mood (no values)",
        "remove table drafts (no rows)",
    ]
    copied = copy(database)
    assert copied.migrate(copied.repair(partial="resume")) == []
    valid = "select indisvalid, indisunique from pg_index where indexrelid = 'ix_n'::regclass"
    assert copied.witness.query(valid) == [(True, True)]
    assert copied.witness.has("drafts.body")
    assert copied.witness.query("select mood from songs") == [("calm",), ("calm",)]


def test_trap_06_the_version_of_a_copy_is_set_back_and_the_revisions_are_applied(
    make_app: MakeApp, copy: Callable[[AppDatabase], Copied], tmp_path: Path
) -> None:
    empty = Revision("empty", "pass")
    last = Revision("last", "op.create_table('later', sa.Column('id', sa.Integer))")
    database = prepared(make_app, [SONGS, SKETCHES, empty, last], "x")
    assert database.alembic("stamp", "head").returncode == 0

    plan = look(database, stamped="repair")
    assert (plan["possible"], plan["verdict"]) == (True, "STAMPED_NOT_APPLIED")
    assert plan["statements"] == [
        """UPDATE "public"."alembic_version" SET version_num = 'songs' WHERE version_num = 'last'"""
    ]
    assert plan["revisions"] == ["sketches", "empty", "last"]
    assert "table sketches" in plan["words"][0]
    copied = copy(database)
    assert copied.migrate(repaired(copied, plan, tmp_path, stamped="repair")) == []
    assert copied.witness.versions() == ["last"]
    assert copied.witness.has("songs.sketch_id")
    assert copied.witness.query("select n from songs") == [("x",)]
    assert witness_of(database).versions() == ["last"]


def refused(database: AppDatabase, copied: Copied, **words: str) -> str:
    """Check mode says why not, the real thing fails with the same, and nothing is written. Return the message."""
    plan = look(database, **words)
    assert (plan["possible"], plan["changed"], plan["statements"]) == (False, False, [])
    before = copied.witness.look()
    done = run_module("alembic_repair", copied.options(**words, in_use=plan["database"]))
    assert done["failed"] is True
    assert all(reason in done["msg"] for reason in plan["reasons"])
    assert "Nothing was changed. Next: ansible-playbook playbooks/status.yml -l prod" in done["msg"]
    assert copied.witness.look() == before
    message: str = done["msg"]
    return message


TABLE = "create table sketches (id serial primary key, title text)"


@pytest.mark.parametrize(
    ("chain", "how", "words", "expected"),
    [
        ([SKETCHES], [TABLE, "insert into sketches (title) values ('secret')"], {"partial": "resume"}, "it has rows."),
        (
            [Revision("r" * 40, "op.add_column('songs', sa.Column('m', sa.Text))")],
            ["alter table songs add column m text"],
            {"partial": "resume"},
            "has 40 characters, the version column holds 32",
        ),
        (
            [SKETCHES],
            [TABLE, "update alembic_version set version_num = 'sketches'"],
            {"stamped": "repair"},
            "Revision sketches is there in part: there: table sketches; not there, or INVALID: index ix_title",
        ),
    ],
    ids=["a table with rows", "trap 12: the cause is still there", "stamped, and there in part"],
)
def test_what_cannot_be_proved_is_refused_by_name(
    make_app: MakeApp,
    copy: Callable[[AppDatabase], Copied],
    chain: list[Revision],
    how: list[str],
    words: dict[str, str],
    expected: str,
) -> None:
    """All other reasons: tests/unit/test_repair.py."""
    database = prepared(make_app, [SONGS, *chain], "secret")
    with psycopg.connect(database.conninfo, autocommit=True) as application:
        for statement in how:
            application.execute(statement.encode())
    message = refused(database, copy(database), **words)
    assert expected in message
    assert "secret" not in message


def test_only_a_copy_is_repaired(make_app: MakeApp, copy: Callable[[AppDatabase], Copied]) -> None:
    database = prepared(make_app, [SONGS, SKETCHES])
    witness_of(database).execute("alter table songs add column sketch_id integer")
    plan = look(database, partial="resume")
    before = witness_of(database).look()
    itself = run_module("alembic_repair", options(database, partial="resume", in_use=plan["database"]))
    assert "is the database that is in use: only a copy of it is repaired" in itself["msg"]
    unnamed = run_module("alembic_repair", options(database, partial="resume"))
    assert "A repair needs to know which database is in use (in_use)" in unnamed["msg"]
    assert witness_of(database).look() == before

    copied = copy(database)
    copied.witness.execute(f"set role {database.user}; {TABLE}")
    given = {"partial": "resume", "in_use": plan["database"], "confirmed": plan["statements"]}
    changed = run_module("alembic_repair", copied.options(**given))
    assert "What would be done is no longer what was confirmed." in changed["msg"]
    assert copied.witness.has("songs.sketch_id")


def test_what_somebody_depends_on_is_not_removed(make_app: MakeApp, copy: Callable[[AppDatabase], Copied]) -> None:
    """No CASCADE: PostgreSQL refuses, and nothing of the plan has happened."""
    database = prepared(make_app, [SONGS, SKETCHES])
    witness_of(database).execute(
        f"set role {database.user}; alter table songs add column sketch_id integer; {TABLE}; "
        "create view shown as select title from sketches"
    )
    copied = copy(database)
    before = copied.witness.look()
    done = run_module("alembic_repair", copied.options(partial="resume", in_use=copied.in_use))
    assert "other objects depend on it" in done["msg"]
    after = copied.witness.look()
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
