"""Revisions that fail in every way, in whole runs: found in a rehearsal or on the clone; production is as it was."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from replica.application import BROKEN, HEAD
from tests.support.evidence import Seen
from tests.support.host_runs import BreakableRuns, kept

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.xdist_group("broken revisions")]

CHANGED = "op.execute(\"update songs set title = 'lost'\")\n"
FOR_REAL = "current_database() not like '%_scratch_%'"
#: What the upgrade does, and what is said of it.
DETERMINISTIC = {
    "DDL after data": (
        CHANGED + "op.execute('alter table songs add constraint once unique (no_such)')",
        'column "no_such" named in key does not exist',
    ),
    "index concurrently": (
        """\
        with op.get_context().autocommit_block():
            op.execute('create unique index concurrently ix_once on songs (user_id)')
        """,
        'could not create unique index "ix_once"',
    ),
    "autocommit block": (
        """\
        op.execute('alter table songs add column half text')
        with op.get_context().autocommit_block():
            op.execute('create index concurrently ix_half on songs (half)')
        op.execute('select 1/0')
        """,
        "division by zero",
    ),
}
#: Not in a rehearsal, whose copy has another name: what only the real run shows.
ONLY_FOR_REAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "killed backend": (
        CHANGED + f'op.execute("select pg_terminate_backend(pg_backend_pid()) where {FOR_REAL}")',
        {},
        "AdminShutdown",
    ),
    "statement timeout": (
        CHANGED + f'op.execute("select pg_sleep(20) where {FOR_REAL}")',
        {"migrate_statement_timeout": 2},
        "canceling statement due to statement timeout",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakableRuns]:
    with kept(tmp_path_factory.mktemp("broken"), BreakableRuns) as runs:
        yield runs


@pytest.fixture
def runs(made: BreakableRuns) -> BreakableRuns:
    made.reset()
    return made


def is_as_before(runs: BreakableRuns, before: Seen) -> None:
    after = runs.witness.look()
    assert runs.witness.versions() == [BROKEN]
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
    assert runs.databases() == [("aiproxy", True)]
    assert runs.running() >= {"api", "worker"}


@contextlib.contextmanager
def broken(runs: BreakableRuns, body: str) -> Iterator[None]:
    """The last revision does this in the end."""
    file = next((runs.replica.application / "src/alembic/versions").glob(f"{HEAD}_*.py"))
    good = file.read_text()
    assert good.count("\n\n\ndef downgrade") == 1
    more = textwrap.indent(textwrap.dedent(body), "    ")
    file.write_text(good.replace("\n\n\ndef downgrade", f"\n{more}\n\n\ndef downgrade"))
    try:
        yield
    finally:
        file.write_text(good)


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_it_is_found_by_the_rehearsal_and_without_one_on_the_clone(runs: BreakableRuns, kind: str) -> None:
    body, words = DETERMINISTIC[kind]
    before, processes = runs.witness.look(), runs.processes()
    with broken(runs, body):
        found = runs.recover()
        assert found.code == 2, found.text
        assert words in found.failure
        assert "No service was stopped." in found.failure
        assert runs.processes() == processes, "the application noticed"
        is_as_before(runs, before)

        failed = runs.recover(variables={"recovery_rehearse": False})
        assert failed.code == 2, failed.text
        assert words in failed.failure
        assert "Taken back: the database is open again as it was before" in failed.failure
        is_as_before(runs, before)


@pytest.mark.parametrize("kind", ONLY_FOR_REAL)
def test_what_only_the_real_run_shows_is_taken_back(runs: BreakableRuns, kind: str) -> None:
    body, variables, words = ONLY_FOR_REAL[kind]
    before = runs.witness.look()
    with broken(runs, body):
        failed = runs.recover(variables=variables)
        assert failed.code == 2, failed.text
        assert "Apply the missing revisions, one by one" in failed.failure, "the rehearsal has found it"
        assert words in failed.failure
        assert "Taken back: the database is open again as it was before" in failed.failure
        is_as_before(runs, before)
