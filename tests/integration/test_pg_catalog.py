"""pg_catalog: against a reading of our own, never a write, and a fingerprint that sees what matters and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replica.application import State
from replica.databases import AppDatabase
from tests.support.modules import run_module
from tests.support.stacks import database_options, witness_of

Make = Callable[..., AppDatabase]


def read(database: AppDatabase, /, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module, and require that nothing was written."""
    before = witness_of(database).look()
    result = run_module("pg_catalog", {"database": database_options(database), **more}, check=check)
    assert result["changed"] is False
    assert witness_of(database).look() == before
    return result


def test_what_is_there(broken: AppDatabase) -> None:
    witness = witness_of(broken)
    seen = read(broken, structure=True, relations=["songs", "songs.title", "public.songs.title", "song_sketches"])
    assert seen["row_counts"] == {f"public.{name}": count for name, count in witness.look().rows.items()}
    assert seen["missing_relations"] == ["song_sketches"]
    assert (seen["invalid_indexes"], seen["lost_rows"]) == ([], [])
    assert seen["sequence_values"]["public.song_number_seq"] == witness.value("select last_value from song_number_seq")
    assert seen["properties"]["owner"] == broken.user
    structure = seen["structure"]
    columns = witness.query(
        "select table_name, column_name from information_schema.columns where table_schema = 'public' order by 1, 2"
    )
    assert [(row["relation"], row["name"]) for row in structure["columns"]] == columns
    constraints = witness.query(
        "select conname from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n' order by 1"
    )
    assert sorted(row["name"] for row in structure["constraints"]) == [name for (name,) in constraints]
    indexes = witness.query("select indexname from pg_indexes where schemaname = 'public' order by 1")
    assert sorted(row["name"] for row in structure["indexes"]) == [name for (name,) in indexes]
    assert [row["labels"] for row in structure["enums"]] == ["draft,generating,ready,failed"]
    assert [row["name"] for row in structure["triggers"]] == ["songs_touch_updated_at"]
    assert read(broken, check=True)["fingerprint"] == seen["fingerprint"]


def test_a_copy_has_the_same_fingerprint_and_a_migrated_one_another(make_database: Make) -> None:
    one, same, other = make_database(), make_database(State.REWRITTEN), make_database(State.HEALTHY)
    witness_of(same).execute(f"alter database {same.name} set search_path = pg_catalog, public")
    prints = [read(database, row_counts=False)["fingerprint"] for database in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "change",
    [
        "alter table songs alter column title drop not null",
        "alter table songs alter column title type varchar(301)",
        "alter table songs alter column status set default 'ready'",
        "alter table songs drop constraint ck_songs_ck_songs_duration_not_negative",
        "drop index ix_songs_user_id",
        "alter type song_status add value 'gone'",
        "alter table songs disable trigger songs_touch_updated_at",
        "alter sequence song_number_seq increment by 2",
        "create or replace function touch_updated_at() returns trigger language plpgsql as 'begin return new; end'",
        "grant select on songs to public",
        "alter table songs enable row level security",
        "comment on column songs.title is 'changed'",
        "alter table songs owner to postgres",
    ],
)
def test_each_change_of_structure_is_seen(broken: AppDatabase, change: str) -> None:
    before = read(broken, row_counts=False)["fingerprint"]
    witness_of(broken).execute(change)
    assert read(broken, row_counts=False)["fingerprint"] != before


def test_data_and_the_values_of_sequences_are_no_structure(broken: AppDatabase) -> None:
    before = read(broken, content=True)
    witness_of(broken).execute(
        "update songs set title = title || '!' where number = 1000",
        "select setval('song_number_seq', 99999)",
        "analyze",
    )
    after = read(broken, content=True)
    assert after["fingerprint"] == before["fingerprint"]
    assert after["sequence_values"]["public.song_number_seq"] == 99999
    changed = {
        f"{table}.{column}"
        for table, columns in after["content"].items()
        for column, text in columns.items()
        if before["content"][table][column] != text
    }
    assert changed == {"public.songs.title", "public.songs.updated_at"}


def test_content_tells_null_from_empty_and_swapped_values(broken: AppDatabase) -> None:
    content = read(broken, content=True)["content"]["public.lyric_parsing_rules"]["replacement"]
    witness_of(broken).execute("update lyric_parsing_rules set replacement = '' where replacement is null")
    assert read(broken, content=True)["content"]["public.lyric_parsing_rules"]["replacement"] != content


def test_tables_that_have_lost_rows(broken: AppDatabase) -> None:
    before = read(broken)["row_counts"]
    witness_of(broken).execute(
        "delete from songs where number < 1003", "drop table lyric_parsing_rules", "delete from alembic_version"
    )
    seen = read(broken, row_counts_before=before)
    songs = before["public.songs"]
    assert seen["lost_rows"] == [
        f"public.lyric_parsing_rules had {before['public.lyric_parsing_rules']} rows and is no more.",
        f"public.songs has {songs - 3} rows, there were {songs}.",
    ]


def test_an_invalid_index(broken: AppDatabase) -> None:
    with pytest.raises(Exception, match="could not create unique index"):
        witness_of(broken).execute("create unique index concurrently ix_half on songs (user_id)")
    assert read(broken)["invalid_indexes"] == ["public.ix_half"]


def test_names_that_have_to_be_quoted(broken: AppDatabase) -> None:
    table = '"Od\'d ""x"."ta;ble"'
    witness_of(broken).execute(
        'create schema "Od\'d ""x"',
        f'create table {table} ("co""l" text)',
        f'grant usage on schema "Od\'d ""x" to {broken.user}',
        f"grant select on {table} to {broken.user}",
        f"insert into {table} values (null), ('')",
    )
    seen = read(broken, content=True)
    assert seen["row_counts"]["Od'd \"x.ta;ble"] == 2
    assert seen["content"]["Od'd \"x.ta;ble"].keys() == {'co"l'}
