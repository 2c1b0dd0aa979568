"""The song service's JSON API and its page."""

from __future__ import annotations

import io
import logging
import os
import sys
import uuid
from typing import Any

import celery.exceptions
import kombu.exceptions
import sqlalchemy as sa
from flask import Blueprint, Flask, Response, current_app, jsonify, request, send_file
from sqlalchemy.orm import Session
from werkzeug.exceptions import BadRequest, HTTPException, NotFound

from songapi import audio, tasks
from songapi.database import make_sessions, require_schema
from songapi.models import SONG_STATUSES, Song, User

WORKER_SECONDS = 45
PAGE_LIMIT = 100

routes = Blueprint("songs", __name__)


def _brief(song: Song) -> dict[str, Any]:
    """What a list shows of a song."""
    return {
        "id": str(song.id),
        "number": song.number,
        "title": song.title,
        "artist": song.user.display_name,
        "status": song.status,
        "duration_seconds": None if song.duration_seconds is None else float(song.duration_seconds),
        "sketch_id": None if song.sketch_id is None else str(song.sketch_id),
        "created_at": song.created_at.isoformat(),
    }


def _full(song: Song) -> dict[str, Any]:
    """All that is known of a song."""
    sketch = song.sketch
    return {
        **_brief(song),
        "lyrics": song.lyrics,
        "style": song.style,
        "details": song.details,
        "updated_at": song.updated_at.isoformat(),
        "sketch": None if sketch is None else {"id": str(sketch.id), "title": sketch.title, "prompt": sketch.prompt},
        "audio_url": f"/api/v1/songs/{song.id}/audio.wav",
    }


def _number(name: str, default: int, most: int) -> int:
    """A whole number of at least one from the query string."""
    text = request.args.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise BadRequest(f"{name} must be a whole number of at least 1")
    return min(int(text), most)


def _text(body: dict[str, Any], name: str, longest: int | None = None) -> str | None:
    """A text from a JSON body, or None where it is missing."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value or (longest is not None and len(value) > longest):
        raise BadRequest(f"{name} must be a text" + ("" if longest is None else f" of at most {longest} characters"))
    return value


def _find(session: Session, song_id: uuid.UUID) -> Song:
    """A song by its id."""
    song = session.get(Song, song_id)
    if song is None:
        raise NotFound("there is no song with this id")
    return song


def _open_session() -> Session:
    """A session on the application's database."""
    session: Session = current_app.extensions["sessions"]()
    return session


@routes.app_errorhandler(HTTPException)
def refuse(error: HTTPException) -> tuple[Response, int]:
    """JSON for every refusal; the cause of a 500 is in the log only."""
    code = error.code or 500
    text = "internal server error, see the log" if code == 500 else str(error.description)
    return jsonify(error=text, status=code), code


@routes.get("/")
def page() -> Response:
    """The page for people."""
    return current_app.send_static_file("index.html")


@routes.get("/api/v1/health")
def health() -> Response:
    """That the process is up; says nothing about the database."""
    return jsonify(status="up")


@routes.get("/api/v1/songs")
def list_songs() -> Response:
    """A page of the songs, the newest first."""
    size = _number("per_page", 20, PAGE_LIMIT)
    start = (_number("page", 1, 10_000_000) - 1) * size
    with _open_session() as session:
        total = session.scalar(sa.select(sa.func.count()).select_from(Song))
        songs = session.scalars(sa.select(Song).order_by(Song.number.desc()).offset(start).limit(size))
        return jsonify(items=[_brief(song) for song in songs], total=total)


@routes.get("/api/v1/songs/<uuid:song_id>")
def show_song(song_id: uuid.UUID) -> Response:
    """All about one song."""
    with _open_session() as session:
        return jsonify(_full(_find(session, song_id)))


@routes.post("/api/v1/songs")
def add_song() -> tuple[Response, int]:
    """A new song."""
    body = request.get_json()
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    title = _text(body, "title", 300)
    if not title:
        raise BadRequest("title is missing")
    status = _text(body, "status") or "draft"
    if status not in SONG_STATUSES:
        raise BadRequest(f"status must be one of {', '.join(SONG_STATUSES)}")
    with _open_session() as session:
        user = session.scalar(sa.select(User).order_by(User.id).limit(1))
        if user is None:
            raise BadRequest("there is no user yet to whom a song could belong")
        song = Song(title=title, lyrics=_text(body, "lyrics"), style=_text(body, "style"), status=status, user=user)
        session.add(song)
        session.commit()
        session.refresh(song)
        return jsonify(_full(song)), 201


@routes.get("/api/v1/songs/<uuid:song_id>/audio.wav")
def play_song(song_id: uuid.UUID) -> Response:
    """A song's sound; understands Range."""
    with _open_session() as session:
        number = _find(session, song_id).number
    return send_file(
        io.BytesIO(audio.wav(number)),
        mimetype="audio/wav",
        download_name=f"song-{number}.wav",
        conditional=True,
        etag=f"tone-{number % len(audio.SCALE)}",
    )


@routes.get("/api/v1/worker")
def ask_worker() -> tuple[Response, int]:
    """Whether the worker does its work: it reads songs through the models."""
    try:
        answer = tasks.latest_songs.delay()
        return jsonify(answer.get(timeout=WORKER_SECONDS, interval=0.05)), 200
    except celery.exceptions.TimeoutError:
        current_app.logger.error("the worker gave no answer within %s s", WORKER_SECONDS)  # noqa: TRY400
        text = f"the worker gave no answer within {WORKER_SECONDS} s"
    except (kombu.exceptions.OperationalError, OSError):
        current_app.logger.exception("the broker cannot be reached")
        text = "the broker cannot be reached"
    return jsonify(error=text, status=503), 503


def create_app() -> Flask:
    """The WSGI application, for the database of DATABASE_URL.

    Returns:
        The application.

    Raises:
        SchemaMismatchError: STRICT_START is 1 and the database lacks what the models need.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s [%(name)s] %(message)s"
    )
    sessions = make_sessions()
    if os.environ.get("STRICT_START") == "1":
        require_schema(sessions.kw["bind"])
    app = Flask(__name__)
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.extensions["sessions"] = sessions
    app.register_blueprint(routes)
    return app
