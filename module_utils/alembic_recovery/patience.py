"""How long a migration waits: pauses between attempts that found a lock taken, and the bound of one statement. Pure."""

from __future__ import annotations

import dataclasses
import math
import typing as t

from ansible.module_utils.alembic_recovery.errors import StackError

#: As a limit for statements: whatever follows from the rehearsal.
FROM_REHEARSAL = -1

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# Whoever takes the lock at regular moments would otherwise be met at the same moment of his again.
_JITTER = 0.25

# A server under load, with its data on a disk, is slower than the one of the rehearsal, which nobody else uses.
_FACTOR = 10
_FLOOR_S = 60


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often a revision is tried that cannot get a lock, and for how many seconds in all."""

    attempts: int = 5
    seconds: int = 120


@dataclasses.dataclass(frozen=True)
class StatementLimit:
    """Seconds that one statement may take (0: as long as it likes), and where that comes from."""

    seconds: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds for the migration's own session; seconds, 0 is no bound. `silence` bounds the wait for a sign of life."""

    lock: int
    statement: StatementLimit
    silence: int
    patience: Patience = dataclasses.field(default_factory=Patience)

    def refuse_impossible(self) -> None:
        """:raises StackError: a number makes no sense."""
        asked = {
            "lock_timeout": (self.lock, 0),
            "statement_timeout": (self.statement.seconds, 0),
            "lock_attempts": (self.patience.attempts, 1),
            "lock_patience": (self.patience.seconds, 0),
        }
        for name, (value, least) in asked.items():
            if value < least:
                raise StackError(f"{name} is {value}: it must be at least {least}. Nothing was touched.")

    def as_result(self) -> dict[str, t.Any]:
        """The bounds, for a task's result."""
        return {
            "lock_timeout": self.lock,
            "lock_attempts": self.patience.attempts,
            "lock_patience": self.patience.seconds,
            "statement_timeout": self.statement.seconds,
            "statement_timeout_reason": self.statement.reason,
        }


def pause(patience: Patience, failed: int, waited: float, chance: t.Callable[[], float]) -> float | None:
    """Seconds to wait before the next attempt; ``None`` if there is to be no other.

    :param failed: how many attempts at this revision have failed.
    :param waited: seconds since the first of them began.
    :param chance: gives a number from 0 to 1.
    """
    if failed >= patience.attempts:
        return None
    plain = min(_FIRST_PAUSE_S * 2 ** (failed - 1), _LONGEST_PAUSE_S)
    chosen = plain * (1 + _JITTER * (2 * chance() - 1))
    return chosen if waited + chosen <= patience.seconds else None


def statement_limit(asked: int, rehearsed: float | None, lock: int) -> StatementLimit:
    """How long one statement may take.

    :param asked: seconds that somebody has chosen, or :data:`FROM_REHEARSAL`.
    :param rehearsed: seconds that the slowest statement took in the rehearsal, if there was one.
    :param lock: seconds that it may wait for a lock, which is a part of what it takes.
    """
    if asked != FROM_REHEARSAL:
        return StatementLimit(asked, "as it was set (statement_timeout)")
    if rehearsed is None:
        return StatementLimit(0, "no limit: nothing was rehearsed that it could follow from")
    seconds = max(_FLOOR_S, math.ceil(_FACTOR * rehearsed)) + lock
    return StatementLimit(
        seconds,
        f"from the rehearsal: its slowest statement took {rehearsed:g} s; {_FACTOR} times as long, at least "
        f"{_FLOOR_S} s, and {lock} s for a lock",
    )
