"""The incident on the database alone: what plain Alembic does, and what does not happen."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from replica import seed
from replica.application import BROKEN, ENCODED, HEAD, State
from replica.databases import AppDatabase, DatabaseFactory
from replica.expect import REPLACEMENTS, UNENCODED

CATALOG = """
select md5(string_agg(concat_ws(' ', c.relname, c.relkind, a.attname, a.attnotnull,
                                format_type(a.atttypid, a.atttypmod)), ',' order by c.relname, a.attnum))
from pg_class c left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'public'::regnamespace
"""
SONGS = "select md5(string_agg(songs::text, ',' order by id)) from songs"
RULES = "select id, replacement from lyric_parsing_rules order by id"


def version(database: AppDatabase) -> list[str]:
    """What alembic_version holds."""
    return [row[0] for row in database.rows("select version_num from alembic_version")]


def encoded(value: str | None) -> str | None:
    """What the revision's own rule makes of a replacement, written down once more."""
    if value is None:
        return None
    try:
        base64.b64decode(value).decode()
    except ValueError:
        return base64.b64encode(value.encode()).decode()
    return value


@pytest.fixture
def healthy_database(databases: DatabaseFactory) -> Iterator[AppDatabase]:
    """A database at head."""
    database = databases.create(State.HEALTHY)
    yield database
    database.drop()


def test_acceptance_2_plain_alembic_upgrade_head_exits_0_and_moves_nothing(
    broken_database: AppDatabase,
) -> None:
    """Exit 0 and both revisions announced; version and catalog as before, only the rows are rewritten."""
    before = broken_database.value(CATALOG), broken_database.value(SONGS)
    rules = dict(broken_database.rows(RULES))
    result = broken_database.alembic("upgrade", "head")
    assert result.returncode == 0
    for step in (
        f"Running upgrade {BROKEN} -> {ENCODED}, base64",
        f"Running upgrade {ENCODED} -> {HEAD}, add_song",
    ):
        assert step in result.stderr
    assert version(broken_database) == [BROKEN]
    assert (broken_database.value(CATALOG), broken_database.value(SONGS)) == before
    assert dict(broken_database.rows(RULES)) == {rule: encoded(text) for rule, text in rules.items()} != rules


@pytest.mark.parametrize("target", [ENCODED, HEAD])
def test_the_single_steps_move_nothing_either(broken_database: AppDatabase, target: str) -> None:
    """The seed's other way: one revision at a time, each with exit 0."""
    assert broken_database.alembic("upgrade", target).returncode == 0
    assert version(broken_database) == [BROKEN]
    assert broken_database.value("select to_regclass('song_sketches')") is None


def test_a_second_upgrade_does_no_harm(broken_database: AppDatabase) -> None:
    """Rows that are encoded are not encoded again."""
    broken_database.alembic("upgrade", "head")
    once = broken_database.rows(RULES)
    assert broken_database.alembic("upgrade", "head").returncode == 0
    assert broken_database.rows(RULES) == once


def test_downgrade_exits_0_and_leaves_the_version_claiming_the_opposite(
    healthy_database: AppDatabase,
) -> None:
    """The seed's rollback option 1: the rows are decoded, the version says that they are encoded."""
    result = healthy_database.alembic("downgrade", BROKEN)
    assert result.returncode == 0
    assert f"Running downgrade {ENCODED} -> {BROKEN}" in result.stderr
    assert version(healthy_database) == [ENCODED]
    assert healthy_database.value("select to_regclass('song_sketches')") is None
    assert healthy_database.value(UNENCODED) > 0


def test_downgrade_loses_what_only_looked_like_base64(databases: DatabaseFactory) -> None:
    """A replacement that was never encoded is decoded all the same: the way back is not lossless."""
    database = databases.create(State.HEALTHY)
    kept = {rule for rule, text in database.rows(RULES) if text in {'"', "...", " - "}}
    assert kept
    database.alembic("downgrade", BROKEN)
    assert {text for rule, text in database.rows(RULES) if rule in kept} == {""}
    database.drop()


def test_rewritten_variant_has_encoded_rows_and_the_old_version(databases: DatabaseFactory) -> None:
    """The second variant of the broken state is the first one after a start of the worker."""
    untouched, rewritten = databases.create(State.UNTOUCHED), databases.create(State.REWRITTEN)
    assert version(rewritten) == [BROKEN]
    assert rewritten.value(CATALOG) == untouched.value(CATALOG)
    before = dict(untouched.rows(RULES))
    assert dict(rewritten.rows(RULES)) == {rule: encoded(text) for rule, text in before.items()}
    assert (untouched.value(UNENCODED) > 0, rewritten.value(UNENCODED)) == (True, 0)


def test_healthy_database_fits_the_models(healthy_database: AppDatabase) -> None:
    """At head, with nothing that Alembic's autogenerate would add or remove."""
    assert version(healthy_database) == [HEAD]
    check = healthy_database.alembic("check")
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_revision_goes_down_to_nothing(healthy_database: AppDatabase) -> None:
    """All downgrades work; only types, sequences and functions of our own could stay, and none does."""
    for _ in range(3):  # each run loses the version of the revision that commits; stamp says where we are
        assert healthy_database.alembic("downgrade", ENCODED).returncode == 0
    assert healthy_database.alembic("stamp", BROKEN).returncode == 0
    assert healthy_database.alembic("downgrade", "base").returncode == 0
    left = "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'S')"
    assert healthy_database.rows(left) == [("alembic_version",)]
    assert healthy_database.rows("select proname from pg_proc where pronamespace = 'public'::regnamespace") == []
    assert healthy_database.rows("select typname from pg_type where typname = 'song_status'") == []


class TestExpectation:
    """The SQL that the inventories carry tells an honest run from a damaged one."""

    @pytest.fixture
    def before(self, broken_database: AppDatabase) -> str:
        """The canonical form before anything has been done."""
        value: str = broken_database.value(REPLACEMENTS)
        return value

    def test_encoding_keeps_the_canonical_form(self, broken_database: AppDatabase, before: str) -> None:
        """Encoded from what it was, or as it was: the same; and none is left out."""
        assert broken_database.value(UNENCODED) > 0
        broken_database.alembic("upgrade", "head")
        assert broken_database.value(REPLACEMENTS) == before
        assert broken_database.value(UNENCODED) == 0

    @pytest.mark.parametrize(
        "damage",
        [
            "replacement = 'something else' where replacement like 'Refrain%'",
            "replacement = '' where replacement is null",
            "replacement = null where replacement = ''",
            "replacement = replace(replacement, chr(13), '') where strpos(replacement, chr(13)) > 0",
            (
                "replacement = encode(convert_to(encode(convert_to(replacement, 'UTF8'), 'base64'), 'UTF8'),"
                " 'base64') where replacement like 'Refrain%'"
            ),
            ("replacement = encode(convert_to(replacement, 'LATIN1'), 'base64') where replacement like 'Gr_%e aus%'"),
            "replacement = ' ' || replacement where replacement like 'Refrain%'",
        ],
    )
    def test_damage_changes_the_canonical_form(self, broken_database: AppDatabase, before: str, damage: str) -> None:
        """Another text, a lost line end, a wrong encoding, encoded twice: each is seen."""
        found = f"with hit as (update lyric_parsing_rules set {damage} returning 1) select count(*) from hit"
        assert broken_database.value(found) > 0
        assert broken_database.value(REPLACEMENTS) != before

    def test_lost_and_doubled_rows_change_the_canonical_form(self, broken_database: AppDatabase, before: str) -> None:
        """A row less is seen."""
        broken_database.rows("delete from lyric_parsing_rules where id = 5 returning id")
        assert broken_database.value(REPLACEMENTS) != before


class TestData:
    """The generated rows."""

    def test_they_are_always_the_same(self) -> None:
        """No clock and no chance in them."""
        size = seed.Size(songs=90, rules=90)
        assert b"".join(seed.script(size)) == b"".join(seed.script(size))

    def test_ten_thousand_of_each_unless_told_otherwise(self) -> None:
        """The issue's figure."""
        assert (seed.Size().songs, seed.Size().rules) == (10_000, 10_000)

    def test_awkward_texts_arrive_unchanged(self, broken_database: AppDatabase) -> None:
        """What psql loaded is what the generator made, to the last backslash, for every kind there is."""
        rows = [text for _, text in broken_database.rows(RULES)]
        assert len(rows) == 120 >= len(seed.AWKWARD)
        assert rows == [seed.awkward(index) for index in range(len(rows))]
        assert None in rows
        assert "" in rows
        assert broken_database.value("select count(*) from songs where lyrics is null") > 0

    @pytest.mark.slow
    def test_bulk_data_reach_the_size_asked_for(self, databases: DatabaseFactory) -> None:
        """Within a tenth."""
        database = databases.empty()
        database.alembic("upgrade", BROKEN)
        databases.server.load(
            database.name, seed.script(seed.Size(songs=10, rules=10, bulk_megabytes=100)), role=database.user
        )
        megabytes = database.value("select pg_database_size(current_database()) / 1048576")
        database.drop()
        assert 90 <= megabytes <= 125
