"""Who looks after a service: the Docker Engine, supervisord, or systemd."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import sys
import time
import typing as t

from ansible.module_utils.alembic_recovery import docker_cli, process
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.alembic_recovery.services import UTC, Service, State, not_up

_LOG_LINES = 5000
# Within this time, a program that has ended by itself is started again, if it ever is.
_COMES_BACK_S = 3.0


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
        """When a process was started, from /proc (Linux): clock ticks since boot. One that only waits to be reaped has
        ended.
        """
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                state, *rest = file.read().rpartition(")")[2].split()
            if state == "Z":
                return None
            ticks = int(rest[18])
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
        said = match.group(1)
        loop = said in ("BACKOFF", "FATAL")
        return State(self.name, self.where, said == "RUNNING", restarts=int(loop), started_at=started, said=said)

    def restart(self) -> None:
        """See :meth:`Service.restart`."""
        self._remember_log_ends()
        limit = self.stop_timeout + 60.0
        # `restart` fails for a program that is not running, after it has started it.
        process.run([*self._control, "stop", self._unit], timeout=limit, expected=(0, 1, 7))
        done = process.run([*self._control, "start", self._unit], timeout=limit, expected=(0, 7))
        if done.rc != 0:  # it ended before supervisord's startsecs were over: its log says why
            raise not_up(self, f"does not stay up (supervisorctl: {' '.join(done.stdout.split())})")

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


def _program(name: str) -> str:
    """A manager's command: in PATH, or beside the Python that runs this (a virtual environment)."""
    found = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    if found is None:
        raise StackError(f"There is no `{name}` on this host, but recovery_stack.services names its manager.")
    return found
