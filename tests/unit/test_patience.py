"""How long a migration waits: the pauses between attempts, and the limit for statements after a rehearsal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ansible.module_utils.alembic_recovery.errors import StackError
from ansible.module_utils.alembic_recovery.patience import (
    FROM_REHEARSAL,
    Limits,
    Patience,
    StatementLimit,
    pause,
    statement_limit,
)


def middle() -> float:
    return 0.5


def schedule(patience: Patience, chance: Callable[[], float] = middle, each: float = 0.0) -> list[float]:
    """All pauses of a revision that never gets its lock; each attempt takes so many seconds."""
    found: list[float] = []
    while True:
        failed = len(found) + 1
        chosen = pause(patience, failed, sum(found) + failed * each, chance)
        if chosen is None:
            return found
        found.append(chosen)


@pytest.mark.parametrize(
    ("patience", "each", "expected"),
    [
        pytest.param(Patience(), 0, [1, 2, 4, 8], id="as it is"),
        pytest.param(Patience(1, 120), 0, [], id="one attempt has no pause"),
        pytest.param(Patience(8, 600), 0, [1, 2, 4, 8, 16, 30, 30], id="they grow to a bound"),
        pytest.param(Patience(5, 7), 0, [1, 2, 4], id="until patience is at its end"),
        pytest.param(Patience(5, 20), 5, [1, 2], id="the attempts count as well"),
        pytest.param(Patience(5, 0), 0, [], id="no patience"),
    ],
)
def test_the_pauses_of_a_revision_that_never_gets_its_lock(
    patience: Patience, each: float, expected: list[float]
) -> None:
    assert schedule(patience, each=each) == expected


@pytest.mark.parametrize(
    ("chance", "expected"), [(0.0, [0.75, 1.5, 3.0]), (1.0, [1.25, 2.5, 5.0])], ids=["least", "most"]
)
def test_pauses_vary_by_a_quarter(chance: float, expected: list[float]) -> None:
    assert schedule(Patience(4, 120), lambda: chance) == expected


@pytest.mark.parametrize(
    ("asked", "rehearsed", "seconds", "word"),
    [
        pytest.param(900, 3.0, 900, "as it was set", id="what was set wins"),
        pytest.param(0, 3.0, 0, "as it was set", id="no limit was set"),
        pytest.param(FROM_REHEARSAL, None, 0, "nothing was rehearsed", id="without a rehearsal"),
        pytest.param(FROM_REHEARSAL, 0.0, 65, "took 0 s", id="nothing was run"),
        pytest.param(FROM_REHEARSAL, 0.8, 65, "took 0.8 s", id="at least a minute"),
        pytest.param(FROM_REHEARSAL, 42.01, 426, "took 42.01 s", id="ten times as long, and the lock"),
    ],
)
def test_the_limit_for_statements(asked: int, rehearsed: float | None, seconds: int, word: str) -> None:
    limit = statement_limit(asked, rehearsed, lock=5)
    assert limit.seconds == seconds
    assert word in limit.reason


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        pytest.param(Limits(-1, StatementLimit(0, ""), 1), "lock_timeout is -1: it must be at least 0", id="lock"),
        pytest.param(Limits(5, StatementLimit(-2, ""), 1), "statement_timeout is -2", id="statement"),
        pytest.param(
            Limits(5, StatementLimit(0, ""), 1, Patience(0, 1)), "lock_attempts is 0: it must be at least 1", id="none"
        ),
        pytest.param(Limits(5, StatementLimit(0, ""), 1, Patience(1, -1)), "lock_patience is -1", id="patience"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(limits: Limits, said: str) -> None:
    with pytest.raises(StackError, match=said):
        limits.refuse_impossible()
    Limits(0, StatementLimit(0, ""), 1, Patience(1, 0)).refuse_impossible()
