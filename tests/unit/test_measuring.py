"""What a lock keeps waiting, and what is shown of statements."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import measuring


@pytest.mark.parametrize(
    ("reported", "mode", "reads", "writes"),
    [
        pytest.param("AccessShareLock", "ACCESS SHARE", False, False, id="a SELECT"),
        pytest.param("RowShareLock", "ROW SHARE", False, False, id="a SELECT FOR UPDATE"),
        pytest.param("RowExclusiveLock", "ROW EXCLUSIVE", False, False, id="an UPDATE"),
        pytest.param("ShareUpdateExclusiveLock", "SHARE UPDATE EXCLUSIVE", False, False, id="a VACUUM"),
        pytest.param("ShareLock", "SHARE", False, True, id="a CREATE INDEX"),
        pytest.param("ShareRowExclusiveLock", "SHARE ROW EXCLUSIVE", False, True, id="an ADD FOREIGN KEY"),
        pytest.param("ExclusiveLock", "EXCLUSIVE", False, True, id="a REFRESH CONCURRENTLY"),
        pytest.param("AccessExclusiveLock", "ACCESS EXCLUSIVE", True, True, id="an ALTER TABLE"),
    ],
)
def test_modes(reported: str, mode: str, reads: bool, writes: bool) -> None:
    assert measuring.mode(reported) == mode
    assert mode in measuring.MODES
    assert (measuring.blocks_reads(mode), measuring.blocks_writes(mode)) == (reads, writes)


def test_locks_on_what_the_revision_has_made_keep_nobody_out() -> None:
    reported = [
        {"oid": 1, "relation": "public.a", "mode": "ShareLock", "seconds": 3.0},
        {"oid": 2, "relation": "public.new", "mode": "AccessExclusiveLock", "seconds": 9.0},
        {"oid": 3, "relation": "public.b", "mode": "AccessExclusiveLock", "seconds": 1.0},
        {"oid": 4, "relation": "public.a", "mode": "AccessExclusiveLock", "seconds": 5.0},  # an index that is new
        {"oid": 5, "relation": "public.a", "mode": "ShareLock", "seconds": 4.0},
    ]
    found = measuring.described_locks(reported, {1, 3, 5})
    assert [(lock["relation"], lock["mode"], lock["seconds"]) for lock in found] == [
        ("public.b", "ACCESS EXCLUSIVE", 1.0),
        ("public.a", "SHARE", 4.0),
    ]


def test_slowest_puts_equal_ones_together() -> None:
    said: list[dict[str, Any]] = [{"sql": f"s{number}", "seconds": number / 10, "count": 1} for number in range(8)]
    said += [{"sql": "insert into t values ('a')", "seconds": 0.5, "count": 2}]
    said += [{"sql": "insert into t values ('b')", "seconds": 0.5, "count": 3}]
    found = measuring.slowest(said)
    assert [item["sql"] for item in found] == ["insert into t values ('…')", "s7", "s6", "s5", "s4"]
    assert found[0] == {"sql": "insert into t values ('…')", "seconds": 1.0, "count": 5}
