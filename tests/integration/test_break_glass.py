"""The page for emergencies is followed by hand, without Ansible: its commands do what it says, in three stages."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from ansible.module_utils.alembic_recovery import naming, record

from tests.support.fenced import FencedStack
from tests.support.modules import run_module


def read(stack: FencedStack) -> str:
    """The page, once nobody is there any more who would be quicker."""
    stack.kill_keeper()
    return (stack.directory / "BREAK-GLASS.txt").read_text()


def commands(page: str, start: str, end: str = "\n\n") -> list[str]:
    """What a person types from a part of the page: its indented lines."""
    part = page[page.index(start) :]
    part = part[: part.index(end)] if end in part else part
    return re.findall(r"^    (.+)$", part, re.MULTILINE)


def type_in(stack: FencedStack, lines: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Type the lines into a shell of one's own, with the password that the inventory has."""
    environment = {**os.environ, "PGPASSWORD": stack.database.password}
    return [
        subprocess.run(
            ["sh", "-c", line], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        for line in lines
    ]


def fenced(stack: FencedStack) -> dict[str, Any]:
    """The application is down; the databases as they were."""
    before = stack.databases()
    assert stack.lock()["changed"] is True
    assert stack.run("service_stop")["changed"] is True
    assert stack.run("pg_fence", state="closed")["changed"] is True
    return before


def is_up(stack: FencedStack) -> bool:
    return set(stack.states().values()) <= {"RUNNING", "STARTING"}


def test_it_says_that_nothing_has_to_be_done_before_the_fence(stack: FencedStack) -> None:
    stack.lock()

    page = read(stack)

    assert "STAGE locked since " in page
    assert "Nothing has been stopped, closed or changed." in page
    assert "Nothing has to be done." in page


def test_while_a_clone_is_migrated(stack: FencedStack) -> None:
    before = fenced(stack)
    new, _old = stack.copied()
    record.begin(str(stack.directory), "migrating")
    page = read(stack)
    assert "The clone is being migrated. Nothing has been changed in the database itself." in page

    done = type_in(stack, commands(page, "If it is not, and the application"))

    assert [one.returncode for one in done] == [0, 0, 0], done
    assert stack.databases().items() >= before.items()
    assert new in stack.databases()
    assert is_up(stack)


def test_while_it_is_migrated_in_place(stack: FencedStack) -> None:
    before = fenced(stack)
    aside = naming.database(stack.database.name, "aside", stack.run_id)
    assert stack.swap(keep_as=aside, aside_for="migration", run_directory=str(stack.directory))["changed"] is True
    page = read(stack)
    assert "The database itself is being migrated (in place), under another name." in page

    done = type_in(stack, commands(page, "If it is not, and the application"))

    assert [one.returncode for one in done] == [0, 0, 0, 0], done
    assert stack.databases() == before
    assert is_up(stack)


def test_after_the_swap_forward_and_back(stack: FencedStack) -> None:
    name = stack.database.name
    before = fenced(stack)
    new, old = stack.copied()
    copy = stack.databases()[new][0]
    done = stack.swap(replacement=new, keep_as=old, run_directory=str(stack.directory))
    assert done["changed"] is True, done
    page = read(stack)
    assert "The application's database is the migrated one now. The services are still stopped." in page

    forward = type_in(stack, commands(page, "If it is not: start the services"))
    assert [one.returncode for one in forward] == [0, 0], forward
    assert is_up(stack)
    assert stack.databases() == {name: (copy, True), old: before[name]} | {old: (before[name][0], False)}

    back = type_in(stack, commands(page, "The database from before the swap is kept"))
    assert [one.returncode for one in back] == [0] * 6, back
    replaced = naming.database(name, "replaced", stack.run_id)
    assert stack.databases() == {name: before[name], replaced: (copy, False)}
    assert is_up(stack)
    # The next run drops nothing of that.
    found = run_module("run_status", {**stack.options(), "run_id": "other", "directory": str(stack.runs)})
    assert replaced in found["kept"]


def test_no_secret_is_on_it(stack: FencedStack) -> None:
    stack.lock()

    page = read(stack)

    assert stack.database.password not in page
    assert "BREAK" not in page
