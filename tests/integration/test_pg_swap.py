"""pg_swap: both names or none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from ansible.module_utils.alembic_recovery import fence, naming, record

from tests.support.ansible_run import ROOT
from tests.support.evidence import Witness
from tests.support.fenced import FencedStack
from tests.support.modules import run_module
from tests.support.stacks import application_options
from tests.support.waiting import wait_until


def test_check_real_check_real(stack: FencedStack) -> None:
    name = stack.database.name
    new, old = stack.copied()
    before = stack.databases()
    names = {"replacement": new, "keep_as": old, "live_oid": before[name][0]}
    refused = stack.swap(**names)
    assert f"{name} is open" in refused["msg"]
    run_module("pg_fence", stack.options(state="closed"))

    planned = stack.swap(check=True, **names)
    assert planned["changed"] is True, planned
    assert planned["renamed"] == [{"from": name, "to": old}, {"from": new, "to": name}]
    assert set(stack.databases()) == {name, new}

    done = stack.swap(**names)
    assert (done["changed"], done["renamed"]) == (True, planned["renamed"])
    assert stack.databases() == {name: (before[new][0], True), old: (before[name][0], False)}
    assert done["oids"] == {name: before[new][0], old: before[name][0]}
    assert int(done["xid"]) > 0
    for check in (True, False):
        assert stack.swap(check=check, **names)["changed"] is False


def test_row_46_whoever_is_in_the_clone_is_ended_and_nothing_is_half_renamed(stack: FencedStack) -> None:
    name = stack.database.name
    new, old = stack.copied()
    run_module("pg_fence", stack.options(state="closed"))
    with psycopg.connect(stack.database.server.conninfo(new)):  # a superuser: the role may not end that
        refused = stack.swap(replacement=new, keep_as=old)

    assert refused["failed"] is True
    assert "could not be emptied" in refused["msg"]
    assert set(stack.databases()) == {name, new}


_KILLED = """
import json, os, signal, sys
from tests import conftest
from tests.support.modules import run_module
from ansible.module_utils.alembic_recovery import {module}
deed = {module}.{function}
def and_dies(*given, **named):
    {before}
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{function} = and_dies
run_module("pg_swap", json.load(sys.stdin))
"""
# What is noted last before the commit, when both names are exchanged in the transaction.
KILLED_BEFORE_THE_COMMIT = _KILLED.format(module="record", function="add", before="")
KILLED_AFTER_THE_COMMIT = _KILLED.format(module="swap", function="carry_out", before="deed(*given, **named)")


def killed_swap(stack: FencedStack, program: str, **more: Any) -> None:
    """Run pg_swap in a process of its own, which kills itself on the way; and the keeper with it."""
    options = stack.options(run_directory=str(stack.directory), **more)
    del options["services"]
    killed = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(options), text=True, cwd=ROOT, check=False
    )
    stack.kill_keeper()
    assert killed.returncode == -signal.SIGKILL


def test_row_48_killed_between_the_renames_and_the_commit_nothing_is_renamed(stack: FencedStack) -> None:
    new, old = stack.copied()
    stack.lock()
    run_module("pg_fence", stack.options(state="closed", run_directory=str(stack.directory)))
    before = stack.databases()

    killed_swap(stack, KILLED_BEFORE_THE_COMMIT, replacement=new, keep_as=old, live_oid=before[stack.database.name][0])

    assert stack.databases() == before
    assert stack.record()["stage"] == "swapping"
    wait_until(lambda: "changed" in stack.swap(replacement=new, keep_as=old), "the names are exchanged")
    assert stack.databases()[stack.database.name][0] == before[new][0]


def test_aside_and_back(stack: FencedStack) -> None:
    name, aside = stack.database.name, naming.database(stack.database.name, "aside", stack.run_id)
    before = stack.databases()
    stack.lock()
    run_module("pg_fence", stack.options(state="closed"))

    done = stack.swap(keep_as=aside, aside_for="migration", run_directory=str(stack.directory))
    assert done["changed"] is True, done
    assert stack.databases() == {aside: (before[name][0], True)}
    page = (stack.directory / "BREAK-GLASS.txt").read_text()
    assert f'alter database "{aside}" rename to "{name}"' in page
    for check in (True, False):
        assert (
            stack.swap(keep_as=aside, aside_for="migration", check=check, live_oid=before[name][0])["changed"] is False
        )

    database = {**stack.options()["database"], "name": aside}
    run_module("pg_fence", {**stack.options(state="closed"), "database": database})
    assert stack.swap(replacement=aside)["changed"] is True
    assert stack.databases() == before


def test_it_is_counted_aside_and_kept_closed(stack: FencedStack) -> None:
    """As on the way back: between closing and the exchange only we are in it."""
    name = stack.database.name
    _new, old = stack.copied()
    stack.admin(f'alter database "{_new}" rename to "{old}"', f'alter database "{old}" with allow_connections false')
    aside, replaced = (naming.database(name, kind, stack.run_id) for kind in ("aside", "replaced"))
    before = stack.databases()
    directory = str(stack.directory)
    stack.lock()
    run_module("pg_fence", stack.options(state="closed", run_directory=directory))

    done = stack.swap(keep_as=aside, live_oid=before[name][0], aside_for="counting", run_directory=directory)
    assert done["changed"] is True, done
    assert stack.databases() == {aside: (before[name][0], True), old: before[old]}
    page = (stack.directory / "BREAK-GLASS.txt").read_text()
    assert f"being counted, under another name: {aside}" in page
    assert f'alter database "{aside}" rename to "{name}"' in page
    Witness(stack.database.server.conninfo(aside)).look()
    Witness(stack.database.server.conninfo()).wait_until_left(aside)

    names = {"replacement": old, "keep_as": replaced, "aside": aside, "live_oid": before[name][0]}
    planned = stack.swap(check=True, **names)
    assert planned["renamed"] == [{"from": aside, "to": replaced}, {"from": old, "to": name}]
    assert set(stack.databases()) == {aside, old}
    assert stack.swap(run_directory=directory, **names)["renamed"] == planned["renamed"]
    assert stack.databases() == {name: (before[old][0], True), replaced: (before[name][0], False)}
    assert aside not in (stack.directory / "BREAK-GLASS.txt").read_text()
    for check in (True, False):
        assert stack.swap(check=check, **names)["changed"] is False


def test_a_database_that_somebody_opens_in_the_last_moment_is_not_left_behind(
    stack: FencedStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a keeper does that has taken a sleeping run for dead, and a client that comes at once."""
    name = stack.database.name
    new, old = stack.copied()
    run_module("pg_fence", stack.options(state="closed"))
    before = stack.databases()
    emptied = fence.empty

    def empty(maintenance: Any, which: str) -> None:
        emptied(maintenance, which)
        if which == new:
            stack.admin(f'alter database "{name}" with allow_connections true')
            stack.admin_in_database("insert into users (email, display_name) values ('late@songs.example', 'x')")

    monkeypatch.setattr(fence, "empty", empty)
    refused = stack.swap(replacement=new, keep_as=old, live_oid=before[name][0])

    assert refused["failed"] is True
    assert f"kept as {old} was opened by somebody meanwhile" in refused["msg"]
    assert "Nothing was renamed" in refused["msg"]
    assert stack.databases() == {name: (before[name][0], True), new: before[new]}


def test_a_run_whose_keeper_ends_the_outage_exchanges_nothing(stack: FencedStack) -> None:
    """A controller that slept, and wakes up while the keeper is at it."""
    stack.lock()
    new, old = stack.copied()
    run_module("pg_fence", stack.options(state="closed", run_directory=str(stack.directory)))
    before = stack.databases()
    (stack.directory / record.ENDING).write_text("{}")

    refused = stack.swap(replacement=new, keep_as=old, run_directory=str(stack.directory))

    assert refused["failed"] is True
    assert "its keeper has taken it for dead and ends the outage" in refused["msg"]
    assert stack.databases() == before


def test_row_48_killed_after_the_commit_the_way_back_is_not_lost(stack: FencedStack) -> None:
    """Before the swap was written down: the next run completes the record, and what was written since is counted."""
    name = stack.database.name
    new, old = stack.copied()
    stack.lock()
    stack.run("service_stop")
    run_module("pg_fence", stack.options(state="closed", run_directory=str(stack.directory)))
    before = stack.databases()
    counts = Witness(stack.database.server.conninfo(new)).look().rows
    row_counts = {f"public.{table}": rows for table, rows in counts.items()}
    names = {"replacement": new, "keep_as": old, "live_oid": before[name][0]}
    killed_swap(stack, KILLED_AFTER_THE_COMMIT, row_counts=row_counts, **names)
    assert stack.databases() == {name: (before[new][0], True), old: (before[name][0], False)}
    assert stack.record()["stage"] == "swapping"
    assert "swap_xid" not in stack.record()

    def planned() -> dict[str, Any]:
        where = {"directory": str(stack.runs), "backup_directory": str(stack.runs.parent / "backups")}
        asked = {"database": stack.options()["database"], "application": application_options(stack.database)}
        return run_module("rollback_plan", {**asked, **where, "run_id": "20991231T000000Z-abcdef"})

    assert (planned()["way"], planned()["old"]) == ("swap_back", old)
    settled = run_module(
        "run_settle",
        {**stack.options(), "run_id": "20991231T000000Z-abcdef", "directory": str(stack.runs)},
    )
    assert (settled["action"], settled["started"]) == ("finish", ["api", "worker"]), settled
    assert [entry["stage"] for entry in stack.record()["stages"]][-2:] == ["swapped", "started"]
    stack.admin_in_database("insert into users (email, display_name) values ('since@songs.example', 'x')")
    seen = planned()
    assert (seen["behind"], seen["old"], seen["written"]["total"]) == (stack.run_id, old, 1)
    assert "-e rollback_accept_written=1" in seen["next_step"]
