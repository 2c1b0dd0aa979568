"""pg_old_database: what runs have kept is listed; only that, and only by its exact name, is dropped."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from ansible.module_utils.alembic_recovery import naming

from replica.postgres import SUPERUSER
from tests.support.evidence import Witness
from tests.support.fenced import FencedStack
from tests.support.modules import run_module
from tests.support.stacks import database_options


def old(stack: FencedStack, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module."""
    options = {"database": database_options(stack.database, admin_user=SUPERUSER), **more}
    return run_module("pg_old_database", options, check=check)


def kept(stack: FencedStack, kind: str = "old", run_id: str = "20251001T031500Z-7f3a1c") -> str:
    """A database as a run keeps it."""
    name = naming.database(stack.database.name, kind, run_id)
    stack.admin(f'create database "{name}" owner {stack.database.user}')
    stack.admin(f'alter database "{name}" allow_connections false')
    return name


def test_in_four_steps(stack: FencedStack) -> None:
    first, second = kept(stack), kept(stack, "replaced", "21010101T000000Z-000000")
    kept(stack, "new", "20251001T031500Z-7f3a1c")
    before = stack.databases()
    transactions = Witness(stack.database.server.conninfo()).transactions()

    planned = old(stack, check=True, state="absent", name=first)
    assert (planned["changed"], planned["dropped"]) == (True, first), planned
    assert stack.databases() == before
    assert Witness(stack.database.server.conninfo()).transactions() == transactions

    done = old(stack, state="absent", name=first)
    assert (done["changed"], done["dropped"], done["databases"]) == (True, first, planned["databases"]), done
    assert stack.databases() == {name: seen for name, seen in before.items() if name != first}

    again = old(stack, state="absent", name=first)
    assert (again["changed"], again["dropped"]) == (False, ""), again
    assert [item["name"] for item in again["databases"]] == [second]
    planned = old(stack, check=True, state="absent", name=first)
    assert planned["changed"] is False


def test_what_is_kept_is_listed_with_age_and_size(stack: FencedStack) -> None:
    first, second = kept(stack), kept(stack, "replaced", "21010101T000000Z-000000")
    before = stack.databases()

    seen = old(stack, keep_days=30)

    assert seen["changed"] is False
    assert [item["name"] for item in seen["databases"]] == [first, second]
    one, other = seen["databases"]
    assert (one["kind"], one["open"], one["due"], one["oid"]) == ("old", False, True, before[first][0])
    assert one["kept_at"] == "2025-10-01T03:15:00+00:00"
    assert one["days"] > 30
    assert one["size_bytes"] > 1 << 20
    assert (other["kind"], other["due"]) == ("replaced", False)
    assert stack.databases() == before


def test_everything_else_is_refused(stack: FencedStack) -> None:
    live = stack.database.name
    names = [
        live, "postgres", "template1", f"{live}_old_songs", kept(stack, "new"), kept(stack, "aside"),
        naming.database("another", "old", "20251001T031500Z-7f3a1c"),
    ]  # fmt: skip
    before = stack.databases()
    for name in names:
        for check in (True, False):
            refused = old(stack, check=check, state="absent", name=name)
            assert refused["failed"] is True, name
            assert "it is not dropped" in refused["msg"]
    assert stack.databases() == before


def test_who_is_in_it_is_ended(stack: FencedStack) -> None:
    name = kept(stack)
    stack.admin(f'alter database "{name}" allow_connections true')
    with psycopg.connect(stack.database.server.conninfo(name)) as somebody:
        assert old(stack, state="absent", name=name)["changed"] is True
        with pytest.raises(psycopg.OperationalError):
            somebody.execute("select 1")
    assert name not in stack.databases()


def test_one_on_which_something_hangs_is_not_dropped(stack: FencedStack) -> None:
    name = kept(stack)
    stack.admin(f'alter database "{name}" allow_connections true')
    with psycopg.connect(stack.database.server.conninfo(name), autocommit=True) as somebody:
        somebody.execute("create subscription news connection 'dbname=nowhere' publication p with (connect = false)")
        try:
            for check in (True, False):
                refused = old(stack, check=check, state="absent", name=name)
                assert refused["failed"] is True, refused
                assert "Subscriptions hang on" in refused["msg"]
            assert name in stack.databases()
            assert somebody.execute("select 1").fetchone() == (1,)
        finally:
            somebody.execute("alter subscription news set (slot_name = none)")
            somebody.execute("drop subscription news")
