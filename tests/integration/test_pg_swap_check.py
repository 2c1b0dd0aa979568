"""pg_swap_check: what hinders a swap, who is there and what is left, read beside the database, and never a write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replica.databases import AppDatabase
from replica.postgres import SUPERUSER, EmbeddedPostgres
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.stacks import database_options

RUN = "20251021t031500z_7f3a"


def check(database: AppDatabase, **changes: Any) -> dict[str, Any]:
    """Run the module twice, and require that nothing was written and that check mode is the same."""
    witness = Witness(database.server.conninfo())
    options = {"database": database_options(database, **{"admin_user": SUPERUSER, **changes})}
    before = witness.transactions()
    seen = run_module("pg_swap_check", options)
    again = run_module("pg_swap_check", options, check=True)
    assert witness.transactions() == before
    assert seen["changed"] is again["changed"] is False, seen
    without = ("sessions", "free_bytes")
    assert {k: v for k, v in seen.items() if k not in without} == {k: v for k, v in again.items() if k not in without}
    return seen


def test_a_database_that_can_be_swapped(broken: AppDatabase) -> None:
    seen = check(broken)
    witness = Witness(broken.server.conninfo())
    oid, size = witness.query(
        f"select oid::bigint, pg_database_size(oid) from pg_database where datname = '{broken.name}'"
    )[0]
    assert (seen["exists"], seen["oid"], seen["size_bytes"], seen["allow_connections"]) == (True, oid, size, True)
    assert (seen["clone_possible"], seen["rename_possible"], seen["reasons"]) == (True, True, [])
    assert (seen["unknown"], seen["sessions"], seen["leftovers"]) == ([], [], [])
    assert seen["free_bytes"] > seen["needed_bytes"] > size


def test_who_is_there(broken: AppDatabase) -> None:
    with psycopg.connect(broken.conninfo, application_name="the api") as somebody:
        somebody.execute("select 1")
        pid = somebody.info.backend_pid
        time.sleep(1.1)
        (session,) = check(broken)["sessions"]
    assert session.pop("query_start")
    assert session.pop("since_seconds") >= 1
    assert session == {
        "pid": pid, "user": "aiuser", "application": "the api", "address": None, "state": "idle in transaction",
    }  # fmt: skip


def test_a_closed_one_and_what_runs_have_left(broken: AppDatabase) -> None:
    witness = Witness(broken.server.conninfo())
    old, person = f"{broken.name}_old_{RUN}", f"{broken.name}_old_songs"
    try:
        witness.execute(f"create database {old} allow_connections false", f"create database {person}")
        witness.execute(f"alter database {broken.name} allow_connections false")
        seen = check(broken)
        oid, size = witness.query(
            f"select oid::bigint, pg_database_size(oid) from pg_database where datname = '{old}'"
        )[0]
    finally:
        witness.execute(f"drop database {old}", f"drop database {person}")
    assert (seen["exists"], seen["allow_connections"], seen["rename_possible"]) == (True, False, True)
    assert seen["leftovers"] == [{"name": old, "kind": "old", "oid": oid, "size_bytes": size, "open": False}]


def test_a_database_that_is_not_there(broken: AppDatabase) -> None:
    seen = check(broken, name="aiproxx")
    assert (seen["exists"], seen["oid"], seen["allow_connections"]) == (False, None, None)
    assert (seen["clone_possible"], seen["rename_possible"]) == (False, False)
    assert seen["reasons"] == ["There is no database aiproxx in this server."]


def test_a_role_that_may_not(broken: AppDatabase) -> None:
    witness = Witness(broken.server.conninfo())
    witness.execute("alter role aiuser nocreatedb")
    try:
        mine = check(broken, admin_user=None)
    finally:
        witness.execute("alter role aiuser createdb")
    assert (mine["clone_possible"], mine["rename_possible"]) == (False, False)
    assert [reason.split(".")[0] for reason in mine["reasons"]] == ["aiuser may not make or rename databases"]
    assert [sentence.split(":")[0] for sentence in mine["unknown"]] == ["The free space is unknown"]


def test_the_database_that_is_connected_to(broken: AppDatabase) -> None:
    seen = check(broken, maintenance_db=broken.name)
    assert [reason.split(". ")[0] for reason in seen["reasons"]] == [
        f"{broken.name} is the database to be connected to meanwhile"
    ]


@pytest.fixture(scope="module")
def logical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server in which transactions can be prepared, and changes be read logically."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("logical"), durable=False)
    try:
        server.create()
        with (server.data / "postgresql.conf").open("a") as file:
            file.write("wal_level = logical\nmax_prepared_transactions = 5\n")
        server.start()
        yield server
    finally:
        server.remove()


def hang_on(kind: str, witness: Witness) -> str:
    """Hang something on the database, and return what takes it away."""
    if kind == "prepared":
        with psycopg.connect(witness.conninfo, autocommit=True) as connection:
            connection.execute("begin; create table half (id int); prepare transaction 'half done'")
        return "rollback prepared 'half done'"
    if kind == "slot":
        witness.value("select pg_create_logical_replication_slot('cdc', 'pgoutput')")
        return "select pg_drop_replication_slot('cdc')"
    witness.execute(
        "create subscription sub connection 'dbname=nowhere' publication p with (connect = false, slot_name = none)"
    )
    return "drop subscription sub"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param("prepared", "Prepared transactions hold shop: half done.", id="prepared transaction"),
        pytest.param("slot", "Logical replication slots hang on shop: cdc.", id="logical slot"),
        pytest.param("subscription", "Subscriptions hang on shop: sub.", id="subscription"),
    ],
)
def test_row_51_what_hangs_on_it(
    logical: EmbeddedPostgres, tmp_path: Path, kind: str, reason: str, request: pytest.FixtureRequest
) -> None:
    """Fault 51; neither is a copy made, nor one that something hangs on dropped."""
    logical.execute(sql.SQL("create database shop"))
    request.addfinalizer(lambda: logical.drop_database("shop"))
    shop = AppDatabase(logical, tmp_path, "shop", SUPERUSER, "")
    witness = Witness(logical.conninfo("shop"))
    undo = hang_on(kind, witness)
    try:
        place = database_options(shop, password=None)
        seen = run_module("pg_swap_check", {"database": place})
        refused = run_module("pg_clone", {"database": place, "clone": f"shop_new_{RUN}"})
    finally:
        witness.execute(undo)
    # A slot and a subscription stay with a database that is renamed, and renamed back.
    assert (seen["clone_possible"], seen["rename_possible"]) == (False, kind != "prepared")
    assert [line for line in seen["reasons"] if line.startswith(reason)] == seen["reasons"]
    assert refused["impossible"] == seen["reasons"]
    assert f"No copy of shop can be made: {reason}" in refused["msg"]
    assert run_module("pg_swap_check", {"database": place})["reasons"] == []


def test_row_51_a_copy_that_a_slot_hangs_on_is_not_dropped(logical: EmbeddedPostgres, tmp_path: Path) -> None:
    target = f"shop_new_{RUN}"
    logical.execute(sql.SQL("create database {}").format(sql.Identifier(target)))
    witness = Witness(logical.conninfo(target))
    undo = hang_on("slot", witness)
    place = database_options(AppDatabase(logical, tmp_path, "shop", SUPERUSER, ""), password=None)
    options = {"database": place, "clone": target, "state": "absent"}
    try:
        refused = run_module("pg_clone", options)
        assert f"{target} is not dropped. Logical replication slots hang on {target}: cdc." in refused["msg"]
        assert witness.value("select current_database()") == target
    finally:
        witness.execute(undo)
    assert run_module("pg_clone", options)["changed"] is True


def test_it_signs_in_while_it_looks(broken: AppDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible.module_utils.alembic_recovery import neighbours, record

    (tmp_path / "alive").mkdir()
    seen: list[list[int]] = []
    look = neighbours.look

    def spy(*given: Any) -> Any:
        seen.append(record.processes(str(tmp_path)))
        return look(*given)

    monkeypatch.setattr(neighbours, "look", spy)
    options = {"database": database_options(broken), "run_directory": str(tmp_path)}
    assert run_module("pg_swap_check", options)["exists"] is True
    assert seen == [[os.getpid()]]
    assert record.processes(str(tmp_path)) == []
