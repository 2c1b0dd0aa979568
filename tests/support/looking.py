"""A status that has written nothing: the module run twice, with what the server itself counts before and after."""

from __future__ import annotations

from typing import Any

from replica.databases import AppDatabase
from tests.support.evidence import files
from tests.support.modules import run_module
from tests.support.stacks import options, witness_of

_WRITTEN = """
select 'database', tup_inserted, tup_updated, tup_deleted from pg_stat_database where datname = current_database()
union all
select relid::regclass::text, n_tup_ins, n_tup_upd, n_tup_del from pg_stat_all_tables order by 1
"""


def status_twice(database: AppDatabase, **more: Any) -> dict[str, Any]:
    """Run `alembic_status` twice, and require the same answer, and that nothing at all was written.

    Catalog, rows, content, sequences, the server's next transaction, its counters of written rows, and the files of
    the application are the same before and after.
    """
    witness = witness_of(database)
    witness.wait_until_alone()
    before = (witness.look(), witness.query(_WRITTEN), files(database.application, without=["__pycache__"]))
    answers = [run_module("alembic_status", options(database, **{"limit": "demo", **more})) for _ in range(2)]
    witness.wait_until_alone()
    after = (witness.look(), witness.query(_WRITTEN), files(database.application, without=["__pycache__"]))
    assert after == before
    assert answers[0] == answers[1]
    assert answers[0]["changed"] is False
    return answers[0]


def findings(seen: dict[str, Any]) -> dict[str, str]:
    """Return the findings' texts by name."""
    return {item["name"]: item["text"] for item in seen["findings"]}
