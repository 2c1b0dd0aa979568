"""pg_swap: both names or none."""

from __future__ import annotations

import subprocess
import sys

import psycopg
from ansible.module_utils.alembic_recovery import naming

from tests.support.fenced import FencedStack, wait_until
from tests.support.modules import run_module


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


def test_row_48_killed_between_the_two_renames_nothing_is_renamed(stack: FencedStack) -> None:
    """The transaction of `swap.carry_out`, held after its first rename by a statement that takes its time."""
    new, old = stack.copied()
    before = stack.databases()
    run_module("pg_fence", stack.options(state="closed"))
    script = (
        "import psycopg, sys\n"
        f"c = psycopg.connect({stack.database.server.conninfo()!r})\n"
        f'c.execute(\'alter database "{stack.database.name}" rename to "{old}"\')\n'
        "print('renamed', flush=True)\n"
        "c.execute('select pg_sleep(4)')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "renamed\n"
    child.kill()
    child.wait()

    assert {name: oid for name, (oid, _open) in stack.databases().items()} == {
        name: oid for name, (oid, _open) in before.items()
    }
    # Its session ends with its statement: nobody has told the server that the client is gone.
    wait_until(lambda: "changed" in stack.swap(replacement=new, keep_as=old), "the names are exchanged")
    assert stack.databases()[stack.database.name][0] == before[new][0]


def test_aside_and_back(stack: FencedStack) -> None:
    name, aside = stack.database.name, naming.database(stack.database.name, "aside", stack.run_id)
    before = stack.databases()
    stack.lock()
    run_module("pg_fence", stack.options(state="closed"))

    done = stack.swap(keep_as=aside, in_place=True, run_directory=str(stack.directory))
    assert done["changed"] is True, done
    assert stack.databases() == {aside: (before[name][0], True)}
    page = (stack.directory / "BREAK-GLASS.txt").read_text()
    assert f'alter database "{aside}" rename to "{name}"' in page
    for check in (True, False):
        assert stack.swap(keep_as=aside, in_place=True, check=check, live_oid=before[name][0])["changed"] is False

    database = {**stack.options()["database"], "name": aside}
    run_module("pg_fence", {**stack.options(state="closed"), "database": database})
    assert stack.swap(replacement=aside)["changed"] is True
    assert stack.databases() == before
