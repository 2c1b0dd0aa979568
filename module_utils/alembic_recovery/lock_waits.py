"""What becomes of a revision that does not get a lock: who was in the way, whether it is tried again, and when."""

from __future__ import annotations

import random
import time
import typing as t

from ansible.module_utils.alembic_recovery import blockers, patience


class LockWaits:
    """The attempts of one run, and what each came to."""

    def __init__(
        self,
        watch: blockers.Watch,
        allowed: patience.Patience,
        note: t.Callable[[dict[str, t.Any]], None],
        *,
        terminate: bool,
    ) -> None:
        """:param note: is told of each attempt that failed.

        :param terminate: those who are in the way are ended before the next attempt.
        """
        self.watch = watch
        self._allowed = allowed
        self._note = note
        self._terminate = terminate
        #: Each attempt that failed, as it is in a task's result.
        self.retries: list[dict[str, t.Any]] = []
        self._failed = 0
        self._began = time.monotonic()

    @property
    def attempts(self) -> int:
        """The attempt that is made now."""
        return self._failed + 1

    def begin(self) -> None:
        """Another revision is next."""
        self._failed, self._began = 0, time.monotonic()

    def failed(self, revision: str, *, clean: bool) -> tuple[float | None, list[str]]:
        """A lock was not to be had: seconds until the next attempt, if there is to be one, and sentences.

        :param clean: nothing of the revision is permanent; otherwise it is not tried again.
        """
        self._failed += 1
        seen, waited = self.watch.seen, time.monotonic() - self._began
        pause = patience.pause(self._allowed, self._failed, waited, random.random) if clean else None
        ended, left = self.watch.end(seen) if self._terminate and pause is not None else ([], [])
        this = {
            "revision": revision,
            "attempt": self._failed,
            "blockers": [*map(str, seen), *self.watch.prepared],
            "ended": ended,
            "left": left,
            "pause": None if pause is None else round(pause, 1),
        }
        self.retries.append(this)
        self._note({"event": "lock_not_available", **this})
        said = [self.watch.sentence(), *left]
        if clean:
            tried = "once" if self._failed == 1 else f"{self._failed} times in {waited:.0f} s"
            said = [f"It was tried {tried}.", *said, f"Nothing of revision {revision} has stayed."]
        return pause, said
