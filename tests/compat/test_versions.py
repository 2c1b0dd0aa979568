"""Each verdict, the recovery and the way back, in a product of versions: Alembic, SQLAlchemy, driver, PostgreSQL.

All pairs of two versions are tried in `make test`; `make compat` tries the whole product.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica.postgres import EmbeddedPostgres
from tests.compat.report import Record
from tests.compat.versions import Combination, pairs, pairwise, whole
from tests.support.evidence import Seen
from tests.support.layout_app import PASSWORD, ROLE, LayoutApp
from tests.support.modules import run_module

WHOLE = bool(os.environ.get("COMPAT_ALL"))
CHOSEN = [one for one in whole() if not one.impossible] if WHOLE else pairwise()

SYNC = """
import os

import sqlalchemy as sa
from alembic import context

models = sa.MetaData()
<before>
with sa.create_engine(os.environ["DATABASE_URL"], poolclass=sa.pool.NullPool).connect() as connection:
    <first>
    context.configure(connection=connection, target_metadata=models)
    with context.begin_transaction():
        context.run_migrations()
"""
ASYNC = """
import asyncio
import os

import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

models = sa.MetaData()
<before>


def migrate(connection):
    <first>
    context.configure(connection=connection, target_metadata=models)
    with context.begin_transaction():
        context.run_migrations()


async def online():
    engine = create_async_engine(os.environ["DATABASE_URL"], poolclass=sa.pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(online())
"""
SKETCHES = """op.create_table('sketches', sa.Column('id', sa.Integer, primary_key=True))
op.add_column('songs', sa.Column('n', sa.Integer))"""
HALF = """op.create_table('sketches', sa.Column('id', sa.Integer, primary_key=True))
with op.get_context().autocommit_block():
    op.execute("select 1")
op.execute("select 1 / 0")
op.add_column('songs', sa.Column('n', sa.Integer))"""
_UNDO = "op.drop_column('songs', 'n')\nop.drop_table('sketches')"


class Story(LayoutApp):
    """One application in one combination of versions, told step by step."""

    def __init__(self, combination: Combination, server: EmbeddedPostgres, directory: Path) -> None:
        self.combination = combination
        python = str(combination.python)
        super().__init__(directory, server, "versions", command=(python, "-m", "alembic"))
        self.environment = {"DATABASE_URL": combination.url(server, self.database)}
        self.options = {"python": python}
        self.ini()
        self.settings()

    def settings(self, *, before: str = "", first: str = "pass") -> None:
        """Write env.py: `before` is done when it is read, `first` on the connection before `configure()`."""
        text = ASYNC if self.combination.driver == "asyncpg" else SYNC
        self.write("migrations/env.py", text.replace("<before>", before).replace("<first>", first))

    def has_code(self, *revisions: str, second: str = SKETCHES) -> None:
        """Deploy: `first` and `second` on each other, `third` and `branch` on `second`."""
        for path in (self.directory / "migrations" / "versions").glob("*.py"):
            path.unlink()
        (self.directory / "migrations" / "versions").mkdir(exist_ok=True)
        if "first" in revisions:
            self.revision("first", None, "op.create_table('songs', sa.Column('id', sa.Integer, primary_key=True))")
        if "second" in revisions:
            self.revision("second", "first", second, undo=_UNDO)
        for name in ("third", "branch"):
            if name in revisions:
                self.revision(name, "second")

    def verdict(self, **more: Any) -> str:
        """Return the verdict; finding it has written nothing."""
        return str(self.status(**more)["verdict"])

    def fails(self, *arguments: str) -> str:
        """Run the application's own command, which must fail; return what it said."""
        with pytest.raises(AssertionError) as said:
            self.call(*arguments)
        return str(said.value)


@pytest.fixture
def story(
    request: pytest.FixtureRequest, versioned_server: Callable[[str], EmbeddedPostgres], tmp_path: Path
) -> Iterator[Story]:
    """The application with an empty database."""
    combination: Combination = request.param
    server = versioned_server(combination.postgresql)
    server.create_database("versions", ROLE)
    yield Story(combination, server, tmp_path)
    server.drop_database("versions")


@pytest.mark.slow
@pytest.mark.parametrize(
    "story",
    [
        # Each server is started by one worker only.
        pytest.param(one, id=str(one), marks=pytest.mark.xdist_group(f"versions {one.postgresql}"))
        for one in CHOSEN
    ],
    indirect=True,
)
def test_each_verdict_the_recovery_and_the_way_back(story: Story, tmp_path: Path, record: Record) -> None:
    states_before_a_recovery(story)
    what_a_revision_left(story)
    a_lock_of_somebody_else(story)
    before = story.witness.look()
    a_recovery(story)
    drift(story, tmp_path / "baselines")
    states_that_no_upgrade_helps(story)
    the_way_back(story, before)
    story.witness.execute("drop table alembic_version")
    assert story.verdict() == "UNVERSIONED"
    record("combination", dataclasses.asdict(story.combination))


def states_before_a_recovery(story: Story) -> None:
    """Below head, or nowhere; code that is not right."""
    story.has_code("first", "second")
    assert story.verdict() == "EMPTY"
    story.call("upgrade", "first")
    assert story.verdict() == "BEHIND"
    story.has_code()
    assert story.verdict() == "FOREIGN"
    story.has_code("first", "second", "third", "branch")
    assert story.verdict() == "MULTIPLE_HEADS"
    story.settings(before="raise RuntimeError('no settings')")
    assert story.verdict() == "UNREADABLE"
    story.settings()


def what_a_revision_left(story: Story) -> None:
    """Trap 4: an autocommit block, and then an error."""
    story.has_code("first", "second", second=HALF)
    assert "division by zero" in story.fails("upgrade", "head")
    assert story.verdict() == "PARTIAL"
    story.witness.execute("drop table sketches")


def a_lock_of_somebody_else(story: Story) -> None:
    """Trap 15: it is named, and all is as it was."""
    story.has_code("first", "second")
    login = {"host": str(story.server.socket_dir), "dbname": story.database, "user": ROLE, "password": PASSWORD}
    with psycopg.connect(**login, application_name="nightly report") as holder:
        holder.execute("select count(*) from songs")
        refused = story.migrate(lock_timeout=1, lock_attempts=1)
        pid = holder.info.backend_pid
    assert refused["sqlstate"] == "55P03", refused
    assert f"{pid} ({ROLE}, nightly report, idle in transaction, " in refused["msg"]
    assert (story.rows(), story.witness.has("sketches")) == (["first"], False)
    story.witness.execute("insert into songs values (7)")


def a_recovery(story: Story) -> None:
    """Traps 2 and 3: what is done before `configure()` has begun a transaction that nobody commits."""
    story.settings(first="connection.execute(sa.text('select 1'))")
    done = story.migrate()
    assert not done.get("failed"), done
    assert [step["revision"] for step in done["applied"]] == ["second"]
    assert story.rows() == ["second"]
    assert story.witness.has("sketches")
    assert story.witness.has("songs.n")
    story.settings()


def drift(story: Story, baselines: Path) -> None:
    """Only where the models are compared, and only what came after the baseline."""
    known = {"compare_models": True, "baselines": str(baselines)}
    seen = story.status(**known)
    assert seen["verdict"] == "AT_HEAD"
    assert run_module("alembic_baseline", {"directory": str(baselines), "status": seen})["changed"] is True
    story.witness.execute("create table by_hand ()")
    assert story.verdict(**known) == "DRIFTED"
    story.witness.execute("drop table by_hand")


def states_that_no_upgrade_helps(story: Story) -> None:
    """Version and tables, or version and code, do not go together."""
    story.has_code("first")
    assert story.verdict() == "AHEAD"
    story.has_code("first", "second", "third")
    story.witness.execute("insert into alembic_version values ('branch')")
    assert story.verdict() == "DIVERGED"
    story.witness.execute("delete from alembic_version where version_num = 'branch'")
    story.call("stamp", "third")
    assert story.verdict() == "STAMPED_NOT_APPLIED"
    story.call("stamp", "second")


def the_way_back(story: Story, before: Seen) -> None:
    """Catalog and content are what they were."""
    undone = story.migrate(direction="down", target="first")
    assert not undone.get("failed"), undone
    after = story.witness.look()
    assert story.rows() == ["first"]
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)


def test_all_possible_pairs_of_versions_are_tried() -> None:
    possible = {pair for one in whole() if not one.impossible for pair in pairs(one)}
    assert {pair for one in CHOSEN for pair in pairs(one)} == possible
    assert WHOLE or len(CHOSEN) < 20


_IMPOSSIBLE = {one.impossible: one for one in whole() if one.impossible}
_PROGRAM = "import alembic.context; import sqlalchemy; sqlalchemy.create_engine('postgresql+psycopg://')"


@pytest.mark.parametrize("reason", _IMPOSSIBLE)
def test_what_is_said_to_be_impossible_is(reason: str, record: Record) -> None:
    python = _IMPOSSIBLE[reason].python
    done = subprocess.run([python, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert re.search(
        r"^ImportError: cannot import name .* from 'sqlalchemy|"
        r"^sqlalchemy.exc.NoSuchModuleError: Can't load plugin: sqlalchemy.dialects:postgresql.psycopg",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
    record("impossible", reason)
