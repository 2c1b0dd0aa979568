"""run_status looks, also while the database is closed, and writes nothing."""

from __future__ import annotations

from tests.support.evidence import files
from tests.support.fenced import FencedStack
from tests.support.modules import run_module


def test_it_says_who_is_at_work_and_changes_nothing(stack: FencedStack) -> None:
    options = {**stack.options(), "run_id": "other", "directory": str(stack.runs)}
    found = run_module("run_status", options)
    assert (found["action"], found["run_id"], found["kept"], found["reachable"]) == ("nothing", "", [], True)
    assert not stack.runs.exists()

    stack.lock()
    run_module("pg_fence", stack.options(state="closed"))
    before = files(stack.runs, without=["alive", "keeper.log"]), stack.databases()
    found = run_module("run_status", options)
    assert (found["changed"], found["action"], found["reachable"]) == (False, "wait", False), found
    assert f"run {stack.run_id}, started by anna from laptop" in found["sentence"]
    assert f"-e recovery_end_run={stack.run_id}" in found["sentence"]
    assert (files(stack.runs, without=["alive", "keeper.log"]), stack.databases()) == before

    ended = run_module("run_status", {**options, "end_run": stack.run_id})
    assert (ended["action"], ended["run_id"]) == ("refuse", stack.run_id)
