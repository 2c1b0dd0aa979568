"""The exceptions of the package. Only a module's `main()` turns them into a failed task."""

from __future__ import annotations

import typing as t


class RecoveryError(Exception):
    """A step could not be done, or could not be proved.

    :param message: what failed, what was seen, what was expected, and what to run next.
    :param details: further facts for the task's result (JSON types only, no secrets).
    """

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class CommandError(RecoveryError):
    """A command could not be started, ran out of time, or ended with an exit code that was not expected."""


class DockerError(RecoveryError):
    """The Docker Engine could not be reached, or a container is not what the stack says."""


class DatabaseError(RecoveryError):
    """PostgreSQL could not be asked, or answered with an error (`details['sqlstate']` where it is known)."""


class AgentError(RecoveryError):
    """The application's own Alembic could not be run, or reported an error."""


class StackError(RecoveryError):
    """The description of the stack in the inventory contradicts itself or what is there."""
