"""Real runs of Ansible's commands, with what the tester's own environment would add taken away."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# These change what Ansible does: settings, and the signs of a continuous integration or of AWX.
_FOREIGN = re.compile(r"^(ANSIBLE_.*|CI|AWX_.*|TOWER_.*|RUNNER_.*|PYTHONUNBUFFERED|NO_COLOR|FORCE_COLOR)$")


@dataclass(frozen=True)
class Run:
    """How a command ended and what it printed (text)."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, one after the other."""
        return f"{self.out}\n{self.err}"


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the environment for a run: the tester's, without what changes Ansible, with `extra`."""
    environment = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["ANSIBLE_NOCOLOR"] = "1"
    environment["ANSIBLE_LOCALHOST_WARNING"] = "0"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment.update(extra)
    return environment


def run(
    *argv: str | Path,
    cwd: Path = ROOT,
    environment: dict[str, str] | None = None,
    timeout: float = 600,
    stdin: str | None = None,
) -> Run:
    """Run one of this environment's commands (`ansible-playbook`, `ansible-doc`, …) without a terminal.

    `environment` is added to `clean_environment()`; `stdin` is what the command can read.
    Raises subprocess.TimeoutExpired after `timeout` seconds.
    """
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=clean_environment(**(environment or {})),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
        # A terminal of the tester's must not be found through the session either.
        start_new_session=True,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def run_playbook(playbook: str | Path, *arguments: str | Path, **keywords: object) -> Run:
    """Run `ansible-playbook playbook arguments…`; keywords as for `run`."""
    return run("ansible-playbook", playbook, *arguments, **keywords)  # type: ignore[arg-type]
