"""Celery's broker in files, for a machine without Redis."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import Any

from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """Reads no file that another process is still writing.

    Kombu (5.7.0) makes a file under its last name, locks it and then fills it, but does not ask for the lock before it
    takes a message away: a message that is found in between is read as empty, and lost, and its reader ends with a
    JSONDecodeError. So one lock is around each of these steps.
    """

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else reads or writes messages or bindings meanwhile."""
        with (pathlib.Path(self.control_folder) / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get_table(self, exchange: str) -> Any:
        """The bindings of an exchange."""
        with self._alone():
            return super().get_table(exchange)

    def _queue_bind(self, *arguments: Any) -> None:
        with self._alone():
            super()._queue_bind(*arguments)

    def _put(self, queue: str, payload: Any, **more: Any) -> None:  # type: ignore[override]  # as kombu's own
        with self._alone():
            super()._put(queue, payload, **more)

    def _get(self, *arguments: Any, **more: Any) -> Any:
        with self._alone():
            return super()._get(*arguments, **more)


class Transport(filesystem.Transport):
    """Looks up from waiting for messages several times a second.

    Celery (5.7) asks it to wait for two seconds, and twice once the worker has been told to stop: until then
    supervisord, which waits for that, keeps a processor busy.
    """

    Channel = Channel

    def drain_events(self, connection: Any, timeout: float | None = None, **more: Any) -> Any:
        """Deliver the next message, or raise TimeoutError after 0.2 seconds."""
        return super().drain_events(connection, timeout=min(timeout or 0.2, 0.2), **more)
