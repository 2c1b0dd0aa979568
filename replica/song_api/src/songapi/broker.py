"""Celery's broker in files, for a machine without Redis."""

from __future__ import annotations

from typing import Any

from kombu.transport import filesystem


class Transport(filesystem.Transport):
    """Looks up from waiting for messages several times a second.

    Celery (5.7) asks it to wait for two seconds, and twice once the worker has been told to stop: until then
    supervisord, which waits for that, keeps a processor busy.
    """

    def drain_events(self, connection: Any, timeout: float | None = None, **more: Any) -> Any:
        """Deliver the next message, or raise TimeoutError after 0.2 seconds."""
        return super().drain_events(connection, timeout=min(timeout or 0.2, 0.2), **more)
