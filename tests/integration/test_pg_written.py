"""pg_written: what was written since a transaction, each figure against a reading of our own."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import postgres
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.runtime import HostRuntime

from replica.databases import AppDatabase
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.writes import EXPECTED, prepare, seen_by, write


@pytest.fixture(params=["psycopg", "psql"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How SQL is asked."""
    if request.param == "psql":
        monkeypatch.setitem(sys.modules, "psycopg", None)
    return str(request.param)


@pytest.fixture
def swapped(broken: AppDatabase, witness: Witness) -> dict[str, Any]:
    """The options for what was written since now."""
    return prepare(broken, witness)


def test_nothing_was_written(swapped: dict[str, Any], witness: Witness, way: str) -> None:
    before = witness.look()
    for check in (True, False):
        result = run_module("pg_written", swapped, check=check)
        assert result["changed"] is False
        assert (result["tables"], result["total_written"], result["total_fewer"]) == ([], 0, 0)
        assert (result["sentences"], result["exact"]) == ([], True)
    assert witness.look() == before


def test_row_52_what_was_written(swapped: dict[str, Any], witness: Witness) -> None:
    write(witness)
    before = witness.look()
    result = run_module("pg_written", swapped)
    assert seen_by(result) == EXPECTED
    assert (result["total_written"], result["total_fewer"]) == (9, 1)
    assert "no_key: 2 rows written since, 1 fewer than then." in result["sentences"]
    assert "songs: 3 rows written since, as many as then." in result["sentences"]
    assert witness.look() == before
    # Frozen rows keep their transaction's number.
    witness.execute("vacuum freeze")
    assert seen_by(run_module("pg_written", swapped)) == EXPECTED


def test_without_the_counts(swapped: dict[str, Any], witness: Witness) -> None:
    witness.execute("delete from songs where id = (select id from songs limit 1)", "insert into no_key values ('x')")
    result = run_module("pg_written", {**swapped, "row_counts_before": None})
    assert seen_by(result) == {"public.no_key": (1, None, False)}
    assert run_module("pg_written", swapped)["total_fewer"] == 1


def test_a_table_that_came_and_one_that_went(swapped: dict[str, Any], broken: AppDatabase, witness: Witness) -> None:
    witness.execute(
        "create table come (id int)", "insert into come values (1)", "drop materialized view seen", "drop table no_key"
    )
    witness.execute(f"grant select on come to {broken.user}")
    result = run_module("pg_written", swapped)
    assert seen_by(result) == {
        "public.come": (1, 1, False),
        "public.no_key": (0, -5, False),
        "public.seen": (0, -1, False),
    }


@pytest.mark.parametrize("module", ["pg_written", "pg_export"])
@pytest.mark.parametrize(
    ("since", "said"),
    [("99999999999", "still to come"), ("x", "is not the number of a transaction")],
)
def test_refused(swapped: dict[str, Any], tmp_path: Path, module: str, since: str, said: str) -> None:
    options = {key: value for key, value in swapped.items() if key != "row_counts_before"}
    more = {"path": str(tmp_path / "rows" / "x.jsonl")} if module == "pg_export" else {}
    result = run_module(module, {**options, **more, "since_xid": since})
    assert result["failed"] is True
    assert said in result["msg"]
    assert list((tmp_path / "rows").glob("*")) == []


def test_hidden_rows_are_an_error(swapped: dict[str, Any], broken: AppDatabase, witness: Witness) -> None:
    witness.execute("alter table no_key enable row level security")
    result = run_module("pg_written", swapped)
    assert "row-level security" in result["msg"]


class TestLines:
    @pytest.fixture
    def database(self, broken: AppDatabase, way: str) -> postgres.Database:
        login = postgres.Login(broken.name, broken.user, str(broken.server.socket_dir), password=broken.password)
        return postgres.open_database(login, HostRuntime(), bin_dir=str(broken.server.bin_dir))

    def test_rows_come_one_by_one(self, database: postgres.Database) -> None:
        tracemalloc.start()
        with database.snapshot() as snapshot:
            rows = 0
            for text in snapshot.lines("select i, repeat('x', 1000) as t from generate_series(1, 60000) i;"):
                rows += 1
                assert text.startswith("{")
            peak = tracemalloc.get_traced_memory()[1]
            assert snapshot.ask("select 1 as one") == [{"one": 1}]
            assert list(snapshot.lines("select 1 as one where false")) == []
        tracemalloc.stop()
        assert rows == 60000
        assert peak < 20_000_000, "60 MB went through"

    @pytest.mark.parametrize(
        ("query", "state"),
        [("select nothing from songs", "42703"), ("select 1 / (i - 5000) from generate_series(1, 9000) i", "22012")],
    )
    def test_errors(self, database: postgres.Database, query: str, state: str) -> None:
        with pytest.raises(DatabaseError) as raised, database.snapshot() as snapshot:
            list(snapshot.lines(query))
        assert raised.value.details["sqlstate"] == state

    def test_it_only_reads(self, database: postgres.Database) -> None:
        with pytest.raises(DatabaseError) as raised, database.snapshot() as snapshot:
            list(snapshot.lines("delete from songs returning 1"))
        assert raised.value.details["sqlstate"] in ("42601", "0A000", "25006")
