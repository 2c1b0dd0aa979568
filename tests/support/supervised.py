"""A small supervisord of a test's own, with programs that behave well or badly."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from replica.processes import halted
from tests.support.evidence import started

START_SECONDS = 120.0

# Programs for tests: one that runs, and one that ends at once and says why.
STEADY = "import time\nprint('ready')\nwhile True:\n    time.sleep(0.2)\n"
# One that a signal to end does not reach.
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\n" + STEADY
TRACEBACK = "raise RuntimeError('column songs.sketch_id does not exist')\n"


class Supervised:
    """supervisord in a directory; use as a context manager.

    Args:
        directory: Where it lives; must be there.
        programs: Python code of each program by name; run with `-u -c`.
        stop_seconds: What a program gets to end by itself.
    """

    def __init__(self, directory: Path, programs: Mapping[str, str], *, stop_seconds: int = 2) -> None:
        self.directory = directory
        self.config = directory / "supervisord.conf"
        self.controlled_by = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.config)]
        self._programs = dict(programs)
        self._stop_seconds = stop_seconds
        # A Unix socket's path must be short.
        self._sockets = tempfile.TemporaryDirectory(prefix="replica-run-")

    def log(self, name: str) -> Path:
        """Return a program's log file."""
        return self.directory / f"{name}.log"

    def set_program(self, name: str, code: str) -> None:
        """Give a program other code, for its next start."""
        (self.directory / f"{name}.py").write_text(code)

    def __enter__(self) -> Supervised:
        socket = Path(self._sockets.name) / "s.sock"
        lines = [
            "[unix_http_server]", f"file={socket}", "chmod=0700",
            "[supervisord]", f"logfile={self.directory / 'supervisord.log'}",
            f"pidfile={self.directory / 'supervisord.pid'}", f"childlogdir={self.directory}", "user=root",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
            "[supervisorctl]", f"serverurl=unix://{socket}",
        ]  # fmt: skip
        for name, code in self._programs.items():
            self.set_program(name, code)
            lines += [
                f"[program:{name}]", f"command={sys.executable} -u {self.directory / name}.py", "startsecs=1",
                "startretries=2", "autorestart=true", f"stopwaitsecs={self._stop_seconds}", "redirect_stderr=true",
                f"stdout_logfile={self.log(name)}",
            ]  # fmt: skip
        self.config.write_text("\n".join(lines) + "\n")
        subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_unused: object) -> None:
        parent = psutil.Process(int((self.directory / "supervisord.pid").read_text()))
        family = halted(parent)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        self._sockets.cleanup()

    def control(self, *arguments: str) -> str:
        """Run supervisorctl and return what it says."""
        command = [*self.controlled_by, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/").stdout

    def state(self, name: str) -> str:
        """Return a program's state, as supervisord says it."""
        return self.control("status", name).split()[1]

    def processes(self) -> dict[int, tuple[str, float]]:
        """Return command line and time of start of each program's process by its id, from the process table."""
        return started(self.directory / "supervisord.pid")

    def process(self, name: str) -> psutil.Process | None:
        """Return a program's process, from the process table."""
        parent = psutil.Process(int((self.directory / "supervisord.pid").read_text()))
        for child in parent.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # It has ended since, or waits to be reaped.
                if str(self.directory / f"{name}.py") in child.cmdline():
                    return child
        return None

    def wait_for(self, name: str, *states: str) -> None:
        """Wait until a program is in one of the states; raise AssertionError with the one it is in."""
        deadline = time.monotonic() + START_SECONDS
        while (seen := self.state(name)) not in states:
            assert time.monotonic() < deadline, f"{name} is {seen}, expected {states}"
            time.sleep(0.1)

    def option(self, name: str, **changes: Any) -> dict[str, Any]:
        """Return an entry of the option `services` of the modules."""
        return {
            "name": name,
            "runtime": "host",
            "manager": "supervisor",
            "manager_config": str(self.config),
            "unit": name,
            "log_files": [str(self.log(name))],
            "stop_timeout": 5,
            **changes,
        }
