"""alembic_migrate and alembic_status on a copy: the application's own URL still leads to production."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from replica.application import BASE, BROKEN, ENCODED, HEAD, State
from replica.databases import AppDatabase
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.songs import assert_only_the_revisions_have_changed_it
from tests.support.stacks import Deployment, application_options, database_options, witness_of

NEW = "aaaa00000001"
# A connection that the revision makes itself, by the application's own URL.
OWN_CONNECTION = (
    "import os\n"
    "with sa.create_engine(os.environ['DATABASE_URL']).begin() as mine:\n"
    "    mine.execute(sa.text('create table made_by_its_own_connection ()'))"
)
CONNECTS = "    connectable = engine_from_config("
# Ways in which an env.py comes by its connection, in place of the replica's.
DRIVER = "__import__('psycopg')"
WAYS = {
    "an event that sets the database": (
        "    from sqlalchemy import create_engine, event\n"
        "    connectable = create_engine(os.environ['DATABASE_URL'])\n"
        "    @event.listens_for(connectable, 'do_connect')\n"
        "    def choose(dialect, record, cargs, cparams):\n"
        "        cparams['dbname'] = {name!r}\n"
        "    _unused = dict("
    ),
    "a creator": (
        "    from sqlalchemy import create_engine\n"
        "    url = os.environ['DATABASE_URL'].replace('postgresql+psycopg:', 'postgresql:')\n"
        f"    connectable = create_engine('postgresql+psycopg://', creator=lambda: {DRIVER}.connect(url))\n"
        "    _unused = dict("
    ),
    "an event that connects": (
        "    from sqlalchemy import create_engine, event\n"
        "    url = os.environ['DATABASE_URL'].replace('postgresql+psycopg:', 'postgresql:')\n"
        "    connectable = create_engine(os.environ['DATABASE_URL'])\n"
        "    @event.listens_for(connectable, 'do_connect')\n"
        "    def connect(dialect, record, cargs, cparams):\n"
        f"        return {DRIVER}.connect(url)\n"
        "    _unused = dict("
    ),
}
FOLLOWED = {
    "arguments that name it": (
        "    from sqlalchemy import create_engine\n"
        "    url = os.environ['DATABASE_URL'].replace('postgresql+psycopg:', 'postgresql:')\n"
        "    parts = __import__('psycopg.conninfo').conninfo.conninfo_to_dict(url)\n"
        "    connectable = create_engine('postgresql+psycopg://', connect_args=parts)\n"
        "    _unused = dict("
    ),
    "an event that puts it first": (
        "    from sqlalchemy import create_engine, event\n"
        "    url = os.environ['DATABASE_URL'].replace('postgresql+psycopg:', 'postgresql:')\n"
        "    connectable = create_engine('postgresql+psycopg://')\n"
        "    @event.listens_for(connectable, 'do_connect')\n"
        "    def first(dialect, record, cargs, cparams):\n"
        "        cargs[:] = [url]\n"
        "    _unused = dict("
    ),
}


@pytest.fixture
def production(make_database: Callable[..., AppDatabase]) -> AppDatabase:
    """Where the application's URL leads."""
    return make_database(State.UNTOUCHED)


@pytest.fixture
def copy(make_database: Callable[..., AppDatabase], production: AppDatabase) -> AppDatabase:
    """A database like it in the same server."""
    return make_database(State.UNTOUCHED)


def written(witness: Witness) -> int:
    """How many rows, those of the catalog included, have been written in a database so far."""
    counters = "n_tup_ins + n_tup_upd + n_tup_del"
    # Not those that all databases share: the copy and its roles are in them.
    own = "relid in (select oid from pg_class where not relisshared)"
    return int(witness.value(f"select sum({counters}) from pg_stat_all_tables where {own}"))


@pytest.fixture
def untouched(production: AppDatabase) -> Iterator[Witness]:
    """Production, which is as it was when the test is over."""
    witness = witness_of(production)
    before, writes = witness.look(), written(witness)
    yield witness
    after = witness.look()
    # Not its transaction counter: that is the server's, and the copy is in it.
    assert dataclasses.replace(after, transactions=0) == dataclasses.replace(before, transactions=0)
    assert (written(witness), witness.versions()) == (writes, [BROKEN])


def stack(production: AppDatabase, copy: AppDatabase, deployment: Deployment | None = None, **more: Any) -> Any:
    """The options with which a module works on the copy."""
    directory = deployment.directory if deployment else None
    application = application_options(production, directory, redirect=copy.name)
    return {"database": database_options(copy), "application": application, **more}


def through(deployment: Deployment, way: str, production: AppDatabase) -> None:
    """Let env.py make its connection in another way."""
    deployment.change_env({CONNECTS: way.format(name=production.name)})


def test_the_four_steps_change_the_copy_alone(production: AppDatabase, copy: AppDatabase, untouched: Witness) -> None:
    witness = witness_of(copy)
    before = witness.look()
    options = stack(production, copy)

    planned = run_module("alembic_migrate", options, check=True, diff=True)
    assert (planned["changed"], planned["before"], planned["after"]) == (True, [BROKEN], [HEAD])
    assert "CREATE TABLE song_sketches" in planned["plan"][HEAD]["sql"]
    assert witness.look() == before

    done = run_module("alembic_migrate", options)
    assert (done["changed"], done["after"]) == (True, [HEAD])
    after = witness.look()
    assert_only_the_revisions_have_changed_it(before, after)

    for check in (True, False):
        assert run_module("alembic_migrate", options, check=check)["changed"] is False
    assert witness.look() == after

    back = run_module("alembic_migrate", {**options, "direction": "down", "target": BASE})
    assert back["after"] == witness.versions() == [BASE]
    assert untouched.versions() == [BROKEN]


def test_the_status_is_that_of_the_copy(production: AppDatabase, copy: AppDatabase, untouched: Witness) -> None:
    run_module("alembic_migrate", stack(production, copy))
    seen = run_module("alembic_status", stack(production, copy))
    assert (seen["verdict"], seen["current"], seen["database"]["name"]) == ("AT_HEAD", [HEAD], copy.name)
    assert seen["refusals"] == []
    assert untouched.versions() == [BROKEN]


def test_without_a_redirect_the_contradiction_is_seen(production: AppDatabase, copy: AppDatabase) -> None:
    options = {"database": database_options(copy), "application": application_options(production)}
    (refusal,) = run_module("alembic_status", options)["refusals"]
    assert f"go to database {production.name} " in refusal
    before = witness_of(production).look()
    assert run_module("alembic_migrate", options)["failed"] is True
    assert witness_of(production).look() == before


def test_a_connection_of_a_revisions_own(
    production: AppDatabase, copy: AppDatabase, deployment: Deployment, untouched: Witness
) -> None:
    deployment.add(NEW, OWN_CONNECTION)
    done = run_module("alembic_migrate", stack(production, copy, deployment))
    assert done["after"] == witness_of(copy).versions() == [NEW]
    assert witness_of(copy).value("select to_regclass('made_by_its_own_connection') is not null") is True
    assert untouched.value("select to_regclass('made_by_its_own_connection') is null") is True


@pytest.mark.parametrize("way", FOLLOWED.values(), ids=FOLLOWED)
def test_ways_to_a_connection_that_are_redirected(
    production: AppDatabase, copy: AppDatabase, deployment: Deployment, untouched: Witness, way: str
) -> None:
    through(deployment, way, production)
    done = run_module("alembic_migrate", stack(production, copy, deployment))
    assert done.get("after") == witness_of(copy).versions() == [HEAD], done
    assert untouched.versions() == [BROKEN]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ways_to_a_connection_that_are_refused(
    production: AppDatabase, copy: AppDatabase, deployment: Deployment, untouched: Witness, way: str
) -> None:
    through(deployment, way, production)
    before = witness_of(copy).look()
    for module in ("alembic_status", "alembic_migrate"):
        seen = run_module(module, stack(production, copy, deployment))
        words = seen["summary"] if module == "alembic_status" else seen["msg"]
        assert f"was to go to {copy.name}, and went to {production.name}" in words
    assert witness_of(copy).look() == before


def test_a_revision_that_escapes_is_stopped_before_its_first_word(
    production: AppDatabase, copy: AppDatabase, deployment: Deployment, untouched: Witness
) -> None:
    """What was proved before it stays in the copy."""
    deployment.add(
        NEW,
        "import os, psycopg\n"
        "url = os.environ['DATABASE_URL'].replace('postgresql+psycopg:', 'postgresql:')\n"
        "engine = sa.create_engine('postgresql+psycopg://', creator=lambda: psycopg.connect(url))\n"
        "with engine.begin() as mine:\n"
        "    mine.execute(sa.text('create table made_by_its_own_connection ()'))",
    )
    seen = run_module("alembic_migrate", stack(production, copy, deployment))
    assert f"was to go to {copy.name}, and went to {production.name}" in seen["msg"]
    assert [step["revision"] for step in seen["applied"]] == [ENCODED, HEAD]
    assert witness_of(copy).versions() == [HEAD]
