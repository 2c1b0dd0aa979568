"""The services that depend on the database: how they are, restarting them in order, and what their logs say since."""

from __future__ import annotations

import abc
import dataclasses
import datetime
import os
import re
import shutil
import sys
import time
import typing as t

from ansible.module_utils.alembic_recovery import docker_cli, process
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError

UTC = datetime.timezone.utc

#: What a log must not hold after a restart: Python's tracebacks, and errors of PostgreSQL and its drivers.
LOG_PATTERNS: t.Sequence[str] = (
    r"Traceback \(most recent call last\)",
    r"\bUndefined(Column|Table|Object|Function)\b",
    r"\b(sqlalchemy\.exc|psycopg2?(\.errors)?|asyncpg\.exceptions)\.\w*Error\b",
    r"\bProgrammingError\b|\bOperationalError\b",
    r"^.{0,60}\b(FATAL|PANIC): ",
)
_LOG_LINES = 5000
_LINE_LENGTH = 300
# How long a service without a health check must stay up to count as started.
_SETTLE_S = 3.0
# Within this time, one that has ended by itself is started again, if it ever is.
_COMES_BACK_S = 3.0


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
            if self._stays_down(seen, time.monotonic() - began):
                return
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


class ContainerService(Service):
    """A container, looked after by the Docker Engine."""

    def __init__(self, docker: docker_cli.DockerCli, name: str, container: str, stop_timeout: int) -> None:
        super().__init__(name, f"container {container}", stop_timeout)
        self._docker = docker
        self._container = container

    def state(self) -> State:
        """See :meth:`Service.state`."""
        seen = self._docker.state(self._container)
        return State(
            self.name,
            self.where,
            seen.running and not seen.restarting,
            seen.health,
            seen.restart_count,
            seen.started_at,
            self._docker.image_name(seen.image_id),
        )

    def restart(self) -> None:
        """See :meth:`Service.restart`."""
        self._docker.act("restart", self._container, stop_timeout=self.stop_timeout)

    def stop_argv(self) -> list[str]:
        """See :meth:`Service.stop_argv`."""
        return [self._docker.path, "stop", "--time", str(self.stop_timeout), self._container]

    def start_argv(self) -> list[str]:
        """See :meth:`Service.start_argv`."""
        return [self._docker.path, "start", self._container]

    def policy(self) -> str | None:
        """See :meth:`Service.policy`; after a restart of the Engine, some start even what was stopped."""
        seen = self._docker.inspect(self._container)["HostConfig"].get("RestartPolicy") or {}
        name, count = seen.get("Name") or "no", seen.get("MaximumRetryCount") or 0
        return f"{name}:{count}" if name == "on-failure" and count else name

    def policy_argv(self, policy: str) -> list[str]:
        """See :meth:`Service.policy_argv`."""
        return [self._docker.path, "update", "--restart", policy, self._container]

    def addresses(self) -> list[str]:
        """See :meth:`Service.addresses`."""
        networks = (self._docker.inspect(self._container).get("NetworkSettings") or {}).get("Networks") or {}
        found = [seen.get(key) for seen in networks.values() for key in ("IPAddress", "GlobalIPv6Address")]
        return [address for address in found if address]

    def log_lines(self) -> list[str]:
        """See :meth:`Service.log_lines`."""
        return self._docker.logs_since(
            self._container, self._docker.state(self._container).started_at, limit_lines=_LOG_LINES
        )


class UnitService(Service):
    """A process on the target, looked after by a service manager."""

    def __init__(self, name: str, manager: str, unit: str, stop_timeout: int, log_files: t.Sequence[str]) -> None:
        super().__init__(name, f"{manager} unit {unit}", stop_timeout)
        self._unit = unit
        self._log_files = list(log_files)
        self._positions: dict[str, int] = {}

    def _started_at(self, pid: int) -> datetime.datetime | None:
        """When a process was started, from /proc (Linux): clock ticks since boot."""
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                ticks = int(file.read().rpartition(")")[2].split()[19])
            with open("/proc/uptime", encoding="utf-8") as file:
                uptime = float(file.read().split()[0])
        except OSError:
            return None
        return datetime.datetime.fromtimestamp(time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK"), UTC)

    def _remember_log_ends(self) -> None:
        """A manager does not mark a restart in a log file: what comes after it is told by the position."""
        self._positions = {path: os.path.getsize(path) for path in self._log_files if os.path.exists(path)}

    def log_lines(self) -> list[str]:
        """Nothing, unless it was restarted by this object: before that there is no telling what is old."""
        lines: list[str] = []
        for path, position in self._positions.items():
            with open(path, encoding="utf-8", errors="replace") as file:
                file.seek(position if os.path.getsize(path) >= position else 0)
                lines += file.read(4 << 20).splitlines()[-_LOG_LINES:]
        return lines


class SupervisorService(UnitService):
    """A program of supervisord."""

    # supervisorctl is a Python program: a look costs as much as a fifth of a second of a processor.
    pause = 1.0

    def __init__(self, name: str, unit: str, config: str | None, stop_timeout: int, log_files: t.Sequence[str]) -> None:
        super().__init__(name, "supervisor", unit, stop_timeout, log_files)
        self._control = [_program("supervisorctl"), *(["-c", config] if config else [])]

    def state(self) -> State:
        """See :meth:`Service.state`."""
        # Exit codes of `status`: 0 all run, 3 some do not, 4 there is no such program or no supervisord.
        done = process.run([*self._control, "status", self._unit], timeout=30.0, expected=(0, 3, 4))
        if done.rc == 4:
            raise self._unknown(" ".join(done.stdout.split()))
        match = re.match(r"\S+\s+([A-Z]+)\s*(?:pid (\d+))?", done.stdout)
        if match is None:
            raise RecoveryError(f"supervisorctl gave no state for {self._unit}: {done.stdout.strip()[:300]}")
        started = self._started_at(int(match.group(2))) if match.group(2) else None
        loop = match.group(1) in ("BACKOFF", "FATAL")
        word = match.group(1)
        return State(
            self.name,
            self.where,
            word == "RUNNING",
            restarts=int(loop),
            started_at=started,
            said=word,
        )

    def restart(self) -> None:
        """See :meth:`Service.restart`."""
        self._remember_log_ends()
        limit = self.stop_timeout + 60.0
        # `restart` fails for a program that is not running, after it has started it.
        process.run([*self._control, "stop", self._unit], timeout=limit, expected=(0, 1, 7))
        done = process.run([*self._control, "start", self._unit], timeout=limit, expected=(0, 7))
        if done.rc != 0:  # it ended before supervisord's startsecs were over: its log says why
            raise _not_up(self, f"does not stay up (supervisorctl: {' '.join(done.stdout.split())})")

    def _stays_down(self, seen: State, seconds: float) -> bool:
        """A program that has ended by itself is started again up to a second later.

        In between, supervisord (4.3) takes no stop: it says NOT_RUNNING, and supervisorctl ends with 0.
        """
        return seen.said in ("STOPPED", "FATAL") or (seen.said == "EXITED" and seconds > _COMES_BACK_S)

    def stop_argv(self) -> list[str]:
        """See :meth:`Service.stop_argv`; supervisord itself knows how long it waits (stopwaitsecs)."""
        return [*self._control, "stop", self._unit]

    def start_argv(self) -> list[str]:
        """See :meth:`Service.start_argv`."""
        return [*self._control, "start", self._unit]

    def _unknown(self, said: str) -> StackError:
        asked = " ".join(self._control)
        if "no such process" in said or "no such group" in said:
            return StackError(
                f"supervisord has no program {self._unit}. Correct services[].unit in recovery_stack ({asked} status "
                "lists those that are there)."
            )
        return StackError(
            f"supervisord does not answer: {asked} status says {said!r}. Is it running, and is "
            "services[].manager_config in recovery_stack right?"
        )


class SystemdService(UnitService):
    """A unit of systemd."""

    _PROPERTIES = "LoadState,ActiveState,SubState,MainPID,NRestarts"

    def __init__(self, name: str, unit: str, stop_timeout: int) -> None:
        super().__init__(name, "systemd", unit, stop_timeout, [])
        self._systemctl = _program("systemctl")
        self._since: float | None = None

    def state(self) -> State:
        """See :meth:`Service.state`."""
        done = process.run([self._systemctl, "show", "--property", self._PROPERTIES, self._unit], timeout=30.0)
        found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        if found.get("LoadState") == "not-found":
            raise StackError(f"systemd has no unit {self._unit}. Correct services[].unit in recovery_stack.")
        pid = int(found.get("MainPID") or 0)
        return State(
            self.name,
            self.where,
            found.get("ActiveState") == "active",
            restarts=int(found.get("NRestarts") or 0),
            started_at=self._started_at(pid) if pid else None,
            said=found.get("ActiveState", ""),
        )

    def restart(self) -> None:
        """See :meth:`Service.restart`."""
        self._since = time.time()
        process.run([self._systemctl, "restart", self._unit], timeout=self.stop_timeout + 120.0)

    def stop_argv(self) -> list[str]:
        """See :meth:`Service.stop_argv`; the unit itself knows how long systemd waits (TimeoutStopSec)."""
        return [self._systemctl, "stop", self._unit]

    def start_argv(self) -> list[str]:
        """See :meth:`Service.start_argv`."""
        return [self._systemctl, "start", self._unit]

    def log_lines(self) -> list[str]:
        """See :meth:`Service.log_lines`."""
        if self._since is None:
            return []
        done = process.run(
            ["journalctl", "--unit", self._unit, "--since", f"@{int(self._since)}", "--output", "cat", "--no-pager"],
            timeout=60.0,
        )
        return done.stdout.splitlines()[-_LOG_LINES:]


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
            raise _not_up(service, "ends and is restarted again and again")
        if seen.running and seen.health == "healthy":
            return seen
        if seen.running and seen.health == "":
            # Between two looks it may have ended and been started again: then it has not been up meanwhile.
            if up_since is None or _is_another(began, seen.started_at):
                up_since, began, lives = now, seen.started_at, lives + 1
            if max(now - up_since, seen.age()) >= _SETTLE_S:
                return seen
        else:
            up_since = None
        if now > deadline:
            if lives > 1:
                raise _not_up(service, f"ends and is started again and again: {lives} times in {timeout:g} s")
            state = seen.health or ("running" if seen.running else "not running")
            raise _not_up(service, f"is {state} after {timeout:g} s")
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


def _not_up(service: Service, what: str) -> RecoveryError:
    tail = " / ".join(masked(line)[:_LINE_LENGTH] for line in service.log_lines()[-5:])
    return RecoveryError(
        f"{service.name} ({service.where}) was restarted and {what}. The end of its log: {tail or 'nothing'}",
        service=service.name,
    )


def _program(name: str) -> str:
    """A manager's command: in PATH, or beside the Python that runs this (a virtual environment)."""
    found = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    if found is None:
        raise StackError(f"There is no `{name}` on this host, but recovery_stack.services names its manager.")
    return found
