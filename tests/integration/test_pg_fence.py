"""pg_fence: closed to everybody, superusers included; strangers named, ended, or let alone; proved from outside."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from ansible.module_utils.alembic_recovery import fence as module_fence

from tests.support.evidence import Witness
from tests.support.fenced import FencedStack
from tests.support.modules import run_module


def fence(stack: FencedStack, state: str = "closed", *, check: bool = False, **more: object) -> dict[str, object]:
    return run_module("pg_fence", stack.options(state=state, patience=1, **more), check=check)


def test_check_real_check_real(stack: FencedStack) -> None:
    before = stack.databases()

    planned = fence(stack, check=True)
    assert planned["changed"] is True, planned
    assert planned["diff"] == {"before": "open\n", "after": "closed\n"}
    assert stack.databases() == before

    assert fence(stack)["changed"] is True
    assert stack.databases() == {stack.database.name: (before[stack.database.name][0], False)}
    for login in (stack.database.conninfo, stack.database.server.conninfo(stack.database.name)):
        with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
            psycopg.connect(login)
    for check in (True, False):
        assert fence(stack, check=check)["changed"] is False

    assert fence(stack, "open", check=True)["changed"] is True
    assert stack.databases() != before
    assert fence(stack, "open")["changed"] is True
    assert stack.databases() == before
    for check in (True, False):
        assert fence(stack, "open", check=check)["changed"] is False


def test_row_46_strangers_are_named_and_the_database_is_opened_again(stack: FencedStack) -> None:
    with psycopg.connect(stack.database.conninfo, application_name="metabase") as connection:
        refused = fence(stack)

        assert refused["failed"] is True
        assert f"process {connection.info.backend_pid} (aiuser, metabase, from this host, idle" in str(refused["msg"])
        assert "-e recovery_unknown_clients=end" in str(refused["msg"])
        assert connection.execute("select 1").fetchone() == (1,), "its session was ended"
        psycopg.connect(stack.database.conninfo).close()


def test_who_goes_by_himself_is_no_stranger(stack: FencedStack) -> None:
    """A health check is there for some milliseconds; it must not be what ends a run before it has begun."""
    addresses = ["192.0.2.1"]
    with psycopg.connect(stack.database.conninfo, application_name="metabase"):
        assert "metabase" in str(fence(stack, check=True, addresses=addresses)["msg"])
    seen = module_fence.strangers
    with psycopg.connect(stack.database.conninfo, application_name="pg_isready") as passing:

        def strangers(*arguments: Any, **keywords: Any) -> list[module_fence.Session]:
            found = seen(*arguments, **keywords)
            if not passing.closed:
                assert found, "it is there when it is looked for first"
                passing.close()
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module_fence, "strangers", strangers)
            planned = fence(stack, check=True, addresses=addresses)
        assert passing.closed
    assert planned["changed"] is True, planned


@pytest.mark.parametrize(
    "more",
    [{"unknown_clients": "end"}, {"known_clients": ["metabase/aiuser"]}],
    ids=["told to end them", "described"],
)
def test_row_46_sessions_are_ended_where_that_is_wanted(stack: FencedStack, more: dict[str, object]) -> None:
    with psycopg.connect(stack.database.conninfo, application_name="metabase") as connection:
        done = fence(stack, **more)

        assert done["changed"] is True, done
        assert "metabase" in str(done["ended"])
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_row_46_clients_that_reconnect_all_the_time_do_not_come_back(stack: FencedStack) -> None:
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            try:
                psycopg.connect(stack.database.conninfo, application_name="knocking").close()
            except psycopg.OperationalError:
                continue

    threads = [threading.Thread(target=knock) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert fence(stack, unknown_clients="end")["changed"] is True
        Witness(stack.database.server.conninfo()).wait_until_left(stack.database.name)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_row_47_a_superuser_who_may_not_be_ended_is_named_and_it_is_opened_again(stack: FencedStack) -> None:
    with psycopg.connect(stack.database.server.conninfo(stack.database.name), application_name="root") as connection:
        refused = fence(stack, unknown_clients="end")

        assert refused["failed"] is True
        assert "root" in str(refused["msg"])
        assert connection.execute("select 1").fetchone() == (1,)
        assert stack.databases()[stack.database.name][1] is True


def test_a_pattern_that_is_none_and_a_database_that_is_not_there(stack: FencedStack) -> None:
    assert "is no regular expression" in str(fence(stack, known_clients=["("])["msg"])
    options = stack.options(state="closed")
    options["database"]["name"] = "nowhere"
    assert "There is no database nowhere" in run_module("pg_fence", options)["msg"]
