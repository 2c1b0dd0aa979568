"""What an application's users see, healthy and broken: the same questions to both forms."""

from __future__ import annotations

import wave
from collections.abc import Callable
from io import BytesIO

from replica.web import Client

Check = Callable[[Client], None]


def songs_are_listed(client: Client) -> None:
    """The list has pages, newest first, each with what a page needs."""
    first = client.request("/api/v1/songs?per_page=3").json()
    second = client.request("/api/v1/songs?page=2&per_page=3").json()
    assert first["total"] == second["total"] >= 100
    numbers = [song["number"] for song in [*first["items"], *second["items"]]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) == 6
    assert all(song["title"] and song["artist"] and song["id"] for song in first["items"])


def details_are_shown(client: Client) -> None:
    """A song of the list can be opened."""
    brief = client.request("/api/v1/songs?per_page=1").json()["items"][0]
    song = client.request(f"/api/v1/songs/{brief['id']}").json()
    assert {name: song[name] for name in brief} == brief
    assert song["audio_url"].endswith(".wav")
    assert song["sketch"] is None


def sound_plays(client: Client) -> None:
    """The file is a WAV of two seconds; a player can ask for a part of it."""
    song_id = client.request("/api/v1/songs?per_page=1").json()["items"][0]["id"]
    url = client.request(f"/api/v1/songs/{song_id}").json()["audio_url"]
    whole = client.request(url)
    assert (whole.status, whole.headers["content-type"]) == (200, "audio/wav")
    assert whole.headers["accept-ranges"] == "bytes"
    with wave.open(BytesIO(whole.body)) as file:
        assert file.getnframes() / file.getframerate() == 2.0
        assert len(set(file.readframes(4000))) > 50
    part = client.request(url, headers={"Range": "bytes=4-19"})
    assert (part.status, part.body) == (206, whole.body[4:20])
    assert part.headers["content-range"] == f"bytes 4-19/{len(whole.body)}"
    tail = client.request(url, headers={"Range": "bytes=-10"})
    assert (tail.status, tail.body) == (206, whole.body[-10:])
    beyond = client.request(url, headers={"Range": "bytes=99999999-"})
    assert beyond.status == 416


def worker_answers(client: Client) -> None:
    """The worker reads songs through the models."""
    answer = client.request("/api/v1/worker")
    assert answer.status == 200, answer.body
    assert answer.json()["songs"] == client.request("/api/v1/songs?per_page=1").json()["total"]
    assert len(answer.json()["latest"]) == 5


def page_is_served(client: Client) -> None:
    """The page and all that it loads."""
    page = client.request("/")
    assert page.status == 200, page.body
    assert page.headers["content-type"].startswith("text/html")
    for name, kind in (("page.js", "javascript"), ("style.css", "text/css")):
        assert f"/static/{name}".encode() in page.body
        assert kind in client.request(f"/static/{name}").headers["content-type"]


def songs_can_be_added(client: Client) -> None:
    """A new song is the newest; nonsense is refused."""
    total = client.request("/api/v1/songs").json()["total"]
    added = client.request("/api/v1/songs", data={"title": "Neues „Lied“ 🎵", "lyrics": "a\r\nb\t\\"})
    assert added.status == 201, added.body
    listed = client.request("/api/v1/songs?per_page=1").json()
    assert (listed["total"], listed["items"][0]["id"]) == (total + 1, added.json()["id"])
    assert client.request(f"/api/v1/songs/{added.json()['id']}").json()["lyrics"] == "a\r\nb\t\\"
    for nonsense in ({}, {"title": 7}, {"title": "x" * 301}, {"title": "x", "status": "gone"}):
        refused = client.request("/api/v1/songs", data=nonsense)
        assert refused.status == 400, nonsense
        assert refused.json()["error"]


def nonsense_is_refused(client: Client) -> None:
    """Wrong requests are told so, in JSON."""
    for path, status in (
        ("/api/v1/songs/00000000-0000-0000-0000-000000000000", 404),
        ("/api/v1/songs/no-id", 404),
        ("/api/v1/songs?page=0", 400),
        ("/api/v1/songs?per_page=many", 400),
    ):
        answer = client.request(path)
        assert (answer.status, answer.json()["status"]) == (status, status), path


HEALTHY: tuple[Check, ...] = (
    page_is_served,
    songs_are_listed,
    details_are_shown,
    sound_plays,
    worker_answers,
    songs_can_be_added,
    nonsense_is_refused,
)


def is_broken(client: Client) -> None:
    """Whatever reads songs answers 500 and tells nothing about why; the process itself and the page are up."""
    assert client.request("/").status == 200
    assert client.request("/api/v1/health").status == 200
    some_id = "25e6b3f9-43a9-8bb0-e4ae-46351a28801f"
    for path in (
        "/api/v1/songs",
        f"/api/v1/songs/{some_id}",
        f"/api/v1/songs/{some_id}/audio.wav",
        "/api/v1/worker",
    ):
        answer = client.request(path)
        assert answer.status == 500, path
        assert answer.json() == {"error": "internal server error, see the log", "status": 500}
