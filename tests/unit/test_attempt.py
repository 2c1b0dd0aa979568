"""What of an attempt is permanent, as far as the agent's words tell."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.attempt import Attempt

STATEMENT = {"event": "statement", "sql": "update songs set price = 1; commit", "alone": False}


@pytest.mark.parametrize(
    ("messages", "unproved"),
    [
        pytest.param([STATEMENT], None, id="nothing was committed"),
        pytest.param([{"event": "commit", "xid": ""}], None, id="a commit of nothing"),
        pytest.param([{"event": "commit", "xid": "812"}], [], id="a commit"),
        pytest.param([{"event": "commit_in_sql", "xid": None, "more": True}, STATEMENT], [], id="one among others"),
        pytest.param([{"event": "commit", "xid": None}], [], id="one that nobody told of"),
    ],
)
def test_unproved(messages: list[dict[str, Any]], unproved: list[str] | None) -> None:
    attempt = Attempt("two")
    for message in messages:
        attempt.heard(message)
    assert attempt.unproved == unproved


@pytest.mark.parametrize("calls_commit", [True, False])
@pytest.mark.parametrize("blind", [True, False])
def test_a_driver_that_does_not_tell_leaves_a_doubt_if_the_source_calls_commit(calls_commit: bool, blind: bool) -> None:
    attempt = Attempt("two", calls_commit=calls_commit)
    attempt.heard({"event": "blind"} if blind else STATEMENT)
    assert attempt.doubtful is (calls_commit and blind)
