"""recovery_lock: one at a time, gone with its run, taken again after a restart of PostgreSQL; and the outage budget."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import psutil
import pytest
from ansible.module_utils.alembic_recovery import lock, naming, record

from tests.support.evidence import Witness, mode
from tests.support.fenced import FencedStack
from tests.support.modules import run_module
from tests.support.waiting import wait_until


def test_check_real_check_real(stack: FencedStack) -> None:
    planned = stack.lock(check=True)
    assert (planned["changed"], planned["holder"]) == (True, None)
    assert not stack.runs.exists()
    assert stack.lock_holders() == []

    done = stack.lock()
    assert done["changed"] is True, done
    assert done["holder"]["run_id"] == stack.run_id
    assert stack.lock_holders() == [f"alembic-recovery:{stack.run_id}:lock"]

    for check in (True, False):
        assert stack.lock(check=check)["changed"] is False

    gone = stack.run("recovery_lock", state="absent", check=True)
    assert gone["changed"] is True
    assert stack.lock_holders() != []
    assert stack.unlock()["changed"] is True
    assert stack.lock_holders() == []
    assert stack.record()["stage"] == "done"
    for check in (True, False):
        assert stack.run("recovery_lock", state="absent", check=check)["changed"] is False


def test_s21_what_it_writes_is_private_and_says_who_is_at_work(stack: FencedStack) -> None:
    stack.lock()

    for path in [stack.runs, stack.directory, *stack.directory.iterdir()]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    found = stack.record()
    assert (found["operator"], found["controller"], found["stack"]) == ("anna", "laptop", "demo")
    assert found["live_oid"] == stack.databases()[stack.database.name][0]
    page = (stack.directory / "BREAK-GLASS.txt").read_text()
    assert "Nothing has been stopped, closed or changed" in page
    for path in stack.directory.iterdir():
        assert path.is_dir() or stack.database.password not in path.read_text(), path


def test_row_31_a_second_run_is_refused_and_told_who_the_first_one_is(stack: FencedStack) -> None:
    stack.lock()
    today = stack.record()["stages"][0]["at"][:10]
    second = FencedStack(stack.database, stack.supervised, stack.runs.parent / "elsewhere")

    took = []
    for check in (True, False):
        began = time.monotonic()
        refused = second.lock(check=check)
        took.append(time.monotonic() - began)
        assert refused["failed"] is True
        assert f"at work since {today}" in refused["msg"]
        assert f"run {stack.run_id}, started by anna from laptop" in refused["msg"]
        assert "now in the stage locked" in refused["msg"]
        assert "Nothing was touched" in refused["msg"]
    assert min(took) < 5
    assert not second.directory.exists()

    stack.unlock()
    assert second.lock()["changed"] is True
    second.unlock()


def test_row_31_of_two_at_the_same_moment_one_gets_it(stack: FencedStack) -> None:
    """As processes of their own: in this one, what modules print is caught."""
    from tests.faults.injections import ModuleProcess

    for _round in range(3):
        pair = [FencedStack(stack.database, stack.supervised, stack.runs.parent / side) for side in ("a", "b")]
        barrier = threading.Barrier(2)
        results: list[dict[str, Any]] = []

        def take(one: FencedStack, barrier: threading.Barrier = barrier, results: Any = results) -> None:
            arguments = one.options(run_directory=str(one.directory), stack="demo", operator=one.run_id)
            barrier.wait()
            results.append(ModuleProcess("recovery_lock", arguments).result(120))

        threads = [threading.Thread(target=take, args=[one]) for one in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(bool(result.get("failed")) for result in results) == [False, True], results
        refused = next(result for result in results if result.get("failed"))
        holder = next(one for one in pair if one.lock_holders())
        assert holder.run_id in refused["msg"]
        for one in pair:
            if one.directory.exists():
                one.unlock()


def test_it_goes_with_its_run(stack: FencedStack) -> None:
    stack.lock(grace=2)

    wait_until(lambda: not stack.lock_holders(), "the lock is gone")
    assert "The run is dead in the stage locked" in (stack.directory / "keeper.log").read_text()
    assert stack.record()["stage"] == "locked"
    assert not (stack.directory / "keeper.json").exists(), "there was no outage to be ended"


def test_it_stays_as_long_as_a_process_of_the_run_is_alive(stack: FencedStack) -> None:
    stack.lock(grace=3)
    with record.presence(str(stack.directory)), pytest.raises(AssertionError):
        wait_until(lambda: not stack.lock_holders(), "the lock is gone", 8)
    wait_until(lambda: not stack.lock_holders(), "the lock is gone")


def test_it_goes_with_a_keeper_that_is_killed(stack: FencedStack) -> None:
    stack.lock()

    stack.kill_keeper()

    refused = stack.run("pg_fence", state="closed")
    assert refused["failed"] is True
    assert "The lock of this run is gone" in refused["msg"]
    assert stack.databases()[stack.database.name][1] is True


def test_it_is_taken_again_after_a_restart_of_postgresql(stack: FencedStack) -> None:
    stack.lock()
    server = stack.database.server

    server.stop("immediate")
    server.start()

    wait_until(lambda: bool(stack.lock_holders()), "the lock is back")
    assert stack.lock()["changed"] is False


def test_its_keeper_is_found_without_proc_as_on_macos(stack: FencedStack) -> None:
    stack.lock()
    place = str(stack.directory)
    found = lock.keeper_pids(place)

    assert len(found) == 1
    assert lock.pids_from_ps(f"{place}/keeper.py") == found
    stack.kill_keeper()
    assert lock.pids_from_ps(f"{place}/keeper.py") == []


def test_a_session_of_its_own_that_the_server_still_has_is_nobody_else(stack: FencedStack) -> None:
    """The server's process gives no answer, and keeps the lock meanwhile: the keeper comes back for it."""
    stack.lock(grace=300)
    held = (
        "select pid from pg_locks join pg_stat_activity using (pid) where locktype = 'advisory' and granted "
        f"and application_name = '{lock.session_name(stack.run_id)}'"
    )
    witness = Witness(stack.database.server.conninfo())
    first = witness.value(held)
    backend = psutil.Process(first)
    backend.suspend()
    try:
        wait_until(lambda: "Taking the lock again" in (stack.directory / "keeper.log").read_text(), "it is missed")
        time.sleep(5)
    finally:
        backend.resume()

    wait_until(lambda: [pid for (pid,) in witness.query(held) if pid != first], "another session has the lock")
    assert not (stack.directory / "LOCK_LOST").exists()
    assert stack.lock()["changed"] is False


def test_while_it_ends_the_outage_nobody_else_is_let_in(stack: FencedStack) -> None:
    """Also when that takes longer than an idle session may live, or when the server ends the lock's session."""
    stack.lock(grace=2)
    stack.run("service_stop")
    stack.run("pg_fence", state="closed")
    supervisor = psutil.Process(int((stack.supervised.directory / "supervisord.pid").read_text()))
    supervisor.suspend()
    try:
        wait_until((stack.directory / "keeper.ending.json").exists, "the keeper has begun")
        time.sleep(33)
        assert stack.lock_holders() == [lock.session_name(stack.run_id)]

        stack.admin(
            "select pg_terminate_backend(pid, 60000) from pg_stat_activity "
            f"where application_name = '{lock.session_name(stack.run_id)}'"
        )
        assert stack.lock_holders() == []
        options = {**stack.options(), "run_id": "20260101T000000Z-abcdef", "directory": str(stack.runs)}
        seen = run_module("run_status", options)
        assert seen["action"] == "wait", seen
        assert f"run {stack.run_id}, started by anna from laptop" in seen["sentence"]
    finally:
        supervisor.resume()

    wait_until((stack.directory / "keeper.json").exists, "the keeper has acted")
    wait_until(lambda: run_module("run_status", options)["action"] == "take_back", "it has ended")
    assert set(stack.states().values()) <= {"RUNNING", "STARTING"}
    assert [step["rc"] for step in json.loads((stack.directory / "keeper.json").read_text())["commands"]] == [0] * 3


@pytest.mark.parametrize("stage", ["fencing", "migrating"])
def test_the_outage_ends_without_anybody_when_the_run_is_dead(stack: FencedStack, stage: str) -> None:
    stack.lock(grace=12)
    assert stack.run("service_stop")["stopped"] == ["worker", "api"]
    assert stack.run("pg_fence", state="closed")["changed"] is True
    record.begin(str(stack.directory), stage)
    oid, is_open = stack.databases()[stack.database.name]
    assert not is_open
    assert set(stack.states().values()) == {"STOPPED"}

    wait_until((stack.directory / "keeper.json").exists, "the keeper has acted")

    assert stack.databases()[stack.database.name] == (oid, True)
    assert set(stack.states().values()) <= {"RUNNING", "STARTING"}
    did = json.loads((stack.directory / "keeper.json").read_text())
    assert did["swapped"] is False
    assert [step["rc"] for step in did["commands"]] == [0] * 3
    wait_until(lambda: not stack.lock_holders(), "the lock is gone")


def test_after_the_swap_the_new_database_is_left_in_place_and_opened(stack: FencedStack) -> None:
    """As in a run that is going back by itself, and has closed the new database for that."""
    new, old = stack.copied()
    stack.lock(grace=12)
    assert stack.run("service_stop")["stopped"] == ["worker", "api"]
    stack.run("pg_fence", state="closed")
    before = stack.databases()
    stack.swap(replacement=new, keep_as=old, run_directory=str(stack.directory))
    stack.run("pg_fence", state="closed")
    assert stack.databases()[stack.database.name] == (before[new][0], False)

    wait_until((stack.directory / "keeper.json").exists, "the keeper has acted")

    did = json.loads((stack.directory / "keeper.json").read_text())
    assert did["swapped"] is True
    assert stack.databases() == {
        stack.database.name: (before[new][0], True), old: (before[stack.database.name][0], False),
    }  # fmt: skip
    assert set(stack.states().values()) <= {"RUNNING", "STARTING"}


def test_services_are_not_started_on_a_database_that_somebody_has_made_meanwhile(stack: FencedStack) -> None:
    """While it is counted, nothing has the application's name."""
    name, aside = stack.database.name, naming.database(stack.database.name, "aside", stack.run_id)
    stack.lock(grace=12)
    stack.run("service_stop")
    stack.run("pg_fence", state="closed")
    oid = stack.databases()[name][0]
    done = stack.swap(keep_as=aside, live_oid=oid, aside_for="counting", run_directory=str(stack.directory))
    assert done["changed"] is True, done
    stack.admin(f'create database "{name}"')

    wait_until((stack.directory / "keeper.json").exists, "the keeper has acted")

    try:
        assert set(stack.states().values()) == {"STOPPED"}
        assert stack.databases()[aside][0] == oid
        assert "the services are not started on it" in (stack.directory / "keeper.log").read_text()
    finally:
        stack.admin(f'drop database "{name}"', f'alter database "{aside}" rename to "{name}"')


@pytest.mark.parametrize("outcome", ["failed", "done"])
def test_a_run_that_could_not_be_taken_back_leaves_the_outage_to_its_keeper(stack: FencedStack, outcome: str) -> None:
    """Whatever it says of itself."""
    stack.lock(grace=12)
    assert stack.run("service_stop")["stopped"] == ["worker", "api"]
    stack.run("pg_fence", state="closed")

    kept = stack.run("recovery_lock", state="absent", outcome=outcome)

    assert (kept["changed"], kept["kept"]) == (False, True), kept
    assert stack.record()["stage"] == "fenced", "the next run would not know who has closed it"
    wait_until((stack.directory / "keeper.json").exists, "the keeper has acted")
    assert stack.databases()[stack.database.name][1] is True
    assert set(stack.states().values()) <= {"RUNNING", "STARTING"}


def test_without_a_directory_or_a_server_it_says_so(stack: FencedStack) -> None:
    assert "needs run_directory" in run_module("recovery_lock", stack.options())["msg"]
    options = stack.options(run_directory=str(stack.directory))
    options["database"]["maintenance_db"] = "nowhere"
    refused = run_module("recovery_lock", options)
    assert refused["failed"] is True
    assert "nowhere" in refused["msg"]
    assert not stack.directory.exists()
