"""The services that depend on the database: how they are, whether they are up again, and what their logs say since.

Who looks after them is in `service_managers.py`.
"""

from __future__ import annotations

import abc
import dataclasses
import datetime
import re
import time
import typing as t

from ansible.module_utils.alembic_recovery import process
from ansible.module_utils.alembic_recovery.errors import RecoveryError

UTC = datetime.timezone.utc

#: What a log must not hold after a restart: Python's tracebacks, and errors of PostgreSQL and its drivers.
LOG_PATTERNS: t.Sequence[str] = (
    r"Traceback \(most recent call last\)",
    r"\bUndefined(Column|Table|Object|Function)\b",
    r"\b(sqlalchemy\.exc|psycopg2?(\.errors)?|asyncpg\.exceptions)\.\w*Error\b",
    r"\bProgrammingError\b|\bOperationalError\b",
    r"^.{0,60}\b(FATAL|PANIC): ",
)
_LINE_LENGTH = 300
# How long a service without a health check must stay up to count as started.
_SETTLE_S = 3.0


@dataclasses.dataclass(frozen=True)
class State:
    """How a service is: `health` is empty where nobody checks it; `problem` is empty where there is none.

    `said` is the manager's own word for it, if it has one.
    """

    name: str
    where: str
    running: bool
    health: str = ""
    restarts: int = 0
    started_at: datetime.datetime | None = None
    image: str = ""
    said: str = ""

    @property
    def starting(self) -> bool:
        """Whether it is being started, or is about to be, and nobody knows yet whether it stays."""
        return self.said in ("STARTING", "BACKOFF", "activating")

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop and has not ended yet; a manager refuses to start it until then."""
        return self.said in ("STOPPING", "deactivating")

    @property
    def problem(self) -> str:
        """What is wrong with it, in a few words."""
        if not self.running:
            return "is restarting in a loop" if self.restarts else "is not running"
        if self.health == "unhealthy":
            return "is unhealthy"
        return ""

    def age(self) -> float:
        """For how many seconds it has been running; 0 where that is not known."""
        if not self.running or self.started_at is None:
            return 0.0
        return (datetime.datetime.now(UTC) - self.started_at).total_seconds()

    def as_result(self) -> dict[str, t.Any]:
        """The JSON form for a task's result."""
        return {
            "name": self.name,
            "where": self.where,
            "running": self.running,
            "health": self.health,
            "restarts": self.restarts,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "image": self.image,
            "problem": self.problem,
        }


class Service(abc.ABC):
    """One service and who looks after it."""

    #: Seconds between two looks while waiting for it: a look is the start of a process.
    pause = 0.5

    def __init__(self, name: str, where: str, stop_timeout: int) -> None:
        self.name = name
        self.where = where
        self.stop_timeout = stop_timeout

    @abc.abstractmethod
    def state(self) -> State:
        """How it is now.

        :raises RecoveryError: whoever looks after it does not answer, or does not know it.
        """

    @abc.abstractmethod
    def restart(self) -> None:
        """Restart it, or start it if it is not running; returns when that has been asked for.

        :raises RecoveryError: it was refused.
        """

    @abc.abstractmethod
    def stop_argv(self) -> list[str]:
        """The command that ends it, with the time that it gets for that."""

    @abc.abstractmethod
    def start_argv(self) -> list[str]:
        """The command that starts it."""

    def stop(self) -> None:
        """End it, and wait until it has ended; it gets `stop_timeout` seconds to finish what it is doing.

        :raises RecoveryError: it was refused, or it still runs.
        """
        began = time.monotonic()
        while True:
            process.run(self.stop_argv(), timeout=self.stop_timeout + 120.0)
            seen = self._wait_while(lambda state: state.running or state.stopping, self.stop_timeout + 10.0)
            seconds = time.monotonic() - began
            if self._stays_down(seen, seconds):
                return
            if seconds > self.stop_timeout + 60.0:
                raise RecoveryError(
                    f"{self.name} ({self.where}) was told to stop and comes back: it is {seen.said}.", service=self.name
                )
            time.sleep(self.pause)

    def start(self) -> None:
        """Start it, once an earlier stop is over; returns when that has been asked for.

        :raises RecoveryError: it was refused, or the stop is not over.
        """
        self._wait_while(lambda state: state.stopping, self.stop_timeout + 120.0)
        process.run(self.start_argv(), timeout=120.0)

    def _wait_while(self, there: t.Callable[[State], bool], seconds: float) -> State:
        deadline = time.monotonic() + seconds
        while there(seen := self.state()):
            if time.monotonic() > deadline:
                raise RecoveryError(f"{self.name} ({self.where}) was told to stop and still runs.", service=self.name)
            time.sleep(self.pause)
        return seen

    def _stays_down(self, seen: State, seconds: float) -> bool:  # noqa: ARG002 (a manager that forgets a stop needs it)
        """Whether it does not come up again by itself: `seconds` after it was first told to stop."""
        return True

    def policy(self) -> str | None:
        """What starts it again by itself, as it is written in commands; ``None`` where a stop is respected."""
        return None

    def policy_argv(self, policy: str) -> list[str]:
        """The command that sets what starts it again by itself."""
        raise NotImplementedError

    def set_policy(self, policy: str) -> None:
        """Set what starts it again by itself.

        :raises RecoveryError: it was refused.
        """
        process.run(self.policy_argv(policy))

    def addresses(self) -> list[str]:
        """The addresses from which it speaks with a database, as far as they can be told."""
        return []

    @abc.abstractmethod
    def log_lines(self) -> list[str]:
        """Its last log lines since it was started."""


def wait_until_up(service: Service, timeout: float) -> State:
    """Wait until a service that has been restarted is up: healthy where that is checked, else up for some seconds.

    :raises RecoveryError: it ended, or was not up within `timeout` seconds; with the end of its log.
    """
    deadline = time.monotonic() + timeout
    first = service.state()
    up_since: float | None = None
    began: datetime.datetime | None = None
    lives = 0
    while True:
        seen = service.state()
        now = time.monotonic()
        if seen.restarts > first.restarts:
            raise not_up(service, "ends and is restarted again and again")
        if seen.running and seen.health == "healthy":
            return seen
        # Gone from the process table, and its supervisor has not noticed yet.
        gone = seen.said == "RUNNING" and began is not None and seen.started_at is None
        if seen.running and seen.health == "" and not gone:
            # Between two looks it may have ended and been started again: then it has not been up meanwhile.
            found = began is None and seen.started_at is not None
            if up_since is None or found or _is_another(began, seen.started_at):
                up_since, began, lives = now, seen.started_at, lives + 1
            if max(now - up_since, seen.age()) >= _SETTLE_S:
                return seen
        else:
            up_since = None
        if now > deadline:
            if lives > 1:
                raise not_up(service, f"ends and is started again and again: {lives} times in {timeout:g} s")
            state = seen.health or ("running" if seen.running and not gone else "not running")
            raise not_up(service, f"is {state} after {timeout:g} s")
        time.sleep(service.pause)


def _is_another(one: datetime.datetime | None, other: datetime.datetime | None) -> bool:
    """Whether two moments of a start are of different processes; each is read to some hundredths of a second."""
    return one is not None and other is not None and abs((other - one).total_seconds()) > 0.5


def log_problems(service: Service, patterns: t.Sequence[str]) -> list[str]:
    """Lines of a service's log since its start that match one of the patterns, at most ten, shortened, masked."""
    compiled = [re.compile(pattern) for pattern in patterns]
    lines = service.log_lines()
    found = [line for line in lines if any(pattern.search(line) for pattern in compiled)]
    return [masked(line)[:_LINE_LENGTH] for line in found[:10]]


def masked(text: str) -> str:
    """A text without the passwords of URLs in it.

    >>> masked("postgresql://app:s3cret@db/app")
    'postgresql://app:***@db/app'
    """
    return re.sub(r"(\w+://[^\s:/@]*:)[^\s@]+(?=@)", r"\1***", text)


def not_up(service: Service, what: str) -> RecoveryError:
    """What to say of a service that was restarted and is not as it should be, with the end of its log."""
    tail = " / ".join(masked(line)[:_LINE_LENGTH] for line in service.log_lines()[-5:])
    return RecoveryError(
        f"{service.name} ({service.where}) was restarted and {what}. The end of its log: {tail or 'nothing'}",
        service=service.name,
    )
