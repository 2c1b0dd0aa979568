"""alembic_migrate downwards: the four steps, what is refused, and trials of the way back on a copy."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica.application import BASE, BROKEN, ENCODED, HEAD, State
from replica.databases import AppDatabase
from tests.support.evidence import files, mode
from tests.support.modules import run_module
from tests.support.songs import encoded, replacements
from tests.support.stacks import Deployment, options, witness_of

Make = Callable[..., AppDatabase]
NEW, NEWER = "aaaa00000001", "aaaa00000002"
RULES = "public.lyric_parsing_rules"
TABLE = {"body": "op.create_table('extra', sa.Column('id', sa.Integer))", "undo": "op.drop_table('extra')"}


@pytest.fixture
def healthy(make_database: Make) -> AppDatabase:
    """A database at head."""
    return make_database(State.HEALTHY)


def migrate(
    database: AppDatabase, directory: Path | None = None, *, check: bool = False, diff: bool = False, **more: Any
) -> dict[str, Any]:
    """Run the module."""
    return run_module("alembic_migrate", options(database, directory, **more), check=check, diff=diff)


def down(database: AppDatabase, target: str, directory: Path | None = None, **more: Any) -> dict[str, Any]:
    """Run the module downwards."""
    return migrate(database, directory, direction="down", target=target, **more)


def decoded(value: str | None) -> str | None:
    """Return what the downgrade of revision 234ea0f4b6c3 makes of a replacement."""
    if value is None:
        return None
    try:
        return base64.b64decode(value).decode("utf-8")
    except ValueError:
        return value


class TestFourSteps:
    def test_check_real_check_real(self, healthy: AppDatabase, tmp_path: Path) -> None:
        """Plain Alembic exits 0 here, and stops in the middle with the rows already decoded."""
        witness = witness_of(healthy)
        journal = tmp_path / "runs" / "1.jsonl"
        before, rules = witness.look(), replacements(witness)

        planned = down(healthy, BROKEN, check=True, diff=True, journal=str(journal))
        assert (planned["changed"], planned["before"], planned["after"]) == (True, [HEAD], [BROKEN])
        assert (planned["steps"], planned["undone"]) == ([HEAD, ENCODED], [])
        versions, sketches, encode = planned["diff"]
        assert (versions["before"], versions["after"]) == (f"{HEAD}\n", f"{BROKEN}\n")
        assert "DROP TABLE song_sketches" in sketches["prepared"]
        assert encode["prepared"].startswith(f"-- revision {ENCODED}\n-- no SQL without running it: ")
        assert witness.look() == before
        assert not journal.parent.exists()

        done = down(healthy, BROKEN, journal=str(journal))
        assert (done["changed"], done["before"], done["after"]) == (True, [HEAD], [BROKEN])
        assert [step["revision"] for step in done["undone"]] == [HEAD, ENCODED]
        assert [step["healed"] for step in done["undone"]] == [[], ["revision_ended_transaction"]]
        assert "verdict" not in done["undone"][0]
        after = witness.look()
        assert witness.versions() == [BROKEN]
        assert not witness.has("song_sketches")
        assert not witness.has("songs.sketch_id")
        assert replacements(witness) == {rule: decoded(text) for rule, text in rules.items()}
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [item["event"] for item in events if item["event"] in ("starting", "undone", "proved")] == [
            "starting", "undone", "proved", "starting", "undone", "proved",
        ]  # fmt: skip
        left = files(tmp_path)

        for check in (True, False):
            again = down(healthy, BROKEN, check=check, diff=True, journal=str(journal))
            assert (again["changed"], again["before"], again["after"]) == (False, [BROKEN], [BROKEN])
            assert (again["steps"], again["undone"], "diff" in again) == ([], [], False)
        assert witness.look() == after
        assert files(tmp_path) == left
        witness.wait_until_alone()

    def test_to_the_base(self, make_database: Make) -> None:
        database = make_database(State.HEALTHY)
        assert down(database, "base", check=True)["after"] == []
        done = down(database, "base")
        assert [step["revision"] for step in done["undone"]] == [HEAD, ENCODED, BROKEN, BASE]
        witness = witness_of(database)
        assert done["after"] == witness.versions() == []
        assert not witness.has("songs")

    def test_from_behind_the_head(self, broken: AppDatabase) -> None:
        done = down(broken, BASE)
        assert done["after"] == witness_of(broken).versions() == [BASE]
        assert not witness_of(broken).has("lyric_parsing_rules")

    def test_a_merge_goes_down_to_both(self, healthy: AppDatabase, deployment: Deployment) -> None:
        deployment.add("bbbb00000001", "pass", down=())
        deployment.add("bbbb00000002", "pass", depends_on="bbbb00000001")
        deployment.add("bbbb00000003", "pass", down=("bbbb00000001", "bbbb00000002"))
        migrate(healthy, deployment.directory)
        witness = witness_of(healthy)
        assert witness.versions() == ["bbbb00000003"]
        done = down(healthy, "bbbb00000002", deployment.directory)
        assert done["undone"][0]["revision"] == "bbbb00000003"
        # The other one has no row of its own: the first depends on it.
        assert done["after"] == witness.versions() == ["bbbb00000002"]
        assert down(healthy, HEAD, deployment.directory)["after"] == witness.versions() == ["bbbb00000001", HEAD]

    def test_what_branches_is_undone_one_by_one(self, healthy: AppDatabase, deployment: Deployment) -> None:
        made = 'op.create_table("{0}", sa.Column("id", sa.Integer))'
        deployment.add("bbbb00000001", made.format("left"), undo='op.drop_table("left")')
        deployment.add("bbbb00000002", made.format("right"), undo='op.drop_table("right")')
        deployment.add("bbbb00000003", "pass", down=("bbbb00000001", "bbbb00000002"))
        witness = witness_of(healthy)
        before = witness.look()
        migrate(healthy, deployment.directory)
        only = ["bbbb00000001", "bbbb00000003"]
        # Alembic would undo both branches where it is told to go to what is below them.
        done = down(healthy, HEAD, deployment.directory, revisions=only)
        assert [step["revision"] for step in done["undone"]] == ["bbbb00000003", "bbbb00000001"]
        assert done["after"] == witness.versions() == ["bbbb00000002"]
        assert (witness.has("left"), witness.has("right")) == (False, True)
        assert down(healthy, HEAD, deployment.directory)["after"] == witness.versions() == [HEAD]
        assert witness.look().catalog == before.catalog


class TestRefusals:
    @pytest.mark.parametrize("target", ["head", "-1", f"{HEAD}-1", HEAD[:6], "0123456789ab"])
    def test_targets(self, healthy: AppDatabase, target: str) -> None:
        before = witness_of(healthy).look()
        seen = down(healthy, target)
        assert seen["failed"] is True
        assert f"Nothing was undone: the code has no revision {target!r}." in seen["msg"]
        assert witness_of(healthy).look() == before

    def test_a_revision_that_is_not_applied(self, broken: AppDatabase) -> None:
        before = witness_of(broken).look()
        assert f"and revision {HEAD} is not among what leads there" in down(broken, HEAD)["msg"]
        assert witness_of(broken).look() == before

    def test_a_state_that_is_no_start(self, healthy: AppDatabase) -> None:
        witness_of(healthy).execute("update alembic_version set version_num = 'feedc0ffee00'")
        seen = down(healthy, BROKEN)
        assert (seen["failed"], seen["verdict"]) == (True, "AHEAD")
        assert seen["msg"].startswith("Nothing was undone. The database is at feedc0ffee00")


class TestFailures:
    def test_a_downgrade_that_fails(self, healthy: AppDatabase, deployment: Deployment) -> None:
        deployment.add(NEW, TABLE["body"], undo="op.execute('select 1/0')")
        deployment.add(NEWER, "pass", down=NEW)
        migrate(healthy, deployment.directory)
        seen = down(healthy, HEAD, deployment.directory)
        assert seen["failed"] is True
        assert "division by zero" in seen["msg"]
        assert f"The database is at {NEW} (read over a new connection)" in seen["msg"]
        assert f"undone and proved in this run: {NEWER}; not undone: {NEW}." in seen["msg"]
        assert [step["revision"] for step in seen["undone"]] == [NEWER]
        assert (seen["not_undone"], seen["failed_revision"], seen["current"]) == ([NEW], NEW, [NEW])
        assert witness_of(healthy).has("extra.id")

    def test_one_that_is_not_proved(self, healthy: AppDatabase) -> None:
        witness_of(healthy).execute(
            "create function put_back() returns trigger language plpgsql as $$ begin "
            "update alembic_version set version_num = old.version_num; return null; end $$",
            "create trigger put_back after update on alembic_version for each row "
            f"when (new.version_num = '{ENCODED}') execute function put_back()",
        )
        seen = down(healthy, ENCODED)
        assert f"Alembic reported revision {HEAD} as undone, but a new connection reads {HEAD}" in seen["msg"]
        assert seen["kind"] == "not_proved"


class TestMeasuring:
    def test_locks_growth_and_statements(self, make_database: Make, deployment: Deployment) -> None:
        deployment.add(
            NEW,
            "op.create_index('ix_title', 'songs', ['title'])\n"
            "op.execute(\"select pg_sleep(4), 'Somebody Private'\")\n"
            "op.create_table('extra', sa.Column('id', sa.Integer), sa.Column('fill', sa.Text))\n"
            "op.execute(\"insert into extra select n, repeat('x', 500) from generate_series(1, 4000) n\")\n"
            "op.execute('alter table users add column extra text')\n"
            "op.execute('lock table songs in access exclusive mode')",
            undo="pass",
        )
        database = make_database(State.HEALTHY)
        (step,) = migrate(database, deployment.directory, measure=True)["applied"]
        locks = {lock["relation"]: lock for lock in step["locks"]}
        assert locks["public.users"]["mode"] == locks["public.songs"]["mode"] == "ACCESS EXCLUSIVE"
        assert (locks["public.songs"]["blocks_reads"], locks["public.songs"]["blocks_writes"]) == (True, True)
        assert locks["public.alembic_version"]["mode"] == "ROW EXCLUSIVE"
        assert (locks["public.alembic_version"]["blocks_reads"], locks["public.alembic_version"]["blocks_writes"]) == (
            False, False,
        )  # fmt: skip
        assert "public.extra" not in locks, "nobody else knows it yet"
        assert locks["public.songs"]["seconds"] < 3, "the stronger one came after the long statement"
        assert step["growth_bytes"] > 4000 * 500
        assert step["wal_bytes"] > 4000 * 500
        slow = step["slowest"][0]
        assert slow["sql"] == "select pg_sleep(4), '…'"
        assert (slow["count"], slow["seconds"] >= 4, len(step["slowest"])) == (1, True, 5)

    def test_how_long_a_lock_is_held(self, make_database: Make, deployment: Deployment) -> None:
        """From the statement that takes it to the end of the transaction, even if that is a commit on the way."""
        deployment.add(
            NEW,
            "op.create_index('ix_title', 'songs', ['title'])\n"
            "op.execute('select pg_sleep(0.5)')\n"
            "op.get_bind().commit()\n"
            "op.execute('select pg_sleep(6)')",
        )
        database = make_database(State.HEALTHY)
        (step,) = migrate(database, deployment.directory, measure=True)["applied"]
        lock = next(lock for lock in step["locks"] if lock["relation"] == "public.songs")
        assert (lock["mode"], lock["blocks_reads"], lock["blocks_writes"]) == ("SHARE", False, True)
        assert 0.5 <= lock["seconds"] < 5

    def test_the_replicas_revisions_are_healed_and_the_same_when_they_are_measured(self, broken: AppDatabase) -> None:
        rules = replacements(witness_of(broken))
        done = migrate(broken, measure=True)
        assert [step["healed"] for step in done["applied"]] == [["revision_ended_transaction"], []]
        assert replacements(witness_of(broken)) == {rule: encoded(text) for rule, text in rules.items()}
        encode, sketches = done["applied"]
        (rows,) = (lock for lock in encode["locks"] if lock["relation"] == RULES)
        assert (rows["mode"], rows["blocks_writes"]) == ("ROW EXCLUSIVE", False)
        (songs,) = (lock for lock in sketches["locks"] if lock["relation"] == "public.songs")
        assert (songs["mode"], songs["blocks_reads"]) == ("ACCESS EXCLUSIVE", True)
        assert "public.song_sketches" not in [lock["relation"] for lock in sketches["locks"]]
        undone = down(broken, ENCODED, measure=True)["undone"]
        assert {"public.songs", "public.song_sketches"} <= {lock["relation"] for lock in undone[0]["locks"]}

    def test_a_role_that_may_not_read_the_wal(self, broken: AppDatabase) -> None:
        witness = witness_of(broken)
        witness.execute("revoke execute on function pg_current_wal_insert_lsn() from public")
        done = migrate(broken, measure=True)
        assert [step["wal_bytes"] for step in done["applied"]] == [None, None]
        assert all(isinstance(step["growth_bytes"], int) for step in done["applied"])

    def test_index_concurrently_and_a_transaction_of_its_own_choice(
        self, healthy: AppDatabase, deployment: Deployment
    ) -> None:
        """To be watched changes nothing: neither for what must be first in a transaction, nor for what is in none."""
        deployment.add(
            NEW,
            "bind = op.get_bind()\n"
            "rows = bind.execute(sa.text('select id from songs order by id'),\n"
            "                    execution_options={'stream_results': True})\n"
            "first = [rows.fetchone() for _ in range(3)]\n"
            "bind.execute(sa.text('select count(*) from users'))\n"
            "assert len(first) + len(rows.fetchall()) == bind.scalar(sa.text('select count(*) from songs'))\n"
            "with op.get_context().autocommit_block():\n"
            "    op.execute('create index concurrently ix_half on songs (title)')\n",
        )
        done = migrate(healthy, deployment.directory, measure=True)
        assert done["after"] == [NEW]
        assert witness_of(healthy).value("select indisvalid from pg_index where indexrelid = 'ix_half'::regclass")


class TestTrials:
    """On a copy: up, then down, and each point compared."""

    @pytest.fixture
    def contents(self, tmp_path: Path) -> Path:
        return tmp_path / "run" / "contents.json"

    @staticmethod
    def up(database: AppDatabase, contents: Path, directory: Path | None = None) -> None:
        done = migrate(database, directory, contents=str(contents))
        assert done["changed"] is True

    def test_the_replicas_revisions(self, broken: AppDatabase, contents: Path) -> None:
        """234ea0f4b6c3 decodes what was Base64 before it as well; d4641a241b98 leaves nothing behind."""
        witness = witness_of(broken)
        checked = migrate(broken, check=True, contents=str(contents))
        assert (checked["changed"], contents.parent.exists()) == (True, False)
        self.up(broken, contents)
        assert (mode(contents), mode(contents.parent)) == (0o600, 0o700)
        text = contents.read_text()
        assert list(json.loads(text)["points"]) == [BROKEN, ENCODED, HEAD]
        assert "Refrain" not in text
        assert "@songs.example" not in text
        before = witness.look()
        planned = down(broken, BROKEN, check=True, contents=str(contents))
        assert (planned["changed"], planned["after"], planned["undone"]) == (True, [BROKEN], [])
        assert witness.look() == before

        done = down(broken, BROKEN, contents=str(contents))

        sketches, encode = done["undone"]
        assert (sketches["revision"], sketches["verdict"]) == (HEAD, "lossless")
        assert (sketches["columns"], sketches["rows"], sketches["catalog"]) == ([], {}, {})
        assert (encode["revision"], encode["verdict"]) == (ENCODED, "lossy")
        assert encode["columns"] == [{"table": RULES, "column": "replacement"}]
        assert (encode["rows"], encode["catalog"]) == ({}, {})
        assert "lyric_parsing_rules.replacement" in encode["reason"]
        assert (encode["healed"], encode["message"][:6]) == (["revision_ended_transaction"], "base64")
        assert done["after"] == witness.versions() == [BROKEN]
        left = contents.read_text()
        for check in (True, False):
            again = down(broken, BROKEN, check=check, contents=str(contents))
            assert (again["changed"], again["undone"]) == (False, [])
        assert contents.read_text() == left == text

    def test_without_such_rows_it_is_lossless(self, broken: AppDatabase, contents: Path) -> None:
        witness = witness_of(broken)
        same = [
            str(rule)
            for rule, text in replacements(witness).items()
            if text is not None and encoded(text) == text != decoded(text)
        ]
        assert same
        witness.execute(f"delete from lyric_parsing_rules where id in ({', '.join(same)})")
        before = replacements(witness)
        self.up(broken, contents)
        done = down(broken, BROKEN, contents=str(contents))
        assert [step["verdict"] for step in done["undone"]] == ["lossless", "lossless"]
        assert replacements(witness) == before

    def test_a_difference_belongs_to_the_first_downgrade_that_shows_it(
        self, healthy: AppDatabase, deployment: Deployment, contents: Path
    ) -> None:
        deployment.add(NEW, TABLE["body"], undo=TABLE["undo"] + "\nop.execute('delete from song_sketches')")
        deployment.add(
            NEWER,
            "op.add_column('songs', sa.Column('more', sa.Text))",
            undo="op.drop_column('songs', 'more')\n"
            'op.execute("delete from lyric_parsing_rules where id <= 3")\n'
            "op.execute('drop index ix_songs_user_id')",
            down=NEW,
        )
        witness = witness_of(healthy)
        witness.execute("insert into song_sketches (prompt) values ('one'), ('two')")
        self.up(healthy, contents, deployment.directory)
        # Not the fault of a downgrade: it is so before the first of them.
        witness.execute("update users set display_name = 'changed' where id = 1")
        newer, new = down(healthy, HEAD, deployment.directory, contents=str(contents))["undone"]
        assert (newer["revision"], newer["verdict"], newer["rows"]) == (NEWER, "lossy", {RULES: 3})
        assert {column["table"] for column in newer["columns"]} == {RULES}
        assert list(newer["catalog"]) == ["indexes"]
        assert "ix_songs_user_id" in newer["catalog"]["indexes"]["removed"][0]
        assert (new["revision"], new["verdict"], new["rows"]) == (NEW, "lossy", {"public.song_sketches": 2})
        assert {column["table"] for column in new["columns"]} == {"public.song_sketches"}
        assert new["catalog"] == {}

    @pytest.mark.parametrize(
        ("undo", "reason"),
        [
            pytest.param("pass", "Its downgrade does nothing, and its upgrade did something.", id="empty"),
            pytest.param("raise NotImplementedError('no way back')", "Its downgrade raises an error", id="raises"),
        ],
    )
    def test_impossible_by_its_source(
        self, healthy: AppDatabase, deployment: Deployment, contents: Path, undo: str, reason: str
    ) -> None:
        """It is not tried, and what comes after it was undone; check mode knows it, too."""
        deployment.add(NEW, TABLE["body"], undo=undo)
        deployment.add(NEWER, "pass", down=NEW)
        self.up(healthy, contents, deployment.directory)
        witness = witness_of(healthy)
        planned = down(healthy, HEAD, deployment.directory, contents=str(contents), check=True)
        assert (planned["changed"], planned["steps"], planned["after"]) == (True, [NEWER, NEW], [NEW])
        done = down(healthy, HEAD, deployment.directory, contents=str(contents))
        assert [(step["revision"], step["verdict"]) for step in done["undone"]] == [
            (NEWER, "lossless"),
            (NEW, "impossible"),
        ]
        assert done["undone"][1]["reason"].startswith(reason)
        assert (done["changed"], done["after"], witness.versions()) == (True, [NEW], [NEW])
        assert witness.has("extra.id")
        for check in (True, False):
            again = down(healthy, HEAD, deployment.directory, contents=str(contents), check=check)
            assert (again["changed"], again["after"]) == (False, [NEW])

    @pytest.mark.parametrize(
        ("undo", "reason"),
        [
            pytest.param("op.execute('select 1/0')", "division by zero", id="an error"),
            pytest.param(
                "op.drop_table('extra')\nif op.get_bind(): raise NotImplementedError('no way back')",
                "no way back",
                id="an error of Python under a condition",
            ),
        ],
    )
    def test_impossible_when_it_is_run(
        self, healthy: AppDatabase, deployment: Deployment, contents: Path, undo: str, reason: str
    ) -> None:
        deployment.add(NEW, TABLE["body"], undo=undo)
        deployment.add(NEWER, "pass", down=NEW)
        self.up(healthy, contents, deployment.directory)
        done = down(healthy, HEAD, deployment.directory, contents=str(contents))
        assert [(step["revision"], step["verdict"]) for step in done["undone"]] == [
            (NEWER, "lossless"),
            (NEW, "impossible"),
        ]
        assert reason in done["undone"][1]["reason"]
        assert (done["changed"], done["after"], witness_of(healthy).versions()) == (True, [NEW], [NEW])
        assert witness_of(healthy).has("extra.id")

    def test_impossible_where_it_ends_elsewhere(self, healthy: AppDatabase, contents: Path) -> None:
        witness = witness_of(healthy)
        down(healthy, ENCODED)
        witness.execute(
            "create function put_back() returns trigger language plpgsql as $$ begin "
            "update alembic_version set version_num = old.version_num; return null; end $$",
            "create trigger put_back after update on alembic_version for each row "
            f"when (old.version_num = '{HEAD}') execute function put_back()",
        )
        self.up(healthy, contents)
        done = down(healthy, ENCODED, contents=str(contents))
        (step,) = done["undone"]
        assert (step["revision"], step["verdict"], done["after"]) == (HEAD, "impossible", [HEAD])
        assert "Alembic reported revision" in step["reason"]

    def test_a_lock_is_no_verdict(self, broken: AppDatabase, contents: Path) -> None:
        self.up(broken, contents)
        with psycopg.connect(witness_of(broken).conninfo) as other:
            other.execute("select count(*) from songs")
            seen = down(broken, BROKEN, contents=str(contents), lock_timeout=1)
        assert (seen["failed"], seen["sqlstate"]) == (True, "55P03")
        assert witness_of(broken).versions() == [HEAD]

    def test_files_that_do_not_fit(self, broken: AppDatabase, contents: Path) -> None:
        assert "is no file with contents" in down(broken, BASE, contents=str(contents))["msg"]
        migrate(broken, target=ENCODED, contents=str(contents))
        text = contents.read_text()
        seen = migrate(broken, contents=str(contents))
        assert (seen["failed"], f"{contents} cannot be made" in seen["msg"]) == (True, True)
        assert (contents.read_text(), witness_of(broken).versions()) == (text, [ENCODED])
        before = witness_of(broken).look()
        seen = down(broken, BASE, contents=str(contents))
        assert f"knows nothing of the database at {BASE}; it has: {BROKEN}, {ENCODED}" in seen["msg"]
        assert witness_of(broken).look() == before

    def test_an_upgrade_that_fails_leaves_what_it_has_seen(
        self, broken: AppDatabase, deployment: Deployment, contents: Path
    ) -> None:
        deployment.add(NEW, "op.execute('select 1/0')")
        assert migrate(broken, deployment.directory, contents=str(contents))["failed"] is True
        assert list(json.loads(contents.read_text())["points"]) == [BROKEN, ENCODED, HEAD]
