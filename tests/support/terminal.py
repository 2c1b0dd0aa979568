"""A command at a real terminal (a pseudo-terminal that is its controlling terminal), typed at by a test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from pathlib import Path

import psutil


class Terminal:
    """Start a command at a terminal of its own; close it with `with`."""

    def __init__(self, argv: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self._fd, slave = pty.openpty()
        self.text = ""
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                # Only so does it become the controlling terminal, without which Ansible asks nobody.
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            # Ansible's workers may be in sessions of their own.
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> bool:
        """Add what the command has printed to `text`; return False at the end of it."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other side was closed
            return False
        self.text += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def read_until(self, words: str, seconds: float = 600) -> None:
        """Wait until the words have been printed; raise AssertionError with what was printed instead."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            if not self._read(0.2) or time.monotonic() > deadline:
                raise AssertionError(f"{words!r} was not printed. Printed:\n{self.text}")

    def wait_for_question(self, words: str) -> None:
        """Wait until the words have been printed and keys are read one by one, as a prompt of Ansible's does.

        Ansible throws away what was typed before that: a person is slower than it, a test is not.
        """
        self.read_until(words)
        deadline = time.monotonic() + 20
        while termios.tcgetattr(self._fd)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)

    def type(self, keys: str) -> None:
        """Type the keys; Enter is a line feed, Ctrl-C the character 3."""
        os.write(self._fd, keys.encode())

    def wait(self, seconds: float = 600) -> int:
        """Wait for the end of the command and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.2) and time.monotonic() < deadline:
            if self._process.poll() is not None and not select.select([self._fd], [], [], 0)[0]:
                break
        return self._process.wait(timeout=10)
