"""Which run is gone back behind, which database has the name, and what a rehearsal has found out."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import rollback_evidence
from ansible.module_utils.alembic_recovery.errors import StackError
from ansible.module_utils.alembic_recovery.going_back import Kept

OLD, ASIDE = "aiproxy_old_20251021t031500z_7f3a1c", "aiproxy_aside_20251021t031500z_7f3a1c"
REPLACED = "aiproxy_replaced_20251022t031500z_7f3a1c"
FENCE = ("locked", "backing_up", "backed_up", "fencing", "fenced", "cloning")


def run(run_id: str, *stages: str, **more: Any) -> dict[str, Any]:
    """The record of a run."""
    entries = [{"stage": stage, "at": "2025-10-21T03:15:00+00:00"} for stage in stages]
    return {"run_id": run_id, "database": "aiproxy", "stage": stages[-1], "stages": entries, **more}


SWAPPED = run("swapped", *FENCE, "swapping", "swapped", "starting", "started", "done")
TAKEN_BACK = run("taken back", *FENCE, "taken_back", "failed")
FENCED = run("fenced", *FENCE)
REHEARSED = run("rehearsed", "locked", "backing_up", "backed_up", "failed")
RESTARTED = run("restarted", "locked", "starting", "started", "done")
ONLINE = run("online", "locked", "backing_up", "backed_up", "starting", "started", "done")
ROLLBACK = run("rollback", "locked", "fencing", "fenced", "swapping", "swapped", "started", "done", behind="swapped")
AUTOMATIC = run("automatic", *FENCE, "swapped", "fencing", "swapped", "started", "failed", behind="automatic")
ANOTHER = {**SWAPPED, "run_id": "another", "database": "other"}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], None),
        ([ANOTHER, REHEARSED, RESTARTED], None),
        ([ANOTHER, SWAPPED], "swapped"),
        ([ROLLBACK, REHEARSED, SWAPPED], "swapped"),
        ([TAKEN_BACK, SWAPPED], "swapped"),
        ([TAKEN_BACK, RESTARTED], "taken back"),
        ([FENCED, SWAPPED], "fenced"),
        ([ONLINE, SWAPPED], "online"),
        ([AUTOMATIC, SWAPPED], "automatic"),
    ],
)
def test_the_run_that_is_gone_back_behind(runs: list[dict[str, Any]], expected: str | None) -> None:
    found = rollback_evidence.choose_run(runs, "aiproxy", None)
    assert (found["run_id"] if found else None) == expected


def test_a_run_that_is_named() -> None:
    found = rollback_evidence.choose_run([SWAPPED, ROLLBACK], "aiproxy", "rollback")
    assert found == ROLLBACK
    with pytest.raises(StackError, match="There is no run another on aiproxy"):
        rollback_evidence.choose_run([SWAPPED, ANOTHER], "aiproxy", "another")


@pytest.mark.parametrize(
    ("live", "later", "expected"),
    [
        (None, [], "missing"),
        ({"oid": 1}, [], "old"),
        ({"oid": 2}, [], "new"),
        ({"oid": 3}, [], "other"),
        ({"oid": 3}, [{"new_oid": 3}], "old"),
    ],
)
def test_which_database_has_the_name(live: Any, later: Any, expected: str) -> None:
    assert rollback_evidence.carried({"live_oid": 1, "new_oid": 2}, live, later) == expected
    assert rollback_evidence.carried(None, {"oid": 1}, []) == "other"


def test_the_old_database_is_found_by_its_object_id_whatever_it_is_called() -> None:
    facts = {"live_oid": 1, "old": OLD}
    there = {"aiproxy": {"oid": 2, "open": True}, OLD: {"oid": 1, "open": False}}
    assert rollback_evidence.find_kept(facts, "aiproxy", there) == Kept(OLD, True)
    renamed = {"aiproxy": {"oid": 2, "open": True}, REPLACED: {"oid": 1, "open": False}}
    assert rollback_evidence.find_kept(facts, "aiproxy", renamed) == Kept(REPLACED, True)
    another = {"aiproxy": {"oid": 2, "open": True}, OLD: {"oid": 9, "open": False}}
    assert rollback_evidence.find_kept(facts, "aiproxy", another) == Kept(OLD, False)
    aside = {ASIDE: {"oid": 1, "open": True}}
    assert rollback_evidence.find_kept(facts, "aiproxy", aside) == Kept(ASIDE, True, aside=True, open=True)
    strange = {"my_copy": {"oid": 1, "open": False}}
    assert rollback_evidence.find_kept(facts, "aiproxy", strange) is None
    assert rollback_evidence.find_kept(None, "aiproxy", there) is None


def test_what_a_rehearsal_has_found_out() -> None:
    def facts(*verdicts: str) -> dict[str, Any]:
        undone = [{"revision": f"r{n}", "verdict": verdict, "reason": "So."} for n, verdict in enumerate(verdicts)]
        return {"rehearsal": {"undone": undone}}

    rehearsed = rollback_evidence.rehearsed
    assert rehearsed(None, ["r0"]) == (None, [], [])
    assert rehearsed({}, ["r0"]) == (None, [], [])
    assert rehearsed(facts("lossless"), ["r0"]) == (True, [], [])
    assert rehearsed(facts("lossless"), ["r0", "r1"]) == (None, [], [])
    assert rehearsed(facts("lossless", "lossy"), ["r0", "r1"]) == (False, ["r1: So."], [])
    # An impossible one ends the trial: those below it were not tried.
    assert rehearsed(facts("impossible"), ["r0", "r1"]) == (None, [], ["r0: So."])
