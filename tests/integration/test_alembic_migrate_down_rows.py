"""alembic_migrate downwards, compared with a copy that was left alone: the rows that a way back loses, by name."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import arguments, postgres

from replica.application import BASE, BROKEN, ENCODED, HEAD, State
from replica.databases import USER, AppDatabase
from tests.support.modules import run_module
from tests.support.songs import replacements
from tests.support.stacks import Deployment, options, witness_of

Make = Callable[..., AppDatabase]
NEW, NEWER = "aaaa00000001", "aaaa00000002"
RULES, SONGS = "public.lyric_parsing_rules", "public.songs"
PLACES = ["psycopg", "psql"]


@pytest.fixture
def healthy(make_database: Make) -> AppDatabase:
    """A database at head."""
    return make_database(State.HEALTHY)


@pytest.fixture
def contents(tmp_path: Path) -> str:
    """Where the way up is recorded."""
    return str(tmp_path / "run" / "contents.json")


@pytest.fixture
def copy() -> Iterator[Callable[[AppDatabase], AppDatabase]]:
    """Makes a copy of a database as it is now, which goes with the test."""
    made: list[AppDatabase] = []

    def make(database: AppDatabase) -> AppDatabase:
        name = f"{database.name}_start{len(made)}"
        database.server.create_database(name, USER, database.name)
        made.append(AppDatabase(database.server, database.application, name, database.user, database.password))
        return made[-1]

    yield make
    for database in made:
        database.drop()


def migrate(database: AppDatabase, directory: Path | None = None, *, check: bool = False, **more: Any) -> Any:
    """Run the module."""
    return run_module("alembic_migrate", options(database, directory, **more), check=check)


def down(database: AppDatabase, target: str, directory: Path | None = None, **more: Any) -> Any:
    """Run the module downwards."""
    return migrate(database, directory, direction="down", target=target, **more)


def ids(found: dict[str, Any]) -> list[str]:
    """The keys of one column `id`."""
    return [key["id"] for key in found["keys"]]


@pytest.mark.parametrize("through", PLACES)
def test_the_rules_that_were_base64_before_are_named(
    broken: AppDatabase,
    contents: str,
    copy: Callable[[AppDatabase], AppDatabase],
    monkeypatch: pytest.MonkeyPatch,
    through: str,
) -> None:
    """Four steps. The rows are those that an independent query finds, in whatever way the database is asked."""
    if through == "psql":
        psql = postgres.find_program("psql", str(broken.server.bin_dir))

        def by_psql(places: arguments.Places, login: postgres.Login) -> postgres.Database:
            return postgres.PsqlDatabase(places.database_runtime(), login, psql)

        monkeypatch.setattr(arguments.Places, "_open", by_psql)
    start = copy(broken)
    untouched, rules = witness_of(start).look(), replacements(witness_of(start))
    assert migrate(broken, contents=contents)["changed"] is True

    planned = down(broken, BROKEN, check=True, contents=contents, compare_with=start.name)
    assert (planned["changed"], "lossy_rows" in planned) == (True, False)
    assert witness_of(broken).versions() == [HEAD]

    done = down(broken, BROKEN, contents=contents, compare_with=start.name)
    now = replacements(witness_of(broken))
    lost = sorted(str(rule) for rule, text in rules.items() if now[rule] != text)
    assert lost
    assert all(base64.b64decode(rules[int(rule)] or "") is not None for rule in lost)
    assert [step["verdict"] for step in done["undone"]] == ["lossless", "lossy"]
    assert list(done["lossy_rows"]) == [RULES]
    found = done["lossy_rows"][RULES]
    assert (found["count"], ids(found), found["reason"]) == (len(lost), lost[:20], None)
    after = witness_of(start).look()
    assert (after.catalog, after.rows, after.content) == (untouched.catalog, untouched.rows, untouched.content)

    for check in (True, False):
        again = down(broken, BROKEN, check=check, contents=contents, compare_with=start.name)
        assert (again["changed"], again["undone"], "lossy_rows" in again) == (False, [], False)


def test_nothing_lossy_names_nothing(
    healthy: AppDatabase, contents: str, copy: Callable[[AppDatabase], AppDatabase]
) -> None:
    down(healthy, ENCODED)
    start = copy(healthy)
    migrate(healthy, contents=contents)
    done = down(healthy, ENCODED, contents=contents, compare_with=start.name)
    assert ([step["verdict"] for step in done["undone"]], done["lossy_rows"]) == (["lossless"], {})


def test_changed_lost_and_new_rows_at_most_twenty_by_name(
    healthy: AppDatabase, deployment: Deployment, contents: str, copy: Callable[[AppDatabase], AppDatabase]
) -> None:
    """By two revisions, keys of two columns, a table without a key, and one that the start does not have."""
    witness = witness_of(healthy)
    witness.execute(
        "create table public.pairs (a text, b timestamptz, note text, other int, primary key (b, a))",
        "insert into pairs select chr(96 + n), '2025-10-21 03:00+00'::timestamptz + n * interval '1 hour', 'x', n "
        "from generate_series(1, 5) n",
        "create table public.keyless (a text)",
        "insert into keyless values ('x')",
        f"alter table pairs owner to {USER}",
        f"alter table keyless owner to {USER}",
        # A copy does not have the settings of its original, and writes every time differently.
        f"alter database {healthy.name} set timezone = 'Asia/Tokyo'",
        f"alter database {healthy.name} set datestyle = 'German'",
    )
    start, first = copy(healthy), "select id from songs order by id limit 25"
    deployment.add(
        NEW,
        "op.create_table('extra', sa.Column('id', sa.Integer, primary_key=True))",
        undo="op.drop_table('extra')\n"
        'op.execute("update pairs set note = null where other in (2, 4)")\n'
        "op.execute('delete from pairs where other = 5')\n"
        "op.execute(\"insert into pairs values ('z', '2025-10-21 03:00+00', 'x', 6)\")\n"
        "op.execute(\"update keyless set a = 'y'\")",
    )
    deployment.add(
        NEWER,
        "op.execute('insert into extra values (1)')",
        undo="op.execute('update extra set id = 2')\n"
        f"op.execute(\"update songs set title = title || '!' where id in ({first})\")",
        down=NEW,
    )
    migrate(healthy, deployment.directory, contents=contents)
    songs = [row[0] for row in witness.query(f"select id::text from ({first}) s")]
    assert len(songs) == 25

    done = down(healthy, HEAD, deployment.directory, contents=contents, compare_with=start.name)

    assert [(step["revision"], step["verdict"]) for step in done["undone"]] == [(NEWER, "lossy"), (NEW, "lossy")]
    lossy = done["lossy_rows"]
    assert list(lossy) == ["public.extra", "public.keyless", "public.pairs", SONGS]
    assert lossy["public.extra"] == {"count": None, "keys": [], "reason": "It is not in both databases."}
    assert (lossy["public.keyless"]["count"], lossy["public.keyless"]["keys"]) == (None, [])
    assert "no primary key" in lossy["public.keyless"]["reason"]
    # In the order of the key's columns, written in the same way whatever the database's settings are.
    assert lossy["public.pairs"] == {
        "count": 4,
        "keys": [
            {"b": "2025-10-21 03:00:00+00", "a": "z"},
            {"b": "2025-10-21 05:00:00+00", "a": "b"},
            {"b": "2025-10-21 07:00:00+00", "a": "d"},
            {"b": "2025-10-21 08:00:00+00", "a": "e"},
        ],
        "reason": None,
    }
    assert (lossy[SONGS]["count"], ids(lossy[SONGS])) == (25, sorted(songs)[:20])


def test_a_trial_that_does_not_get_there_names_no_rows(
    healthy: AppDatabase, deployment: Deployment, contents: str, copy: Callable[[AppDatabase], AppDatabase]
) -> None:
    start = copy(healthy)
    deployment.add(NEW, "op.create_table('extra', sa.Column('id', sa.Integer))", undo="op.execute('select 1/0')")
    deployment.add(NEWER, "pass", undo="op.execute('delete from lyric_parsing_rules where id <= 3')", down=NEW)
    migrate(healthy, deployment.directory, contents=contents)
    done = down(healthy, HEAD, deployment.directory, contents=contents, compare_with=start.name)
    assert [step["verdict"] for step in done["undone"]] == ["lossy", "impossible"]
    assert (done["after"], "lossy_rows" in done) == ([NEW], False)


class TestRefusals:
    def test_without_a_trial(self, broken: AppDatabase, tmp_path: Path) -> None:
        before = witness_of(broken).look()
        for more in (
            {},
            {"contents": str(tmp_path / "run" / "contents.json")},
            {"direction": "down", "target": BASE},
        ):
            seen = migrate(broken, compare_with="some_other", **more)
            assert seen["msg"].startswith("compare_with is for trials of the way back")
        assert witness_of(broken).look() == before

    @pytest.fixture
    def tried(self, broken: AppDatabase, contents: str) -> AppDatabase:
        """A copy at head, whose way there is recorded."""
        migrate(broken, contents=contents)
        return broken

    def refused(self, database: AppDatabase, contents: str, name: str) -> str:
        """The words; nothing was undone."""
        before = witness_of(database).look()
        for check in (True, False):
            seen = down(database, BROKEN, check=check, contents=contents, compare_with=name)
            assert seen["failed"] is True
            assert witness_of(database).look() == before
        return str(seen["msg"])

    def test_itself(self, tried: AppDatabase, contents: str) -> None:
        assert "the database that is migrated itself" in self.refused(tried, contents, tried.name)

    def test_one_that_is_not_there(self, tried: AppDatabase, contents: str) -> None:
        assert "No connection to database not_there" in self.refused(tried, contents, "not_there")

    def test_one_that_was_changed_since(self, tried: AppDatabase, make_database: Make, contents: str) -> None:
        other = make_database(State.UNTOUCHED)
        witness_of(other).execute("update users set display_name = 'changed' where id = 1")
        assert "it differs in the contents of public.users.display_name." in self.refused(tried, contents, other.name)

    def test_one_that_was_migrated(self, tried: AppDatabase, make_database: Make, contents: str) -> None:
        other = make_database(State.HEALTHY)
        said = self.refused(tried, contents, other.name)
        assert "which is not what the file of contents has recorded" in said
        assert "public.alembic_version.version_num" in said
