"""The worker: Celery with whatever broker the environment names."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from typing import Any

import sqlalchemy as sa
from celery import Celery, bootsteps
from sqlalchemy.orm import Session, sessionmaker

from songapi.database import make_sessions
from songapi.models import Song

ALIVE_SECONDS = 2.0


class AliveFile(bootsteps.StartStopStep):
    """Touches WORKER_ALIVE_FILE from the worker's own timer, for a health check that costs nothing."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.path = pathlib.Path(os.environ["WORKER_ALIVE_FILE"])
        self.entry: Any = None

    def start(self, worker: Any) -> None:
        """Begin: the file is there from now on."""
        self.path.touch()
        self.entry = worker.timer.call_repeatedly(ALIVE_SECONDS, self.path.touch)

    def stop(self, worker: Any) -> None:  # noqa: ARG002 (Celery calls it so)
        """End: the file is gone."""
        if self.entry is not None:
            self.entry.cancel()
        self.path.unlink(missing_ok=True)


def make_celery() -> Celery:
    """The Celery application.

    CELERY_BROKER_URL and CELERY_RESULT_BACKEND say where messages and results go,
    CELERY_BROKER_OPTIONS (a JSON object) what the transport needs besides, CELERY_BROKER_TRANSPORT (`module:class`)
    which one it is, if it is none of kombu's.

    Returns:
        A configured application.
    """
    celery = Celery(
        "songapi",
        broker=os.environ["CELERY_BROKER_URL"],
        backend=os.environ["CELERY_RESULT_BACKEND"],
    )
    celery.conf.update(
        broker_transport=os.environ.get("CELERY_BROKER_TRANSPORT"),
        broker_transport_options=json.loads(os.environ.get("CELERY_BROKER_OPTIONS", "{}")),
        broker_connection_retry_on_startup=True,
        result_expires=600,
        task_track_started=False,
        worker_timer_precision=0.2,
    )
    if os.environ.get("WORKER_ALIVE_FILE"):
        celery.steps["worker"].add(AliveFile)
    return celery


app = make_celery()


@functools.cache
def _sessions() -> sessionmaker[Session]:
    """The sessions of this process: made on first use, because a pool must not be shared across a fork."""
    return make_sessions()


@app.task(name="songapi.latest_songs")
def latest_songs(limit: int = 5) -> dict[str, Any]:
    """Read the newest songs through the models.

    Args:
        limit: How many.

    Returns:
        ``songs`` (how many there are) and ``latest`` (the newest ones' titles).
    """
    with _sessions()() as session:
        latest = session.scalars(sa.select(Song).order_by(Song.number.desc()).limit(limit)).all()
        total = session.scalar(sa.select(sa.func.count()).select_from(Song))
        return {"songs": total, "latest": [song.title for song in latest]}
