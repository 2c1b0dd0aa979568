"""Clients that ask all the time: how long a database, and the application before it, did not answer."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg

# Between two questions, in seconds: what is measured is exact to about this and the time of one answer.
_PAUSE = 0.02


@dataclass
class Outage:
    """The moments in which a question was answered, of one client."""

    answered: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The longest time without an answer."""
        assert self.answered, "it has never been answered"
        return max((b - a for a, b in zip(self.answered, self.answered[1:], strict=False)), default=0.0)


@contextlib.contextmanager
def asking(question: Callable[[], object]) -> Iterator[Outage]:
    """Ask all the time in a thread, until the context ends.

    Args:
        question: Returns something true if it was answered as it should be; it may raise OSError, psycopg.Error or
            http.client.HTTPException if it was not.

    Yields:
        What is measured; complete when the context has ended.
    """
    seen, over = Outage(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, psycopg.Error, http.client.HTTPException):
                if question():
                    seen.answered.append(time.monotonic())
            over.wait(_PAUSE)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(30)


def database_answers(conninfo: str) -> Callable[[], bool]:
    """The question of a client that connects anew each time and reads a table of the application.

    Args:
        conninfo: Where, as libpq reads it; its application_name is `outage`.

    Returns:
        The question.
    """

    def ask() -> bool:
        with psycopg.connect(conninfo, application_name="outage", connect_timeout=2) as connection:
            return connection.execute("select count(*) from songs").fetchone() is not None

    return ask
