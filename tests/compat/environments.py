"""Environments of their own for applications and sets of versions: made once, and kept in the cache."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.ansible_run import ROOT

CACHE = ROOT / ".cache" / "compat"


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Make an environment, unless it is there as it should be.

    Args:
        name: The name of its directory.
        requirements: What pip installs into it, pinned, with what that needs.

    Returns:
        Its directory.
    """
    with _made(name, requirements) as (directory, is_there):
        if not is_there:
            _venv(directory)
            _pip("--python", str(directory / "bin" / "python"), "install", *requirements)
    return directory


def packages(name: str, requirements: Sequence[str], *, alone: bool = False) -> Path:
    """Install packages into a directory that is no environment; `alone` is: nothing of what they need. Return it."""
    with _made(name, requirements) as (directory, is_there):
        if not is_there:
            _pip("install", "--target", str(directory), *(["--no-deps"] if alone else []), *requirements)
    return directory


def composed(name: str, places: Sequence[Path]) -> Path:
    """Make an environment of packages that are in other directories; return its directory.

    So that a product of versions costs as many installations as there are versions, not as there are combinations.
    """
    with _made(name, [str(place) for place in places]) as (directory, is_there):
        if not is_there:
            _venv(directory)
            (site,) = directory.glob("lib/python*/site-packages")
            (site / "composed.pth").write_text("".join(f"{place}\n" for place in places))
    return directory


@contextmanager
def _made(name: str, wanted: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Give a directory, and whether it is as wanted; the next one to ask waits, and finds that it is."""
    CACHE.mkdir(parents=True, exist_ok=True)
    directory, stamp, text = CACHE / name, CACHE / f"{name}.txt", "\n".join([sys.version, *wanted])
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory, stamp.is_file() and stamp.read_text() == text
        stamp.write_text(text)


def _venv(directory: Path) -> None:
    # Without pip: this environment's installs into it, and to bring one of its own takes longer than all else.
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", directory], check=True, timeout=300)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "10", "--timeout", "60", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, f"pip {' '.join(arguments)} failed:\n{done.stderr[-3000:]}"
