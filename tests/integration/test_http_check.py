"""The module http_check against real servers: HTTPS with a small CA, and what goes wrong on the way."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.ansible_run import ROOT, run
from tests.support.modules import run_module

AUDIO = b"RIFF" + b"\0" * 4996
ROUTES: dict[str, Callable[[Handler], None]] = {}


class Handler(BaseHTTPRequestHandler):
    """Answers by ROUTES, and counts what it was asked."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        ROUTES.get(self.path, lambda handler: handler.answer(404, b"no such page"))(self)

    do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

    def answer(self, status: int, body: bytes, content_type: str = "text/plain", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


class Server(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, certificate: trustme.LeafCert | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    def url(self, path: str = "") -> str:
        return f"{self.scheme}://localhost:{self.server_port}{path}"

    def handle_error(self, *arguments: object) -> None:
        """A client that refuses the certificate is what some tests want."""


def route(path: str) -> Callable[[Callable[[Handler], None]], Callable[[Handler], None]]:
    def add(function: Callable[[Handler], None]) -> Callable[[Handler], None]:
        ROUTES[path] = function
        return function

    return add


@route("/songs")
def songs(handler: Handler) -> None:
    handler.answer(200, json.dumps({"items": [{"id": 7}]}).encode(), "application/json")


@route("/songs/7")
def song(handler: Handler) -> None:
    handler.answer(200, json.dumps({"id": 7, "audio_url": "/audio/7.wav"}).encode(), "application/json")


@route("/audio/7.wav")
def audio(handler: Handler) -> None:
    first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
    part = AUDIO[int(first) : int(last) + 1]
    handler.answer(206, part, "audio/wav", Content_Range=f"bytes {first}-{last}/{len(AUDIO)}")


@route("/empty")
def empty(handler: Handler) -> None:
    handler.answer(200, b'{"items": []}', "application/json")


@route("/broken")
def broken(handler: Handler) -> None:
    handler.answer(500, b'{"error": "column songs.sketch_id does not exist"}', "application/json")


@route("/moved")
def moved(handler: Handler) -> None:
    handler.answer(302, b"", Location="/songs")


@route("/round")
def circle(handler: Handler) -> None:
    handler.answer(302, b"", Location="/round")


@route("/away")
def away(handler: Handler) -> None:
    handler.answer(302, b"", Location="https://elsewhere.invalid/songs")


@route("/drip")
@route("/drip-and-close")
def drip(handler: Handler) -> None:
    """Send a byte every 0.2 s, for as long as the client stays; a timeout per read never ends this."""
    handler.send_response(200)
    if handler.path == "/drip-and-close":
        handler.send_header("Connection", "close")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(150):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.2)


@route("/flood")
def flood(handler: Handler) -> None:
    """Send 512 MiB, and count on `handler.server` how much of it was taken."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(512 * 1024 * 1024))
    handler.end_headers()
    handler.server.sent = 0  # type: ignore[attr-defined]
    for _ in range(512):
        handler.wfile.write(b"[" * 1024 * 1024)
        handler.server.sent += 1  # type: ignore[attr-defined]


@route("/gibberish")
def gibberish(handler: Handler) -> None:
    handler.wfile.write(b"what?\r\n\r\n")
    handler.close_connection = True


@route("/starting")
def starting(handler: Handler) -> None:
    count = handler.server.asked.count("GET /starting")  # type: ignore[attr-defined]
    handler.answer(200 if count > 2 else 503, b"")


def serve(certificate: trustme.LeafCert | None) -> Iterator[Server]:
    server = Server(certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_path(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    yield from serve(authority.issue_cert("localhost"))


@pytest.fixture
def plain_server() -> Iterator[Server]:
    yield from serve(None)


def ask(server: Server, ca_path: str | None, *checks: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Run the module; a check's `url` is a path on the server."""
    described = [{"name": "it", **check, "url": server.url(check["url"])} for check in checks]
    return run_module("http_check", {"checks": described, "ca_path": ca_path, "fail": False, **options})


def reason(result: dict[str, Any]) -> str:
    """Return why the only check failed."""
    assert not result.get("failed"), result
    assert result["ok"] is False
    assert result["changed"] is False
    return str(result["checks"][0]["reason"])


CHAIN: list[dict[str, Any]] = [
    {"name": "songs", "url": "/songs", "json_not_empty": "items", "capture": {"song_id": "items.0.id"}},
    {"name": "song", "url": "/songs/{song_id}", "capture": {"audio": "audio_url"}},
    {
        "name": "audio",
        "url": "{audio}",
        "range": "0-15",
        "content_type": "audio/wav",
        "min_length": 5000,
        "first_bytes": "52494646",
    },
]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_chain_of_checks_over_https(server: Server, ca_path: str, check_mode: bool) -> None:
    checks = [{**check, "url": server.url(check["url"])} for check in CHAIN]

    result = run_module("http_check", {"checks": checks, "ca_path": ca_path}, check=check_mode)

    assert result["ok"] is True, result
    assert result["changed"] is False
    assert result["failed_checks"] == []
    assert result["summary"] == "3 of 3 HTTP checks are as expected."
    assert [check["url"] for check in result["checks"]] == [
        server.url("/songs"),
        server.url("/songs/7"),
        server.url("/audio/7.wav"),
    ]
    assert result["checks"][2]["length"] == 5000
    assert server.asked == ["GET /songs", "GET /songs/7", "GET /audio/7.wav"]


def test_a_server_error_is_shown_with_its_body(server: Server, ca_path: str) -> None:
    checks = [{**check, "url": server.url(check["url"].replace("/songs", "/broken", 1))} for check in CHAIN]

    result = run_module("http_check", {"checks": checks, "ca_path": ca_path})

    assert result["failed"] is True
    assert result["failed_checks"] == ["songs", "song", "audio"]
    assert result["msg"] == (
        "3 of 3 HTTP checks failed.\n"
        f"songs: GET {server.url('/broken')} answered 500, expected 200. "
        'Body begins: {"error": "column songs.sketch_id does not exist"}\n'
        f"song: GET {server.url('/broken/{song_id}')} not tried: song_id was not captured.\n"
        f"audio: GET {server.url('{audio}')} not tried: audio was not captured.\n"
        "Next: read the log of the service, and compare its answer with what the check expects."
    )
    assert server.asked == ["GET /broken"]


def test_an_empty_list_is_no_success(server: Server, ca_path: str) -> None:
    result = ask(server, ca_path, {"url": "/empty", "json_not_empty": "items"})

    assert "has nothing in items, expected something" in reason(result)
    assert result["checks"][0]["body_excerpt"] == '{"items": []}'


def test_another_ca_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")

    result = ask(server, str(tmp_path / "other.pem"), {"url": "/songs"}, retries=5, delay=10)

    assert "shows a certificate that is refused: " in reason(result)
    assert "recovery_http_ca" in result["summary"]
    assert result["checks"][0]["attempts"] == 1
    assert server.asked == []


def test_the_system_s_authorities_do_not_know_the_small_ca(server: Server) -> None:
    assert "shows a certificate that is refused" in reason(ask(server, None, {"url": "/songs"}))


def test_a_certificate_for_another_name_is_refused(authority: trustme.CA, ca_path: str) -> None:
    for other in serve(authority.issue_cert("songs.example.com")):
        assert "Hostname mismatch" in reason(ask(other, ca_path, {"url": "/songs"}))
        assert other.asked == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("none.pem", None, id="not-there"),
        pytest.param("text.pem", "no certificate", id="no-certificate"),
    ],
)
def test_a_ca_bundle_that_cannot_be_used(server: Server, tmp_path: Path, name: str, content: str | None) -> None:
    if content:
        (tmp_path / name).write_text(content)

    result = ask(server, str(tmp_path / name), {"url": "/songs"})

    assert result["failed"] is True
    assert f"The CA bundle {tmp_path / name} cannot be used: " in result["msg"]
    assert "recovery_http_ca" in result["msg"]


def test_a_redirect_on_the_same_host_is_followed(server: Server, ca_path: str) -> None:
    result = ask(server, ca_path, {"url": "/moved", "json_not_empty": "items"})

    assert result["ok"] is True, result
    assert server.asked == ["GET /moved", "GET /songs"]


def test_a_redirect_that_is_expected_is_not_followed(server: Server, ca_path: str) -> None:
    assert ask(server, ca_path, {"url": "/away", "status": 302})["ok"] is True


@pytest.mark.parametrize(
    ("path", "words"),
    [
        pytest.param(
            "/away",
            "sends on to another host, https://elsewhere.invalid/songs, which is not asked",
            id="host",
        ),
        pytest.param("/round", "sends on more than 5 times", id="circle"),
    ],
)
def test_a_redirect_that_is_not_followed(server: Server, ca_path: str, path: str, words: str) -> None:
    assert words in reason(ask(server, ca_path, {"url": path}))


def test_a_redirect_from_https_to_http_is_not_followed(server: Server, plain_server: Server, ca_path: str) -> None:
    ROUTES["/down"] = lambda handler: handler.answer(302, b"", Location=plain_server.url("/songs"))

    assert "which is not asked" in reason(ask(server, ca_path, {"url": "/down"}))
    assert plain_server.asked == []


@pytest.mark.parametrize("path", ["/drip", "/drip-and-close"])
def test_a_server_that_drips_is_cut_off(server: Server, ca_path: str, path: str) -> None:
    started = time.monotonic()

    result = ask(server, ca_path, {"url": path, "contains": "y"}, timeout=1)

    assert "does not answer: not within 1 s" in reason(result)
    assert time.monotonic() - started < 20


def test_no_more_than_a_limit_is_read(plain_server: Server) -> None:
    result = ask(plain_server, None, {"url": "/flood", "json_not_empty": ""}, max_body=1024 * 1024)

    assert "is longer than 1048576 bytes" in reason(result)
    assert plain_server.sent < 64  # type: ignore[attr-defined]


def test_only_what_a_check_needs_is_read(plain_server: Server) -> None:
    result = ask(plain_server, None, {"url": "/flood", "first_bytes": "5b5b", "min_length": 512 * 1024 * 1024})

    assert result["ok"] is True, result
    assert plain_server.sent < 64  # type: ignore[attr-defined]


def test_a_server_that_drips_without_tls_is_cut_off(plain_server: Server) -> None:
    assert "not within 1 s" in reason(ask(plain_server, None, {"url": "/drip", "contains": "y"}, timeout=1))


def test_what_is_no_http_is_said(plain_server: Server) -> None:
    assert "does not answer: " in reason(ask(plain_server, None, {"url": "/gibberish"}))


def test_nobody_listens() -> None:
    # Bound, so that nobody else takes the port meanwhile, and never listening, so that it refuses.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/songs"
        result = run_module("http_check", {"checks": [{"name": "songs", "url": url}], "fail": True})

    assert result["failed"] is True
    assert f"songs: GET {url} does not answer: [Errno 111] Connection refused." in result["msg"]
    assert "Next: see whether the service runs, and read its log." in result["msg"]


def test_a_service_that_starts_is_waited_for(plain_server: Server) -> None:
    checks = [{"name": "songs", "url": "/songs"}, {"name": "it", "url": "/starting"}]

    result = ask(plain_server, None, *checks, retries=5, delay=0.1)

    assert result["ok"] is True, result
    assert [check["attempts"] for check in result["checks"]] == [1, 3]
    assert plain_server.asked.count("GET /songs") == 1


def test_attempts_come_to_an_end(plain_server: Server) -> None:
    result = ask(plain_server, None, {"url": "/broken"}, retries=2, delay=0.05)

    assert result["checks"][0]["attempts"] == 3
    assert plain_server.asked == ["GET /broken"] * 3


def test_a_service_that_never_answers_is_not_waited_for_by_each_check_and_attempt() -> None:
    """The one who asks has a keeper that must hear of it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checks = [{"name": str(number), "url": f"http://127.0.0.1:{silent.getsockname()[1]}/"} for number in range(3)]
        started = time.monotonic()
        result = run_module(
            "http_check", {"checks": checks, "fail": False, "timeout": 60, "retries": 30, "delay": 1, "patience": 2}
        )
        assert time.monotonic() - started < 50
    assert result["failed_checks"] == ["0", "1", "2"]
    assert [check["attempts"] for check in result["checks"]] == [1, 1, 1]


def test_head_reads_no_body(plain_server: Server) -> None:
    assert ask(plain_server, None, {"url": "/songs", "method": "HEAD", "min_length": 10})["ok"] is True
    assert plain_server.asked == ["HEAD /songs"]


def test_proxy_settings_are_ignored(plain_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert ask(plain_server, None, {"url": "/songs"})["ok"] is True


@pytest.mark.parametrize(
    ("check", "message"),
    [
        pytest.param({"json_notempty": "items"}, "Unsupported parameters", id="misspelt-key"),
        pytest.param({"method": "POST"}, "value of method must be one of: GET, HEAD", id="method"),
        pytest.param({"status": "ok"}, "status", id="type"),
        pytest.param({"url": "/x/{song}"}, "is captured by no check before it", id="placeholder"),
    ],
)
def test_bad_descriptions_are_refused_before_anything_is_asked(
    plain_server: Server, check: dict[str, Any], message: str
) -> None:
    result = ask(plain_server, None, {"url": "/songs", "name": "first"}, {"url": "/songs", **check})

    assert result["failed"] is True
    assert message in result["msg"]
    assert plain_server.asked == []


def test_a_task_of_a_playbook(server: Server, ca_path: str, tmp_path: Path) -> None:
    task = {
        "checks": [{"name": "songs", "url": server.url("/broken"), "json_not_empty": "items"}],
        "ca_path": ca_path,
    }
    done = run("ansible", "localhost", "-m", "http_check", "-a", json.dumps(task), "-M", ROOT / "library", "--check")

    assert done.code == 2
    assert f"songs: GET {server.url('/broken')} answered 500, expected 200. Body begins:" in done.out
