"""The command lines of this machine, which everybody on it can read."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


class Watch:
    """Looks at all command lines of the machine, over and over, for a text that must not be in one.

    Those of processes in containers are among them.

    Args:
        marker: The text.
        pause: Seconds between two looks; a process that lives for less may be missed.
    """

    def __init__(self, marker: str, pause: float = 0.005) -> None:
        self._marker, self._pause = marker.encode(), pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.found: set[str] = set()
        self.rounds = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _look(self) -> None:
        # Whoever has been there for a second has the command line that he will keep: to read them all each time would
        # take a processor for itself.
        first_seen = {f"{os.getpid()}": 0.0}
        while not self._stop.is_set():
            self.rounds += 1
            now = time.monotonic()
            there = filter(str.isdigit, os.listdir("/proc"))  # noqa: PTH208 (it has to be quick)
            first_seen = {name: first_seen.get(name, now) for name in there}
            for name, since in first_seen.items():
                if now - since > 1.0:
                    continue
                try:
                    line = Path(f"/proc/{name}/cmdline").read_bytes()
                except OSError:
                    continue
                if self._marker in line:
                    self.found.add(line.replace(b"\0", b" ").decode(errors="replace"))
            time.sleep(self._pause)
