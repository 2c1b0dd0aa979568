"""Each verdict, produced by real Alembic on a real PostgreSQL; docs/verdicts.md names these tests.

Each look is done twice, and proved to have written nothing (`status_twice`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psycopg
import pytest
from ansible.module_utils.alembic_recovery import agent_client
from ansible.module_utils.alembic_recovery.runtime import HostRuntime

from tests.support.looking import findings, status_twice
from tests.support.modules import run_module
from tests.support.small_app import ENV, Revision
from tests.support.stacks import options, witness_of
from tests.verdicts.conftest import MakeApp

FIRST = Revision(
    "first", "op.create_table('songs', sa.Column('id', sa.Integer, primary_key=True), sa.Column('n', sa.Text))"
)
SECOND = Revision(
    "second",
    """
    op.create_table('sketches', sa.Column('id', sa.Integer, primary_key=True))
    op.add_column('songs', sa.Column('sketch_id', sa.Integer))
    op.create_index('ix_sketch', 'songs', ['sketch_id'])
    """,
)
CHAIN = [FIRST, SECOND]


def upgraded(make_app: MakeApp, to: str, revisions: list[Revision] | None = None) -> None:
    """Bring the database to a revision with the ordinary command."""
    done = make_app(revisions or CHAIN).alembic("upgrade", to)
    assert done.returncode == 0, done.stderr


def refused_by_migrate(make_app: MakeApp, revisions: list[Revision]) -> str:
    """Let the migration try, which must refuse and change nothing; its message."""
    database = make_app(revisions)
    before = witness_of(database).look()
    done = run_module("alembic_migrate", options(database))
    assert done["failed"] is True
    assert witness_of(database).look() == before
    message: str = done["msg"]
    return message


def test_at_head(make_app: MakeApp) -> None:
    upgraded(make_app, "head")
    seen = status_twice(make_app(CHAIN))
    assert (seen["verdict"], seen["recoverable"], seen["findings"]) == ("AT_HEAD", True, [])
    assert seen["declared"] == {"partial": [], "lost": [], "unknown": {}}


def test_behind(make_app: MakeApp) -> None:
    upgraded(make_app, "first")
    seen = status_twice(make_app(CHAIN))
    assert (seen["verdict"], seen["recoverable"]) == ("BEHIND", True)
    assert [step["revision"] for step in seen["missing"]] == ["second"]
    assert seen["next_step"] == "ansible-playbook recover.yml -l demo"


def test_partial_what_an_autocommit_block_has_left(make_app: MakeApp) -> None:
    """The revision made a table, committed it, and failed."""
    failing = Revision(
        "second",
        """
        op.create_table('sketches', sa.Column('id', sa.Integer, primary_key=True))
        with op.get_context().autocommit_block():
            op.execute("select 1")
        op.add_column('songs', sa.Column('sketch_id', sa.Integer))
        op.execute("insert into songs (id) values (1), (1)")
        """,
    )
    database = make_app([FIRST, failing])
    assert database.alembic("upgrade", "head").returncode == 1
    seen = status_twice(database)
    assert (seen["verdict"], seen["recoverable"]) == ("PARTIAL", False)
    assert "Revision second: there: table sketches; not there: column songs.sketch_id." in seen["summary"]
    [part] = seen["declared"]["partial"]
    assert (part["there"], part["absent"]) == (["table sketches"], ["column songs.sketch_id"])
    assert "stamped" in seen["will_not"]
    assert "stamp" not in seen["next_step"]
    assert "Nothing was migrated." in refused_by_migrate(make_app, [FIRST, failing])


def test_partial_an_invalid_index_of_a_revision_to_come(make_app: MakeApp) -> None:
    """IF NOT EXISTS would take it for the index."""
    indexed = Revision(
        "second",
        """
        with op.get_context().autocommit_block():
            op.create_index('ix_n', 'songs', ['n'], unique=True, postgresql_concurrently=True, if_not_exists=True)
        """,
    )
    upgraded(make_app, "first", [FIRST, indexed])
    database = make_app([FIRST, indexed])
    witness_of(database).execute("insert into songs values (1, 'x'), (2, 'x')")
    assert database.alembic("upgrade", "head").returncode == 1
    seen = status_twice(database)
    assert seen["verdict"] == "PARTIAL"
    assert "index ix_n on songs (INVALID: it was never finished)" in seen["summary"]
    assert 'REINDEX INDEX CONCURRENTLY "public"."ix_n";' in findings(seen)["invalid_index"]


def test_partial_in_a_later_revision_than_the_next(make_app: MakeApp) -> None:
    upgraded(make_app, "first")
    third = Revision("third", "op.create_table('made_by_create_all', sa.Column('id', sa.Integer))")
    database = make_app([*CHAIN, third])
    witness_of(database).execute("create table made_by_create_all (id int)")
    seen = status_twice(database)
    assert seen["verdict"] == "PARTIAL"
    assert "Revision third: there: table made_by_create_all; not there: nothing." in seen["summary"]
    assert "second" not in seen["summary"]


def test_stamped_not_applied(make_app: MakeApp) -> None:
    upgraded(make_app, "first")
    database = make_app(CHAIN)
    assert database.alembic("stamp", "head").returncode == 0
    seen = status_twice(database)
    assert (seen["verdict"], seen["recoverable"]) == ("STAMPED_NOT_APPLIED", False)
    assert (
        "Revision second: there: nothing; not there: table sketches, column songs.sketch_id, index ix_sketch on songs."
        in seen["summary"]
    )
    assert "Nothing was migrated." in refused_by_migrate(make_app, CHAIN)


def test_stamped_not_applied_below_the_head(make_app: MakeApp) -> None:
    """The next revision would only fail on what is not there."""
    upgraded(make_app, "first")
    third = Revision("third", "op.create_index('ix_more', 'sketches', ['id'])")
    database = make_app([*CHAIN, third])
    assert database.alembic("stamp", "second").returncode == 0
    assert status_twice(database)["verdict"] == "STAMPED_NOT_APPLIED"


def test_at_head_although_later_revisions_have_removed_and_renamed(make_app: MakeApp) -> None:
    chain = [
        *CHAIN,
        Revision(
            "third",
            """
            op.rename_table('sketches', 'drafts')
            op.alter_column('songs', 'sketch_id', new_column_name='draft_id')
            op.add_column('songs', sa.Column('later_dropped', sa.Integer, index=True))
            """,
        ),
        Revision("fourth", "op.execute('alter table songs drop column later_dropped')\nop.drop_index('ix_sketch')"),
        Revision(
            "fifth",
            """
            with op.batch_alter_table('songs') as batch:
                batch.drop_column('draft_id')
                batch.create_unique_constraint('once', ['n'])
            """,
        ),
    ]
    upgraded(make_app, "head", chain)
    seen = status_twice(make_app(chain))
    assert (seen["verdict"], seen["declared"]) == ("AT_HEAD", {"partial": [], "lost": [], "unknown": {}})
    witness_of(make_app(chain)).execute("drop table drafts")
    seen = status_twice(make_app(chain))
    assert seen["verdict"] == "STAMPED_NOT_APPLIED"
    assert [(item["revision"], item["absent"]) for item in seen["declared"]["lost"]] == [("second", ["table drafts"])]


def test_at_head_an_index_that_somebody_dropped_is_a_finding(make_app: MakeApp) -> None:
    upgraded(make_app, "head")
    database = make_app(CHAIN)
    witness_of(database).execute("drop index ix_sketch")
    seen = status_twice(database)
    assert seen["verdict"] == "AT_HEAD"
    assert "not there: index ix_sketch on songs" in findings(seen)["missing_object"]


def test_drifted(make_app: MakeApp, tmp_path: Path) -> None:
    env = ENV.replace("engine =", "models = sa.MetaData()\nengine =")
    env = env.replace("connection=connection", "connection=connection, target_metadata=models")
    upgraded(make_app, "head")
    database = make_app(CHAIN, env)
    known = {"compare_models": True, "baselines": str(tmp_path / "baselines")}
    seen = run_module("alembic_status", options(database, **known))
    assert seen["verdict"] == "AT_HEAD"
    assert run_module("alembic_baseline", {"directory": known["baselines"], "status": seen})["changed"] is True

    witness_of(database).execute("create table by_hand ()")
    seen = status_twice(database, **known)
    assert (seen["verdict"], seen["recoverable"]) == ("DRIFTED", False)
    assert seen["summary"].endswith("has changed: there, and not in the models: table by_hand.")
    assert seen["next_step"].endswith("record it: ansible-playbook playbooks/baseline.yml -l demo")
    # Nobody asked: then it is at head.
    assert run_module("alembic_status", options(database))["verdict"] == "AT_HEAD"


def test_ahead(make_app: MakeApp) -> None:
    """The image was rolled back."""
    upgraded(make_app, "head")
    seen = status_twice(make_app([FIRST]))
    assert (seen["verdict"], seen["recoverable"]) == ("AHEAD", False)
    assert "second, which the code does not know" in seen["summary"]


def test_foreign(make_app: MakeApp) -> None:
    upgraded(make_app, "head")
    seen = status_twice(make_app([]))
    assert (seen["verdict"], seen["recoverable"]) == ("FOREIGN", False)


def test_diverged_a_branch_that_the_code_no_longer_has(make_app: MakeApp) -> None:
    branch = Revision("branch", "pass", down="first")
    upgraded(make_app, "heads", [*CHAIN, branch])
    seen = status_twice(make_app(CHAIN))
    assert (seen["verdict"], seen["recoverable"]) == ("DIVERGED", False)
    assert "the code does not know branch" in seen["summary"]


def test_multiple_heads(make_app: MakeApp) -> None:
    upgraded(make_app, "first")
    seen = status_twice(make_app([*CHAIN, Revision("branch", "pass", down="first")]))
    assert (seen["verdict"], seen["recoverable"]) == ("MULTIPLE_HEADS", False)
    assert seen["heads"] == ["branch", "second"]


def test_unversioned(make_app: MakeApp) -> None:
    upgraded(make_app, "head")
    database = make_app(CHAIN)
    witness_of(database).execute("drop table alembic_version")
    seen = status_twice(database)
    assert (seen["verdict"], seen["recoverable"]) == ("UNVERSIONED", False)


def test_empty(make_app: MakeApp) -> None:
    seen = status_twice(make_app(CHAIN))
    assert (seen["verdict"], seen["recoverable"]) == ("EMPTY", False)


def test_unreadable(make_app: MakeApp) -> None:
    seen = status_twice(make_app(CHAIN, ENV.replace("engine =", "raise RuntimeError('no settings')\nengine =")))
    assert (seen["verdict"], seen["recoverable"]) == ("UNREADABLE", False)
    assert "RuntimeError: no settings" in seen["summary"]


class TestCollecting:
    """What revisions declare is collected without a trace, and what cannot be told is said."""

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("op.get_bind().execute(sa.text('select 1'))", "it uses the connection (execute)"),
            ("try:\n    op.get_bind().execute(sa.text('select 1'))\nexcept Exception:\n    pass", "the connection"),
            ("import subprocess\nsubprocess.run(['touch', 'made'])", "it calls subprocess"),
            ("open('made', 'w').close()", "it calls open"),
            ("import shutil as harmless\nlist(map(harmless.rmtree, ['made']))", "it calls shutil"),
            ("sa.create_engine('postgresql+psycopg://').connect()", "a connection of its own"),
            ("from alembic import context\nif not context.is_offline_mode():\n    pass", "one thing on a database"),
            ("raise RuntimeError('never mind')", "it cannot be followed without a database (RuntimeError)"),
        ],
    )
    def test_a_revision_that_cannot_be_followed(self, make_app: MakeApp, body: str, reason: str) -> None:
        upgraded(make_app, "first")
        seen = status_twice(make_app([FIRST, Revision("second", body)]))
        assert seen["verdict"] == "BEHIND"
        assert reason in seen["declared"]["unknown"]["second"]

    def test_an_enumeration_that_is_made_through_the_connection(self, make_app: MakeApp) -> None:
        body = """
        from sqlalchemy.dialects import postgresql
        kind = postgresql.ENUM('a', 'b', name='kind', create_type=False)
        kind.create(op.get_bind(), checkfirst=True)
        op.create_table('kinds', sa.Column('kind', kind))
        """
        chain = [FIRST, Revision("second", body)]
        upgraded(make_app, "first", chain)
        database = make_app(chain)
        witness_of(database).execute("create table kinds (id int)")
        seen = status_twice(database)
        assert (seen["verdict"], seen["declared"]["unknown"]) == ("PARTIAL", {})

    def test_what_must_not_be_done_twice_is_named(self, make_app: MakeApp) -> None:
        """For a repair, which runs a revision as a whole: in words, without values, and not what may be done twice."""
        body = """
        from sqlalchemy.dialects import postgresql
        made = op.create_table('sketches', sa.Column('id', sa.Integer), sa.Column('kind', sa.Enum('a', name='kind')),
                               comment='of songs')
        postgresql.ENUM('b', name='other').create(op.get_bind(), checkfirst=True)
        op.bulk_insert(made, [{'id': 4711}])
        op.execute(sa.insert(made).values(id=4711))
        op.execute("update songs set n = '4711'")
        op.execute(sa.update(made).values(id=4711))
        op.alter_column('songs', 'n', type_=sa.String(9), nullable=False, server_default='4711', comment='name')
        op.create_unique_constraint(None, 'songs', ['n'])
        op.execute("create index ix_n on songs (n)")
        """
        upgraded(make_app, "first")
        database = make_app([FIRST, Revision("second", body)])
        place = {"alembic_config": "alembic.ini", "alembic_section": "alembic"}
        request = {**agent_client.base_request(place), "command": "status", "settings": {}}
        environment = {"DATABASE_URL": database.url}
        runtime = HostRuntime(workdir=str(database.application), env=environment)
        messages = list(agent_client.ask(runtime, sys.executable, request, timeout=60))
        [answer] = [message for message in messages if message["event"] == "status"]
        [second] = answer["declared"]["pending"]
        assert second["unknown"] is None
        assert [(other["what"], other["into"]) for other in second["others"]] == [
            ("TYPE kind", None),
            ("INSERT into sketches", [None, "sketches"]),
            ("INSERT into sketches", [None, "sketches"]),
            ("SQL (UPDATE)", None),
            ("Update sketches", None),
            ("PostgresqlColumnType songs", None),
            ("create of a constraint whose name the server decides", None),
        ]
        assert "4711" not in str(answer["declared"])

    def test_plain_statements_are_understood(self, make_app: MakeApp) -> None:
        body = """
        op.execute("CREATE TABLE IF NOT EXISTS public.sketches (id int references songs on delete cascade);")
        op.execute("alter table songs add column sketch_id integer, add column more text")
        with op.get_context().autocommit_block():
            op.execute("CREATE UNIQUE INDEX CONCURRENTLY ix_n ON songs (n)")
        op.execute("create table one (id int); create table two (id int)")
        op.execute("create temp table scratch (id int)")
        """
        chain = [FIRST, Revision("second", body)]
        upgraded(make_app, "first", chain)
        database = make_app(chain)
        witness = witness_of(database)
        witness.execute("create table sketches (id int)", "create table one (id int)")
        assert status_twice(database)["verdict"] == "BEHIND"  # IF NOT EXISTS; and what is not understood is not judged
        witness.execute("create index ix_n on songs (n)")
        [part] = status_twice(database)["declared"]["partial"]
        assert (part["there"], part["absent"]) == (["index ix_n on songs"], ["column songs.sketch_id"])
        witness.execute("drop table one, sketches", "drop index ix_n")
        assert database.alembic("upgrade", "head").returncode == 0
        assert status_twice(database)["verdict"] == "AT_HEAD"
        witness.execute("alter table songs drop column sketch_id")
        [lost] = status_twice(database)["declared"]["lost"]
        assert lost["absent"] == ["column songs.sketch_id"]

    def test_names_by_the_convention_of_the_models(self, make_app: MakeApp) -> None:
        env = ENV.replace(
            "connection=connection",
            "connection=connection, target_metadata=sa.MetaData(naming_convention={'ck': 'ck_%(constraint_name)s'})",
        )
        chain = [FIRST, Revision("second", "op.create_check_constraint('short', 'songs', sa.text('length(n) < 9'))")]
        database = make_app(chain, env)
        assert database.alembic("upgrade", "head").returncode == 0
        of_songs = "conrelid = 'songs'::regclass and contype = 'c'"
        assert witness_of(database).value(f"select conname from pg_constraint where {of_songs}") == "ck_short"
        assert status_twice(database)["verdict"] == "AT_HEAD"
        witness_of(database).execute("alter table songs drop constraint ck_short")
        assert "constraint ck_short on songs" in status_twice(database)["summary"]

    def test_a_temporary_table_is_nothing_that_stays(self, make_app: MakeApp) -> None:
        body = "op.create_table('scratch', sa.Column('id', sa.Integer), prefixes=['TEMPORARY'])"
        upgraded(make_app, "head", [FIRST, Revision("second", body)])
        assert status_twice(make_app([FIRST, Revision("second", body)]))["verdict"] == "AT_HEAD"

    def test_what_cannot_be_followed_and_drops_something_excuses_what_is_not_there(self, make_app: MakeApp) -> None:
        third = Revision("third", "for name in ['sketches']:\n    op.get_bind().execute(sa.text('drop table ' + name))")
        upgraded(make_app, "head", [*CHAIN, third])
        assert status_twice(make_app([*CHAIN, third]))["verdict"] == "AT_HEAD"

    def test_the_search_path_decides_which_table_is_meant(self, make_app: MakeApp) -> None:
        env = ENV.replace(
            "    context.configure(",
            "    connection.exec_driver_sql('set search_path = own')\n    connection.commit()\n    context.configure(",
        )
        database = make_app(CHAIN, env)
        witness_of(database).execute(
            f"create schema own authorization {database.user}", "create table public.sketches (id int)"
        )
        assert database.alembic("upgrade", "first").returncode == 0
        seen = run_module("alembic_status", options(database))
        assert seen["declared"]["partial"] == []

    def test_a_long_chain_is_not_collected_whole(self, make_app: MakeApp) -> None:
        chain = [FIRST, *(Revision(f"r{number:04}", "op.execute('select 1')") for number in range(300))]
        upgraded(make_app, "head", chain)
        database = make_app(chain)
        started = processor_seconds()
        assert database.alembic("current").returncode == 0
        plain = processor_seconds() - started
        started = processor_seconds()
        seen = run_module("alembic_status", options(database))
        assert seen["verdict"] == "AT_HEAD"
        assert processor_seconds() - started < 3 * plain + 2


def processor_seconds() -> float:
    """Of this process and of those that it has waited for: others may be at work on this machine."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class TestFindings:
    """What is told beside the verdict, each with the statement that puts it right: it is run, and that was it."""

    @pytest.mark.parametrize(
        ("name", "statements", "cure"),
        [
            (
                "constraint_not_valid",
                ['alter table songs add constraint "Short" check (length(n) < 9) not valid'],
                'ALTER TABLE "public"."songs" VALIDATE CONSTRAINT "Short";',
            ),
            (
                "sequence_behind",
                ["insert into songs values (7, 'x')"],
                """SELECT setval('"public"."songs_id_seq"', 7);""",
            ),
            (
                "invalid_index",
                [
                    "insert into songs (n) values ('x'), ('x')",
                    "create unique index concurrently ix_n on songs (n)",
                    "delete from songs",
                ],
                'REINDEX INDEX CONCURRENTLY "public"."ix_n";',
            ),
        ],
    )
    def test_a_finding_and_its_cure(self, make_app: MakeApp, name: str, statements: list[str], cure: str) -> None:
        upgraded(make_app, "head")
        database = make_app(CHAIN)
        witness = witness_of(database)
        assert findings(status_twice(database)) == {}
        for statement in statements:
            with contextlib.suppress(psycopg.errors.UniqueViolation):
                witness.execute(statement)
        seen = status_twice(database)
        assert seen["verdict"] == "AT_HEAD"
        assert list(findings(seen)) == [name]
        assert findings(seen)[name].endswith(cure)
        witness.execute(cure)
        assert findings(status_twice(database)) == {}

    def test_a_locked_table_keeps_nobody_waiting(self, make_app: MakeApp) -> None:
        upgraded(make_app, "head")
        database = make_app(CHAIN)
        with psycopg.connect(database.conninfo) as other:
            other.execute("lock table songs in access exclusive mode")
            seen = run_module("alembic_status", options(database))
        assert seen["verdict"] == "AT_HEAD"
        assert list(findings(seen)) == ["sequences_not_read"]
