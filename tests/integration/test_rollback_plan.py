"""rollback_plan: the evidence is what is there, read without a trace, and the choice follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import record

from replica.application import BROKEN, HEAD
from tests.support.evidence import Witness
from tests.support.fenced import FencedStack
from tests.support.modules import run_module
from tests.support.stacks import Deployment, application_options, database_options, options, witness_of


def plan(stack: FencedStack, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module as another run does; in both modes it says the same, and writes nothing."""
    options = {
        "database": database_options(stack.database),
        "application": application_options(stack.database),
        "directory": str(stack.runs),
        "backup_directory": str(backups(stack)),
        "run_id": "20991231T000000Z-abcdef",
        **more,
    }
    server = Witness(stack.database.server.conninfo())
    before = (server.transactions(), stack.databases(), sorted(stack.runs.rglob("*")))
    seen = run_module("rollback_plan", options, check=check)
    assert (server.transactions(), stack.databases(), sorted(stack.runs.rglob("*"))) == before
    assert seen.get("failed") or seen["changed"] is False
    return seen


def backups(stack: FencedStack) -> Path:
    return stack.runs.parent / "backups"


def way(seen: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the ways."""
    found: dict[str, Any] = next(item for item in seen["ways"] if item["name"] == name)
    return found


def back_up(stack: FencedStack) -> dict[str, Any]:
    """As the role backup does it."""
    options = {key: value for key, value in stack.options().items() if key != "services"}
    made = run_module("pg_backup", {**options, "directory": str(backups(stack)), "run_directory": str(stack.directory)})
    assert made["changed"], made
    return made


def swapped(stack: FencedStack) -> str:
    """Backed up, cloned, migrated, and swapped, as a recovery does it; the name that is kept."""
    stack.lock()
    back_up(stack)
    stack.run("service_stop")
    stack.run("pg_fence", state="closed")
    new, old = stack.copied()
    oid = stack.databases()[new][0]
    record.begin(str(stack.directory), "cloned", new_oid=oid)
    counts = {
        f"public.{table}": rows for table, rows in Witness(stack.database.server.conninfo(new)).look().rows.items()
    }
    Witness(stack.database.server.conninfo()).wait_until_left(new)
    done = stack.swap(replacement=new, keep_as=old, row_counts=counts, run_directory=str(stack.directory))
    assert done["changed"], done
    record.begin(str(stack.directory), "started")
    stack.unlock()
    return old


def test_without_a_record_and_a_backup_there_is_no_way(stack: FencedStack) -> None:
    seen = plan(stack)
    assert (seen["way"], seen["behind"], seen["written"], seen["target"]) == ("", "", None, None)
    assert not any(item["possible"] for item in seen["ways"]), seen


def test_without_a_record_the_backup_is_the_only_way_and_needs_to_be_named(stack: FencedStack) -> None:
    stack.lock()
    back_up(stack)
    for path in stack.directory.glob("record.json"):
        path.unlink()
    seen = plan(stack)
    assert [item["name"] for item in seen["ways"] if item["possible"]] == ["restore"]
    assert seen["way"] == ""
    named = plan(stack, way="restore", accept_restore=stack.run_id)
    assert (named["way"], named["target"]) == ("restore", [BROKEN])
    assert named["manifest"].endswith(f"{stack.run_id}.manifest.json")


def test_after_a_swap_what_was_written_is_counted_and_has_to_be_accepted(stack: FencedStack) -> None:
    old = swapped(stack)
    seen = plan(stack)
    assert (seen["way"], seen["old"], seen["behind"], seen["target"]) == ("swap_back", old, stack.run_id, [BROKEN])
    assert seen["written"] == {"rows": 0, "fewer": 0, "total": 0, "sentences": [], "export": ""}
    assert seen["code_is_at_target"] is False
    assert plan(stack, check=True) == seen

    witness = witness_of(stack.database)
    witness.execute("insert into users (email, display_name) values ('a@b', 'c')", "delete from songs")
    refused = plan(stack)
    total = refused["written"]["total"]
    assert refused["way"] == ""
    assert total > 1
    assert f"-e rollback_accept_written={total}" in refused["next_step"]
    assert plan(stack, accept_written=total - 1)["way"] == ""
    accepted = plan(stack, accept_written=total)
    assert (accepted["way"], accepted["written"]["rows"]) == ("swap_back", 1)
    assert accepted["written"]["export"] == str(
        backups(stack) / f"{stack.database.name}_20991231T000000Z-abcdef.written.jsonl"
    )


def test_after_going_back_there_is_nothing_to_do(stack: FencedStack) -> None:
    old = swapped(stack)
    first = stack.run_id
    stack.run_id = "20301231T000000Z-fedcba"
    stack.lock()
    stack.run("pg_fence", state="closed")
    kept = f"{stack.database.name}_replaced_20301231t000000z_fedcba"
    done = stack.swap(replacement=old, keep_as=kept, behind=first, run_directory=str(stack.directory))
    assert done["changed"], done
    assert stack.record()["behind"] == first
    record.begin(str(stack.directory), "started")
    stack.unlock()

    seen = plan(stack)
    assert (seen["way"], seen["behind"]) == ("nothing", first)
    # A rollback is a run like others: it can be gone back behind, too, by its name.
    forward = plan(stack, behind=stack.run_id)
    assert (forward["way"], forward["old"]) == ("swap_back", kept)


def test_a_database_that_is_closed_is_opened(stack: FencedStack) -> None:
    stack.lock()
    back_up(stack)
    stack.run("service_stop")
    stack.run("pg_fence", state="closed")
    seen = plan(stack)
    assert seen["way"] == "open", seen
    assert way(seen, "nothing")["why"] == ["The database is closed: nobody can use it as it is."]


@pytest.mark.parametrize("verdict", ["lossless", "lossy", "impossible"])
def test_the_way_down_is_judged_by_both_codes_and_by_the_rehearsal(
    stack: FencedStack, verdict: str, tmp_path: Path
) -> None:
    swapped(stack)
    migrated = run_module("alembic_migrate", options(stack.database))
    assert migrated["after"] == [HEAD], migrated
    older = Deployment(tmp_path / "before")
    for path in older.versions.glob("*.py"):
        if path.name.startswith((HEAD, "234ea0f4b6c3")):
            path.unlink()
    after = {"code_after": {"workdir": str(older.directory)}}
    assert "knows more than" in " ".join(way(plan(stack), "downgrade")["why"])
    unrehearsed = way(plan(stack, **after), "downgrade")
    assert (unrehearsed["possible"], unrehearsed["proved"]) == (True, False), unrehearsed
    assert "Rehearse it first" in unrehearsed["needs"][0]

    facts = stack.record()
    undone = [{"revision": name, "verdict": verdict, "reason": "So it is."} for name in (HEAD, "234ea0f4b6c3")]
    facts["rehearsal"] = {"undone": undone}
    (stack.directory / "record.json").write_text(json.dumps(facts))
    seen = plan(stack, **after)
    found = way(seen, "downgrade")
    if verdict == "lossless":
        assert (found["possible"], found["proved"], found["loses"]) == (True, True, [])
        assert plan(stack, way="downgrade", **after)["code_is_at_target"] is True
        # What clients have put since into what goes with it, no rehearsal could know of.
        witness = witness_of(stack.database)
        witness.execute(
            "insert into song_sketches (prompt) values ('a'), ('b')",
            "update songs set sketch_id = (select id from song_sketches limit 1) "
            "where ctid = (select min(ctid) from songs)",
        )
        loss = ["public.song_sketches: 2 rows", "public.songs.sketch_id: 1 value"]
        used = plan(stack, way="downgrade", **after)
        assert used["way"] == ""
        assert way(used, "downgrade")["loses"] == [f"{text}." for text in loss]
        assert "rollback_accept_loss" in used["next_step"]
        assert plan(stack, way="downgrade", accept_loss=loss[:1], **after)["way"] == ""
        assert plan(stack, way="downgrade", accept_loss=loss, **after)["way"] == "downgrade"
    elif verdict == "impossible":
        assert found["possible"] is False
        assert f"{HEAD}: So it is." in found["why"]
    else:
        assert found["loses"] == [f"{name}: So it is." for name in (HEAD, "234ea0f4b6c3")]
        assert plan(stack, way="downgrade", **after)["way"] == ""
        loss = [f"{name}: So it is." for name in (HEAD, "234ea0f4b6c3")]
        assert plan(stack, way="downgrade", accept_loss=loss, **after)["way"] == "downgrade"


def test_a_damaged_backup_and_a_foreign_one(stack: FencedStack, tmp_path: Path) -> None:
    stack.lock()
    made = back_up(stack)
    dump = Path(made["dump"])
    dump.write_bytes(dump.read_bytes()[:-1])
    seen = plan(stack, way="restore", accept_restore=stack.run_id)
    assert seen["way"] == ""
    assert "bytes are there, the manifest says" in way(seen, "restore")["why"][0]

    foreign = tmp_path / "from-elsewhere.sql"
    foreign.write_text("-- a dump\n")
    asked = plan(stack, way="restore", foreign_backup=str(foreign))
    assert f"-e rollback_accept_restore={foreign.name}" in asked["next_step"]
    named = plan(stack, way="restore", foreign_backup=str(foreign), accept_restore=foreign.name)
    assert (named["way"], named["manifest"], named["target"]) == ("restore", "", None)
    missing = plan(stack, way="restore", foreign_backup=str(foreign) + "x", accept_restore="x")
    assert "is not there" in way(missing, "restore")["why"][0]


def test_a_run_that_is_not_there_and_unknown_keys_are_refused(stack: FencedStack) -> None:
    assert "There is no run 2000" in plan(stack, behind="2000")["msg"]
    assert "unknown keys: imgae" in plan(stack, code_after={"imgae": "x"})["msg"]
