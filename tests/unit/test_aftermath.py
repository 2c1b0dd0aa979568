"""What has to become of what a run has left: a table of what is found."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import aftermath

NAME = "aiproxy"
RUN = "20251021T031500Z-7f3a1c"
STAMP = "20251021t031500z_7f3a1c"
NEW, OLD, ASIDE, SCRATCH = (f"{NAME}_{kind}_{STAMP}" for kind in ("new", "old", "aside", "scratch"))


def entry(oid: int, *, is_open: bool = True) -> dict[str, Any]:
    return {"oid": oid, "open": is_open}


def run(stage: str, **more: Any) -> dict[str, Any]:
    return {"run_id": RUN, "operator": "anna", "stage": stage, "live_oid": 10, **more}


def decide(**evidence: Any) -> aftermath.Aftermath:
    seen = aftermath.Evidence(**{"database": NAME, "run": None, "databases": {NAME: entry(10)}, **evidence})
    return aftermath.decide(seen, run_id="20251022T000000Z-000001")


CASES: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("nothing", {}, "nothing", []),
    ("a database from before a swap is no leftover", {"databases": {NAME: entry(10), OLD: entry(9)}}, "nothing", []),
    ("somebody else", {"holder": "run X", "holder_id": "X"}, "wait", []),
    ("cut off before the fence", {"run": run("backing_up")}, "tidy", []),
    (
        "a copy of a rehearsal",
        {"run": run("rehearsing"), "databases": {NAME: entry(10), SCRATCH: entry(11)}},
        "tidy",
        [f"drop {SCRATCH}"],
    ),
    (
        "closed",
        {"run": run("fenced"), "databases": {NAME: entry(10, is_open=False)}},
        "take_back",
        [f"open {NAME}", "start the services that do not run"],
    ),
    (
        "a clone half migrated",
        {"run": run("migrating"), "databases": {NAME: entry(10, is_open=False), NEW: entry(11)}},
        "take_back",
        [f"open {NAME}", "start the services that do not run", f"drop {NEW}"],
    ),
    (
        "the keeper was quicker",
        {"run": run("migrating"), "databases": {NAME: entry(10), NEW: entry(11)}, "keeper": {"swapped": False}},
        "take_back",
        ["start the services that do not run", f"drop {NEW}"],
    ),
    (
        "swapping, and it had happened",
        {"run": run("swapping"), "databases": {NAME: entry(11), OLD: entry(10, is_open=False)}},
        "finish",
        ["start the services that do not run"],
    ),
    (
        "swapping, and it had not",
        {"run": run("swapping"), "databases": {NAME: entry(10, is_open=False), NEW: entry(11)}},
        "take_back",
        [f"open {NAME}", "start the services that do not run", f"drop {NEW}"],
    ),
    (
        "swapped",
        {"run": run("swapped"), "databases": {NAME: entry(11), OLD: entry(10, is_open=False)}},
        "finish",
        ["start the services that do not run"],
    ),
    (
        "starting",
        {"run": run("starting"), "databases": {NAME: entry(11), OLD: entry(10, is_open=False)}},
        "finish",
        ["start the services that do not run"],
    ),
    (
        "aside",
        {"run": run("migrating", in_place=True), "databases": {ASIDE: entry(10)}},
        "take_back",
        [f"rename {ASIDE} to {NAME}, and open it", "start the services that do not run"],
    ),
    (
        "aside, and the record is lost",
        {"databases": {ASIDE: entry(10)}},
        "take_back",
        [f"rename {ASIDE} to {NAME}, and open it", "start the services that do not run"],
    ),
    (
        "in place, and it has its name again",
        {"run": run("swapping", in_place=True), "databases": {NAME: entry(10)}},
        "finish",
        ["start the services that do not run"],
    ),
    (
        "in place, and the keeper was quicker",
        {"run": run("migrating", in_place=True), "databases": {NAME: entry(10)}, "keeper": {"swapped": False}},
        "take_back",
        ["start the services that do not run"],
    ),
    (
        "counted, on the way back",
        {"run": run("fenced"), "databases": {ASIDE: entry(10), OLD: entry(9, is_open=False)}},
        "take_back",
        [f"rename {ASIDE} to {NAME}, and open it", "start the services that do not run"],
    ),
    (
        "counted, by the run that had swapped it in",
        {"run": run("fenced"), "databases": {ASIDE: entry(11), OLD: entry(10, is_open=False)}},
        "finish",
        [f"rename {ASIDE} to {NAME}, and open it", "start the services that do not run"],
    ),
    ("aside, and somebody made another", {"databases": {NAME: entry(20), ASIDE: entry(10)}}, "refuse", []),
    ("another name", {"databases": {"postgres": entry(5)}}, "nothing", []),
    ("no database, and a run", {"databases": {"postgres": entry(5)}, "run": run("fenced")}, "refuse", []),
    ("no database but those that are kept", {"databases": {OLD: entry(5)}}, "refuse", []),
    ("closed by somebody else", {"databases": {NAME: entry(10, is_open=False)}}, "refuse", []),
    ("containers", {"containers": {RUN: ["alembic-recovery-x-rehearsal"]}}, "tidy",
     [f"remove alembic-recovery-x-rehearsal of run {RUN}"]),
    ("processes", {"run": run("backing_up"), "alive": [17]}, "tidy", ["end the processes 17 of the run"]),
]  # fmt: skip


@pytest.mark.parametrize(("evidence", "action", "todo"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_becomes_of_it(evidence: dict[str, Any], action: str, todo: list[str]) -> None:
    found = decide(**evidence)

    assert (found.action, list(found.todo)) == (action, todo)
    assert found.sentence.endswith((".", f"={evidence.get('holder_id')}", "true"))


def test_in_place_it_is_not_said_that_nothing_was_changed() -> None:
    seen = run("migrating", in_place=True)

    assert "have stayed" in decide(run=seen).sentence
    assert "nothing was changed" not in decide(run=seen).sentence
    assert "nothing was changed" in decide(run=run("migrating")).sentence


def test_a_kept_database_is_never_dropped() -> None:
    names = {NAME: entry(10), OLD: entry(9), f"{NAME}_replaced_{STAMP}": entry(8), NEW: entry(7), "aiproxy_new_songs":
             entry(6)}  # fmt: skip

    assert list(decide(run=run("backing_up"), databases=names).disposable) == [NEW]


def test_the_run_that_asks_and_the_one_that_is_ended_by_name_are_not_in_the_way() -> None:
    seen = aftermath.Evidence(NAME, None, {NAME: entry(10)}, holder="run X", holder_id="X")

    assert aftermath.decide(seen, run_id="X").action == "nothing"
    assert "-e recovery_end_run=X" in aftermath.decide(seen, run_id="Y").sentence
    unknown = aftermath.decide(seen, run_id="Y", end_run="X")
    assert unknown.action == "wait"
    assert "has no record here: end it where it was started" in unknown.sentence

    for known in ({"run": {**run("rehearsing"), "run_id": "X"}}, {"run": run("rehearsing"), "others": ["X"]}):
        found = aftermath.decide(dataclasses.replace(seen, **known), run_id="Y", end_run="X")
        assert (found.action, found.todo) == ("tidy", ["end run X"])
    started = dataclasses.replace(seen, run={**run("started"), "run_id": "X"})
    found = aftermath.decide(started, run_id="Y", end_run="X")
    assert "has come to the stage started, and still has the lock" in found.sentence


def test_who_has_the_lock_without_a_name_of_ours_is_somebody_else() -> None:
    seen = aftermath.Evidence(NAME, run("fenced"), {NAME: entry(10)}, holder="psql of anna")
    assert aftermath.decide(seen, run_id="Y").action == "wait"


@pytest.mark.parametrize(
    ("stages", "place"),
    [
        pytest.param(["backing_up"], 0, id="one"),
        pytest.param(["locked", "migrating"], 1, id="the one that was to take it back was cut off, too"),
        pytest.param(["locked", "locked", "starting", "locked"], 2, id="after the swap"),
        pytest.param(["rehearsing", "locked"], 0, id="none came as far as the outage"),
        pytest.param(["swapped", "fenced"], 0, id="the newer one"),
    ],
)
def test_the_run_that_came_as_far_as_the_outage_is_the_one(stages: list[str], place: int) -> None:
    assert aftermath.which(stages) == place


def test_the_others_are_named() -> None:
    closed = {NAME: entry(10, is_open=False)}
    assert decide(run=run("fenced"), databases=closed, others=["X"]).sentence.endswith(
        " Others that have not ended: run X."
    )
    found = decide(run=run("fenced"), databases=closed, others=["X", "Y"], alive=[7])
    assert found.sentence.endswith(" Others that have not ended: run X, run Y.")
    assert found.todo[0] == "end the processes 7 of these runs"
