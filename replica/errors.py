"""What can go wrong while a replica is built, looked at or removed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class ReplicaError(Exception):
    """A replica cannot be built, reached or removed; the message says what was seen and what to do."""


def checked(result: subprocess.CompletedProcess[str], what: str) -> subprocess.CompletedProcess[str]:
    """Hand a finished command on, unless it failed.

    Args:
        result: The finished command, with its output as text.
        what: What was to be done, for the message.

    Returns:
        The same result.

    Raises:
        ReplicaError: The command did not end with 0.
    """
    if result.returncode != 0:
        output = "\n".join(part.strip() for part in (result.stdout, result.stderr) if part and part.strip())
        raise ReplicaError(
            f"could not {what}: {_name(result.args)} ended with {result.returncode}, expected 0; it said:\n{output}"
        )
    return result


def _name(args: str | Sequence[str]) -> str:
    """The command's name, without arguments that may hold what is nobody's business."""
    return args if isinstance(args, str) else str(args[0])
