"""Ending a supervisor with all that it has started."""

from __future__ import annotations

import contextlib

import psutil  # type: ignore[import-untyped]


def halted(parent: psutil.Process) -> list[psutil.Process]:
    """Halt a process and all below it, so that none of them starts anything any more.

    Returns:
        The processes, the parent last.
    """
    parent.suspend()
    family: list[psutil.Process] = []
    # Whoever was just starting another one when it was listed has done so by now.
    while new := [child for child in parent.children(recursive=True) if child not in family]:
        for child in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()
        family += new
    return [*family, parent]
