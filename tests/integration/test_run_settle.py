"""run_status and run_settle: what a run that was cut off has left is found, named, and brought to a good end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from ansible.module_utils.alembic_recovery import naming, record
from ansible.module_utils.alembic_recovery import settle as module_settle

from replica.databases import AppDatabase
from tests.support.ansible_run import ROOT
from tests.support.evidence import Witness
from tests.support.fenced import FencedStack
from tests.support.modules import run_module
from tests.support.stacks import witness_of
from tests.support.supervised import STEADY, STUBBORN, Supervised
from tests.support.waiting import wait_until


def status(stack: FencedStack, **more: Any) -> dict[str, Any]:
    options = stack.options(**more)
    return run_module("run_status", {**options, "run_id": "20260101T000000Z-abcdef", "directory": str(stack.runs)})


def settle(stack: FencedStack, *, check: bool = False, **more: Any) -> dict[str, Any]:
    options = {**stack.options(**more), "run_id": "20260101T000000Z-abcdef", "directory": str(stack.runs)}
    return run_module("run_settle", options, check=check)


def cut_off(stack: FencedStack, stage: str) -> None:
    """As a run leaves it that is killed in a stage: stopped services, a closed database, a dead keeper."""
    stack.lock()
    stack.run("service_stop")
    run_module("pg_fence", stack.options(state="closed"))
    record.begin(str(stack.directory), stage)
    stack.kill_keeper()


def test_row_54_a_run_that_was_cut_off_is_found_and_taken_back(stack: FencedStack) -> None:
    before = stack.databases()
    seen = witness_of(stack.database).look()
    cut_off(stack, "migrating")
    new, _old = stack.copied()

    found = status(stack)
    assert (found["action"], found["run_id"], found["reachable"]) == ("take_back", stack.run_id, False)
    assert "was cut off in the stage migrating" in found["sentence"]
    planned = settle(stack, check=True)
    assert planned["changed"] is True, planned
    assert planned["todo"] == [f"open {stack.database.name}", "start the services that do not run", f"drop {new}"]
    assert new in stack.databases()
    assert set(stack.states().values()) == {"STOPPED"}

    done = settle(stack)
    assert (done["changed"], done["started"]) == (True, ["api", "worker"]), done
    assert stack.databases() == before
    after = Witness(stack.database.server.conninfo(stack.database.name)).look()
    assert (after.catalog, after.rows, after.content) == (seen.catalog, seen.rows, seen.content)
    assert set(stack.states().values()) <= {"RUNNING", "STARTING"}
    assert stack.record()["stage"] == "taken_back"
    for check in (True, False):
        assert settle(stack, check=check)["changed"] is False
    assert status(stack)["action"] == "nothing"


def test_row_54_the_run_that_was_to_take_it_back_was_cut_off_as_well(stack: FencedStack) -> None:
    before = stack.databases()
    cut_off(stack, "migrating")
    stack.copied()
    second, third = (FencedStack(stack.database, stack.supervised, stack.runs) for _ in range(2))
    second.lock()
    second.kill_keeper()
    third.lock()

    found = status(stack)
    assert found["action"] == "wait", found
    assert f"-e recovery_end_run={third.run_id}" in found["sentence"]
    assert settle(stack, settle=stack.run_id)["action"] == "wait"
    assert set(stack.states().values()) == {"STOPPED"}

    found = status(stack, end_run=third.run_id)
    assert (found["action"], found["run_id"]) == ("take_back", stack.run_id), found
    assert found["sentence"].endswith(f" Others that have not ended: run {third.run_id}, run {second.run_id}.")
    done = settle(stack, settle=stack.run_id, end_run=third.run_id)
    assert (done["changed"], done["started"]) == (True, ["api", "worker"]), done
    assert stack.databases() == before
    assert third.lock_holders() == []
    assert [run.record()["stage"] for run in (stack, second, third)] == ["taken_back"] * 3
    assert status(stack)["action"] == "nothing"


def test_row_54_the_run_that_was_named_has_gone_on_meanwhile(stack: FencedStack) -> None:
    """It has taken back what was to be settled, and is in its own outage when a person's answer arrives."""
    before = stack.databases()
    second = FencedStack(stack.database, stack.supervised, stack.runs)
    cut_off(stack, "fencing")
    record.Record.read(str(stack.directory)).note("taken_back")
    stack.supervised.control("start", "all")
    stack.admin(f'alter database "{stack.database.name}" allow_connections true')
    for check in (True, False):
        assert settle(stack, check=check, settle=stack.run_id)["changed"] is False, "somebody else has settled it"
    stack.admin(f'alter database "{stack.database.name}" allow_connections false')
    stack.supervised.control("stop", "all")
    second.lock()
    record.begin(str(second.directory), "fenced")

    assert settle(stack, settle=stack.run_id)["action"] == "wait"
    assert stack.databases() != before
    done = settle(stack, settle=stack.run_id, end_run=second.run_id)

    assert (done["action"], done["started"]) == ("take_back", ["api", "worker"]), done
    assert f"Run {second.run_id}" in done["sentence"]
    assert stack.databases() == before
    assert second.lock_holders() == []
    assert second.record()["stage"] == "taken_back"


def test_row_54_a_named_run_is_ended_also_when_its_record_says_that_it_has_ended(stack: FencedStack) -> None:
    """While it verifies the application it has nothing to lose, and still has the lock."""
    second = FencedStack(stack.database, stack.supervised, stack.runs)
    stack.lock()
    record.begin(str(stack.directory), "rehearsing")
    stack.kill_keeper()
    second.lock()
    record.begin(str(second.directory), "started")
    new, _old = stack.copied()

    assert settle(stack, settle=stack.run_id)["action"] == "wait"
    assert new in stack.databases()
    found = status(stack, end_run=second.run_id)
    assert (found["action"], found["run_id"]) == ("tidy", stack.run_id), found
    assert found["sentence"].endswith(f" Others that have not ended: run {second.run_id}.")
    done = settle(stack, settle=stack.run_id, end_run=second.run_id)

    assert done["changed"] is True, done
    assert second.lock_holders() == []
    assert new not in stack.databases()
    assert [run.record()["stage"] for run in (stack, second)] == ["taken_back", "started"]
    assert status(stack)["action"] == "nothing"


def test_row_54_after_the_swap_the_services_are_started_on_the_migrated_database(stack: FencedStack) -> None:
    name = stack.database.name
    new, old = stack.copied()
    stack.lock()
    stack.run("service_stop")
    run_module("pg_fence", stack.options(state="closed"))
    before = stack.databases()
    stack.swap(replacement=new, keep_as=old, run_directory=str(stack.directory), row_counts={"public.songs": 3})
    stack.kill_keeper()
    assert stack.record()["row_counts"] == {"public.songs": 3}

    assert status(stack)["action"] == "finish"
    done = settle(stack)

    assert (done["action"], done["started"]) == ("finish", ["api", "worker"]), done
    assert stack.databases() == {name: (before[new][0], True), old: (before[name][0], False)}
    assert status(stack)["kept"] == [old]


def test_row_54_processes_and_sessions_of_the_dead_run_are_ended(stack: FencedStack) -> None:
    stack.lock()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (stack.directory / "alive" / str(sleeper.pid)).write_text(record.started(sleeper.pid))
    named = psycopg.connect(stack.database.conninfo, application_name=f"alembic-recovery:{stack.run_id}:migrate")
    refused = settle(stack)
    assert refused["failed"] is True
    assert f"-e recovery_end_run={stack.run_id}" in refused["msg"]
    assert sleeper.poll() is None

    done = settle(stack, settle=stack.run_id)

    assert done["changed"] is True, done
    assert sleeper.wait(5) != 0
    with pytest.raises(psycopg.OperationalError):
        named.execute("select 1")
    assert stack.lock_holders() == []
    assert status(stack)["action"] == "nothing"


def test_row_54_a_service_that_is_still_being_stopped_for_the_dead_run_is_waited_for(
    broken: AppDatabase, tmp_path: Path
) -> None:
    """Supervisord refuses to start what it stops, and goes on with the stop when whoever asked for it is killed."""
    with Supervised(tmp_path, {"api": STEADY, "worker": STUBBORN}, stop_seconds=12) as supervised:
        stack = FencedStack(broken, supervised, tmp_path / "state" / "demo" / "runs")
        for name in ("api", "worker"):
            supervised.wait_for(name, "RUNNING")
        wait_until(lambda: "deaf" in supervised.log("worker").read_text(), "the worker does not hear")
        stack.lock()
        record.begin(str(stack.directory), "fencing")
        stack.kill_keeper()
        with subprocess.Popen([*supervised.controlled_by, "stop", "worker"], stdout=subprocess.DEVNULL) as stopping:
            supervised.wait_for("worker", "STOPPING")
            stopping.kill()

        done = settle(stack)

        assert (done["action"], done["started"], done["problems"]) == ("take_back", ["worker"], []), done
        supervised.wait_for("worker", "RUNNING")
        stack.tidy()


def test_row_54_what_the_run_has_done_until_it_was_ended_is_not_forgotten(
    stack: FencedStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by a person, it was alive, and exchanged the names just then."""
    name = stack.database.name
    stack.lock()
    stack.run("service_stop")
    run_module("pg_fence", stack.options(state="closed", run_directory=str(stack.directory)))
    new, old = stack.copied()
    before = stack.databases()
    ended = module_settle.end_processes

    def end_processes(directory: str) -> list[int]:
        done = stack.swap(replacement=new, keep_as=old, run_directory=str(stack.directory))
        assert done["changed"] is True, done
        return ended(directory)

    monkeypatch.setattr(module_settle, "end_processes", end_processes)
    done = settle(stack, settle=stack.run_id)

    assert (done["action"], done["started"]) == ("finish", ["api", "worker"]), done
    assert stack.databases() == {name: (before[new][0], True), old: (before[name][0], False)}
    assert stack.record()["stage"] == "started"
    assert stack.record()["swap_xid"]


def test_a_database_that_somebody_else_has_closed_is_left_alone(stack: FencedStack) -> None:
    stack.admin(f'alter database "{stack.database.name}" with allow_connections false')
    try:
        assert status(stack)["action"] == "refuse"
        refused = settle(stack)
        assert "no run says that it has closed it" in refused["msg"]
        assert stack.databases()[stack.database.name][1] is False
    finally:
        stack.admin(f'alter database "{stack.database.name}" with allow_connections true')


def test_row_54_a_copy_that_is_still_being_made_for_the_dead_run_is_ended(stack: FencedStack) -> None:
    """The server goes on with CREATE DATABASE when whoever asked for it is killed.

    Strategy file_copy begins with a checkpoint, and there is none while the checkpointer is suspended.
    """
    stack.lock()
    stack.run("service_stop")
    run_module("pg_fence", stack.options(state="closed", run_directory=str(stack.directory)))
    new = naming.database(stack.database.name, "new", stack.run_id)
    options = stack.options(run_directory=str(stack.directory), clone=new)
    del options["services"]
    module = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.run_module", "pg_clone"], stdin=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert module.stdin is not None
    making = "select application_name from pg_stat_activity where query like 'create database%' and state = 'active'"
    witness = Witness(stack.database.server.conninfo())
    checkpointer = psutil.Process(witness.value("select pid from pg_stat_activity where backend_type = 'checkpointer'"))
    checkpointer.suspend()
    with ThreadPoolExecutor(1) as pool:
        try:
            module.stdin.write(json.dumps(options))
            module.stdin.close()
            wait_until(lambda: witness.query(making), "the copy is being made")
            module.kill()
            module.wait()
            stack.kill_keeper()
            assert list(witness.query(making)) == [(f"alembic-recovery:{stack.run_id}:work",)]

            ended = pool.submit(wait_until, lambda: not witness.query(making), "the copy is ended")
            ended.add_done_callback(lambda _: checkpointer.resume())
            done = settle(stack)
            ended.result()
        finally:
            checkpointer.resume()

    assert (done["action"], done["started"]) == ("take_back", ["api", "worker"]), done
    assert list(witness.query(making)) == []
    assert [name for name, (_, is_open) in stack.databases().items() if is_open] == [stack.database.name]
    assert list(stack.databases()) == [stack.database.name]


def test_row_40_it_waits_for_a_server_that_comes_up_again_after_a_crash(stack: FencedStack) -> None:
    cut_off(stack, "cloning")
    server = stack.database.server
    server.stop("immediate")
    starting = threading.Timer(3, server.start)
    starting.start()
    try:
        done = settle(stack)
    finally:
        starting.join()

    assert (done["action"], done["started"]) == ("take_back", ["api", "worker"]), done
    assert stack.databases()[stack.database.name][1] is True
