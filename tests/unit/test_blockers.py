"""Which locks go together, and how a session that is in the way is named."""

from __future__ import annotations

import pytest
from ansible.module_utils.alembic_recovery.blockers import Blocker, conflicting
from ansible.module_utils.alembic_recovery.errors import StackError

ALL = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]


@pytest.mark.parametrize(
    ("mode", "without"),
    [
        pytest.param("ACCESS SHARE", ALL[:7], id="a SELECT waits for an ALTER TABLE only"),
        pytest.param("ROW SHARE", ALL[:6], id="a SELECT FOR UPDATE"),
        pytest.param("ROW EXCLUSIVE", ALL[:4], id="an UPDATE goes with others"),
        pytest.param("SHARE UPDATE EXCLUSIVE", ALL[:3], id="a CREATE INDEX CONCURRENTLY"),
        pytest.param("SHARE", [*ALL[:2], "ShareLock"], id="a CREATE INDEX goes with others"),
        pytest.param("SHARE ROW EXCLUSIVE", ALL[:2], id="an ADD FOREIGN KEY"),
        pytest.param("EXCLUSIVE", ALL[:1], id="readers only"),
        pytest.param("ACCESS EXCLUSIVE", [], id="an ALTER TABLE waits for all"),
    ],
)
def test_conflicting(mode: str, without: list[str]) -> None:
    """As in the manual's table "Conflicting Lock Modes"."""
    assert conflicting(mode) == [name for name in ALL if name not in without]


@pytest.mark.parametrize("mode", ["AccessShareLock", "", None])
def test_a_mode_that_there_is_not(mode: str | None) -> None:
    with pytest.raises(StackError, match="There is no lock mode"):
        conflicting(mode)


@pytest.mark.parametrize(
    ("blocker", "shown"),
    [
        pytest.param(
            Blocker(7, "reporting", "report", "10.0.0.5", "active", "x", "2025-10-21T03:00:00Z", 12, "select …"),
            "7 (reporting, report, active, for 12 s, since 2025-10-21T03:00:00Z, from 10.0.0.5), "
            "its statement: select …",
            id="all",
        ),
        pytest.param(
            Blocker(7, "", "", "", "", "", "", None, ""), "7 (no role, no name, state not shown)", id="nothing is shown"
        ),
    ],
)
def test_how_a_session_is_named(blocker: Blocker, shown: str) -> None:
    assert str(blocker) == shown
