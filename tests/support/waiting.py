"""Waiting for what happens in other processes; a full machine takes its time, so the limits are far away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_Seen = TypeVar("_Seen")


def wait_until(condition: Callable[[], _Seen], what: str, seconds: float = 120.0, *, pause: float = 0.02) -> _Seen:
    """Wait until something is so.

    Args:
        condition: Asked again and again.
        what: What is waited for, for the message.
        seconds: The limit.
        pause: Seconds between two looks; longer where a look is the start of a process.

    Returns:
        What `condition` gave in the end.

    Raises:
        AssertionError: It did not become so in time.
    """
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
    return seen
