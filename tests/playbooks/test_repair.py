"""recover.yml where version and tables do not agree: PARTIAL resumed, STAMPED_NOT_APPLIED repaired, on the clone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from replica.application import HEAD
from replica.host import HostReplica, dump_inventory
from replica.seed import Size
from tests.playbooks.test_recover import BACK_UP, CLONE, CLOSE, COPY, MIGRATE, RECORD, RESTART, STOP, SWAP
from tests.replica import behaviour
from tests.support.evidence import Witness
from tests.support.host_runs import Everything, HostRuns, Outcome

REPAIR, PREDICT = "Put the copy right", "Say which revisions would be applied to it then"
MOODS, PLAYLISTS = "aaaa00000001", "bbbb00000002"
_REVISION = '''"""{message}"""

import sqlalchemy as sa

from alembic import op

revision = "{revision}"
down_revision = "{down}"
branch_labels = None
depends_on = None


def upgrade() -> None:
{upgrade}


def downgrade() -> None:
{downgrade}
'''
# On duplicate names the index fails, and what came before it stays.
_MOODS = """
op.create_table("moods", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
op.add_column("songs", sa.Column("mood_id", sa.Integer))
with op.get_context().autocommit_block():
    op.create_index("uq_rules_name", "lyric_parsing_rules", ["name"], unique=True, postgresql_concurrently=True)
op.create_foreign_key("fk_songs_mood", "songs", "moods", ["mood_id"], ["id"])
"""
_NO_MOODS = """
op.drop_constraint("fk_songs_mood", "songs", type_="foreignkey")
op.drop_index("uq_rules_name", "lyric_parsing_rules")
op.drop_column("songs", "mood_id")
op.drop_table("moods")
"""
_PLAYLISTS = """
op.create_table("playlists", sa.Column("id", sa.Integer, primary_key=True))
op.add_column("songs", sa.Column("playlist_id", sa.Integer))
"""
_NO_PLAYLISTS = """
op.drop_column("songs", "playlist_id")
op.drop_table("playlists")
"""


@dataclass
class Story:
    """A replica at head, and what came of the runs, in order."""

    runs: HostRuns
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seen: dict[str, Everything] = field(default_factory=dict)

    def deploy(self, revision: str, down: str, upgrade: str, downgrade: str) -> None:
        """Add a revision to the application."""
        bodies = {"upgrade": textwrap.indent(upgrade, "    "), "downgrade": textwrap.indent(downgrade, "    ")}
        text = _REVISION.format(message=f"test {revision}", revision=revision, down=down, **bodies)
        path = self.runs.replica.application / "src" / "alembic" / "versions" / f"{revision}_test.py"
        path.write_text(text)

    def play(self, name: str, *arguments: str, **variables: str | bool) -> None:
        """Run recover.yml, confirmed, with an inventory that expects no certain revision."""
        inventory = self.runs.replica.inventory()
        expect = inventory["demo"]["hosts"]["demo-server"]["recovery_stack"]["expect"]
        del expect["current"], expect["head"]
        path = self.runs.replica.directory / "records" / "any-revision.yml"
        path.write_text(dump_inventory(inventory))
        self.outcomes[name] = self.runs.recover(*arguments, inventory=path, variables=variables)
        self.seen[name] = self.runs.look()

    def kept(self) -> list[str]:
        """The databases from before."""
        closed = "select datname from pg_database where not datallowconn and datname <> 'template0'"
        return [row[0] for row in self.runs.witness.query(closed)]


@pytest.fixture(scope="class")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A revision that failed half-way, looked at and resumed; one that was only stamped, repaired; once more."""
    replica = HostReplica(tmp_path_factory.mktemp("repair") / "replica")
    try:
        replica.up(healthy=True, data=Size(songs=100, rules=100))
        story = Story(HostRuns(replica))
        witness = story.runs.witness
        story.deploy(MOODS, HEAD, _MOODS, _NO_MOODS)
        witness.execute("insert into lyric_parsing_rules (name, pattern) values ('twice', 'x'), ('twice', 'x')")
        assert "could not create unique index" in replica.alembic("upgrade", "head").stderr
        witness.execute("delete from lyric_parsing_rules where name = 'twice'")
        story.seen["partial"] = story.runs.look()
        story.play("unrehearsed", "--check", recovery_partial="resume", recovery_rehearse=False)
        story.play("checked", "--check", "--diff", recovery_partial="resume")
        story.play("resumed", recovery_partial="resume")
        story.deploy(PLAYLISTS, MOODS, _PLAYLISTS, _NO_PLAYLISTS)
        assert replica.alembic("stamp", "head").returncode == 0
        story.seen["stamped"] = story.runs.look()
        story.play("repaired", recovery_stamped="repair")
        yield story
    finally:
        replica.down()


@pytest.mark.timeout(1800)
class TestRepair:
    """One replica, one story."""

    def test_without_a_rehearsal_nothing_is_repaired(self, story: Story) -> None:
        outcome = story.outcomes["unrehearsed"]
        assert outcome.code == 2
        assert f"PARTIAL: The database is at {HEAD}" in outcome.failure
        assert "only done where it has been rehearsed: leave out recovery_rehearse." in outcome.failure
        assert story.seen["unrehearsed"] == story.seen["partial"]

    def test_check_mode_says_what_would_be_removed_and_leaves_no_trace(self, story: Story) -> None:
        outcome = story.outcomes["checked"]
        assert outcome.code == 0, outcome.text
        assert outcome.changed == [BACK_UP, STOP, CLOSE, CLONE, REPAIR, PREDICT, RESTART]
        assert (
            "in the clone remove index uq_rules_name on lyric_parsing_rules (INVALID); remove column songs.mood_id (no "
            f"values); remove table moods (no rows), apply to the clone, one by one: {MOODS}"
        ) in outcome.words
        assert 'DROP INDEX "public"."uq_rules_name";' in outcome.text
        assert "CREATE TABLE moods" in outcome.text
        assert story.seen["checked"] == story.seen["partial"]

    def test_row_28_an_invalid_index_and_what_else_was_left_are_made_anew_on_the_clone(self, story: Story) -> None:
        outcome, before, after = story.outcomes["resumed"], story.seen["partial"], story.seen["resumed"]
        assert outcome.code == 0, outcome.text
        assert outcome.changed == [BACK_UP, COPY, STOP, CLOSE, CLONE, REPAIR, MIGRATE, SWAP, RESTART, RECORD]
        assert "Applied: aaaa00000001" in outcome.words
        assert "Repaired on the clone: remove index uq_rules_name" in outcome.words
        assert "all of it was made anew as it was" in outcome.words
        gone = set(before.database.catalog) - set(after.database.catalog)
        come = set(after.database.catalog) - set(before.database.catalog)
        # The column has another number: it was made anew.
        assert sorted(line.split()[0] for line in gone) == ["column", "index"]
        assert sorted(line.split()[0] for line in come) == ["column", "constraint", "index"]
        assert any("FOREIGN KEY (mood_id) REFERENCES moods(id)" in line for line in come)
        assert any("UNIQUE INDEX uq_rules_name" in line and line.endswith("valid=t") for line in come)
        assert after.database.rows == before.database.rows
        held, holds = before.database.content, after.database.content
        unlike = {name for name in held if held[name] != holds[name]}
        assert unlike == {"alembic_version.version_num"}

    def test_the_database_from_before_is_kept_as_it_was(self, story: Story) -> None:
        name = min(story.kept())
        story.runs.witness.execute(f"alter database {name} allow_connections true")
        try:
            seen, before = Witness(story.runs.replica.postgres.conninfo(name)).look(), story.seen["partial"].database
        finally:
            story.runs.witness.execute(f"alter database {name} allow_connections false")
        assert (seen.catalog, seen.rows, seen.content) == (before.catalog, before.rows, before.content)

    def test_the_statements_are_in_the_journal(self, story: Story) -> None:
        journals = sorted(story.runs.target_state.rglob("repair.jsonl"))
        entries = [[json.loads(line) for line in path.read_text().splitlines()] for path in journals]
        assert [[entry["event"] for entry in one] for one in entries] == [["repairing", "proved"]] * 2
        assert entries[0][0]["statements"] == [
            'DROP INDEX "public"."uq_rules_name"',
            'ALTER TABLE "public"."songs" DROP COLUMN "mood_id"',
            'DROP TABLE "public"."moods"',
        ]

    def test_a_stamped_revision_is_applied_to_the_clone(self, story: Story) -> None:
        outcome, before, after = story.outcomes["repaired"], story.seen["stamped"], story.seen["repaired"]
        assert outcome.code == 0, outcome.text
        assert outcome.changed == [BACK_UP, COPY, STOP, CLOSE, CLONE, REPAIR, MIGRATE, SWAP, RESTART, RECORD]
        assert f"Repaired on the clone: set the version from {PLAYLISTS} back to {MOODS}" in outcome.words
        assert f"Applied: {PLAYLISTS}" in outcome.words
        witness = story.runs.witness
        assert witness.versions() == [PLAYLISTS]
        assert witness.has("playlists")
        assert witness.has("songs.playlist_id")
        assert set(before.database.catalog) <= set(after.database.catalog)
        assert before.database.content.items() <= after.database.content.items()
        for check in behaviour.HEALTHY:
            check(story.runs.replica.client)
