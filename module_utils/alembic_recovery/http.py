"""Ask an application over HTTP as its users do, and judge the answers. Nothing is ever changed by it.

`parse_checks` refuses what cannot work before anything is asked, `evaluate` is pure, `fetch` asks once, and
`run` does all checks, again and again until they hold or the attempts are used up.
"""

from __future__ import annotations

import binascii
import http.client
import json
import re
import socket
import ssl
import threading
import time
import typing as t
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin, urlsplit

from ansible.module_utils.alembic_recovery.errors import RecoveryError

MAX_BODY = 4 * 1024 * 1024
MAX_REDIRECTS = 5
EXCERPT = 300
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
RANGE = re.compile(r"^(\d+)-(\d*)$")
# What a captured value may hold unchanged: enough for paths and queries, nothing that ends a request line.
SAFE_IN_URL = "/:?&=%+,;@~!$'()*-._"
PORTS = {"http": 80, "https": 443}


class HttpCheckError(RecoveryError):
    """The checks are not described in a way that can work, or the CA bundle cannot be used."""


@dataclass(frozen=True)
class Check:
    """One request and what its answer must be; the fields are the options of the module."""

    name: str
    url: str
    method: str = "GET"
    status: int = 200
    content_type: str = ""
    contains: str = ""
    min_length: int = 0  # bytes
    range: str = ""
    first_bytes: bytes = b""
    json_not_empty: str | None = None  # dotted path, "" is the whole document
    capture: t.Mapping[str, str] = field(default_factory=dict)

    def body_needed(self, limit: int) -> int:
        """Return how many bytes of the body the check needs to see, `limit` at most."""
        if self.contains or self.capture or self.json_not_empty is not None:
            return limit
        return min(limit, max(4 * EXCERPT, len(self.first_bytes), self.range_size() or 0))

    def range_size(self) -> int | None:
        """Return how many bytes are asked for, None if all or an open end."""
        match = RANGE.match(self.range)
        return int(match[2]) - int(match[1]) + 1 if match and match[2] else None


@dataclass(frozen=True)
class Answer:
    """What came back: header names in lower case, the body as far as it was read."""

    status: int
    headers: t.Mapping[str, str]
    body: bytes
    truncated: bool = False
    url: str = ""

    def media_type(self) -> str:
        """Return the content type without its parameters, in lower case."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    def total_length(self) -> int:
        """Return the length of the whole thing in bytes: that of the file, not that of the part asked for."""
        match = re.match(r"^bytes .*/(\d+)$", self.headers.get("content-range", ""))
        if match:
            return int(match[1])
        length = self.headers.get("content-length", "")
        return int(length) if length.isdigit() else len(self.body)


class NoAnswerError(Exception):
    """A request came to nothing: `reason` says how, `advice` what to do, `final` that a second is no use."""

    def __init__(self, reason: str, advice: str, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.final = final


def parse_checks(described: t.Iterable[t.Mapping[str, t.Any]]) -> list[Check]:
    """Return the checks for what the inventory says.

    Raises HttpCheckError for a URL that is none or holds credentials, for a placeholder that no earlier check
    captures, for a name that comes twice, and for what is no range or no hexadecimal number.
    """
    checks: list[Check] = []
    captured: set[str] = set()
    for item in described:
        check = _parse(item)
        if any(other.name == check.name for other in checks):
            raise HttpCheckError(f"Two HTTP checks are called '{check.name}'. Give each a name of its own.")
        unknown = [name for name in PLACEHOLDER.findall(check.url) if name not in captured]
        if unknown:
            raise HttpCheckError(
                f"{check.name}: {{{unknown[0]}}} in {check.url} is captured by no check before it. "
                f"Captured so far: {', '.join(sorted(captured)) or 'nothing'}. "
                f"Add `capture: {{{unknown[0]}: a.dotted.path}}` to an earlier check."
            )
        captured.update(check.capture)
        checks.append(check)
    return checks


def _parse(item: t.Mapping[str, t.Any]) -> Check:
    given = {key: value for key, value in item.items() if value is not None}
    name = given["name"]
    parts = urlsplit(given["url"])
    if parts.scheme not in PORTS or not parts.netloc:
        raise HttpCheckError(f"{name}: {given['url']!r} is no URL that begins with https://host or http://host.")
    if "@" in parts.netloc:
        raise HttpCheckError(f"{name}: the URL holds credentials, which would be shown. Take them out of it.")
    if given.get("range") and not RANGE.match(given["range"]):
        raise HttpCheckError(f"{name}: the range {given['range']!r} is not of the form 0-15 or 0-.")
    given.setdefault("status", 206 if given.get("range") else 200)
    try:
        given["first_bytes"] = binascii.unhexlify(given.get("first_bytes", "").replace(" ", ""))
    except (binascii.Error, ValueError) as error:
        raise HttpCheckError(
            f"{name}: first_bytes {item['first_bytes']!r} is not hexadecimal ({error}). RIFF, for example, is 52494646."
        ) from error
    return Check(**given)


def fill(check: Check, captured: t.Mapping[str, t.Any]) -> str:
    """Return the check's URL with what was captured in it. It never leads to another host than the URL names.

    Raises NoAnswerError if a value is not there, or would lead elsewhere.
    """
    for name in PLACEHOLDER.findall(check.url):
        if name not in captured:
            raise NoAnswerError(f"not tried: {name} was not captured", "first see to the check that captures it")
    url = PLACEHOLDER.sub(lambda match: quote(str(captured[match[1]]), safe=SAFE_IN_URL), check.url)
    host = urlsplit(check.url).netloc.split("{")[0]
    if urlsplit(url).netloc != host:
        raise NoAnswerError(
            f"not tried: {url} does not lead to {host}",
            "look at what the application answers: the captured value must begin with a slash",
            final=True,
        )
    return url


def dig(document: t.Any, path: str) -> t.Any:
    """Return what stands in a JSON document at a dotted path (`items.0.id`; "" is the document itself).

    Raises LookupError, with how far the path led.
    """
    here = document
    walked: list[str] = []
    for step in path.split(".") if path else []:
        place = ".".join(walked) or "the document"
        if isinstance(here, list):
            if not step.isdigit() or int(step) >= len(here):
                raise LookupError(f"{place} is a list of {len(here)}, it has no element {step}")
            here = here[int(step)]
        elif isinstance(here, dict):
            if step not in here:
                keys = ", ".join(sorted(map(str, here))[:10]) or "nothing"
                raise LookupError(f"{place} has no {step} (it has {keys})")
            here = here[step]
        else:
            raise LookupError(f"{place} is {type(here).__name__}, it has no {step}")  # noqa: TRY004
        walked.append(step)
    return here


def evaluate(check: Check, answer: Answer) -> tuple[list[str], dict[str, t.Any]]:
    """Return what is wrong with an answer (nothing: it is as expected), and what was captured from it."""
    if answer.status != check.status:
        return [f"answered {answer.status}, expected {check.status}"], {}
    problems = _wrong_content(check, answer)
    captured: dict[str, t.Any] = {}
    if check.capture or check.json_not_empty is not None:
        more, captured = _wrong_json(check, answer)
        problems += more
    return problems, captured


def _wrong_content(check: Check, answer: Answer) -> list[str]:
    problems = []
    if check.content_type and answer.media_type() != check.content_type.lower():
        problems.append(f"is of type {answer.media_type() or 'none'}, expected {check.content_type}")
    if answer.total_length() < check.min_length:
        problems.append(f"is {answer.total_length()} bytes long, expected at least {check.min_length}")
    wanted = check.range_size()
    if wanted and check.status == 206 and len(answer.body) != min(wanted, answer.total_length()):
        problems.append(f"sent {len(answer.body)} bytes, expected the {wanted} of the range {check.range}")
    if not answer.body.startswith(check.first_bytes):
        seen = answer.body[: len(check.first_bytes)].hex()
        problems.append(f"begins with the bytes {seen or 'none'}, expected {check.first_bytes.hex()}")
    if check.contains and check.contains not in answer.body.decode("utf-8", "replace"):
        read = f" in its first {len(answer.body)} bytes" if answer.truncated else ""
        problems.append(f"does not contain {check.contains!r}{read}")
    return problems


def _wrong_json(check: Check, answer: Answer) -> tuple[list[str], dict[str, t.Any]]:
    if answer.truncated:
        return [f"is longer than {len(answer.body)} bytes, which is as much as is read (max_body)"], {}
    try:
        document = json.loads(answer.body.decode("utf-8"))
    except ValueError as error:
        return [f"is not JSON ({error})"], {}
    problems = []
    captured = {}
    if check.json_not_empty is not None:
        place = check.json_not_empty or "the document"
        try:
            if dig(document, check.json_not_empty) in (None, "", [], {}):
                problems.append(f"has nothing in {place}, expected something")
        except LookupError as error:
            problems.append(f"should have something in {place}: {error}")
    for name, path in check.capture.items():
        try:
            value = dig(document, path)
        except LookupError as error:
            problems.append(f"should have {name} at {path}: {error}")
            continue
        if isinstance(value, (str, int, float)) and str(value):
            captured[name] = value
        else:
            problems.append(f"has {type(value).__name__} at {path}, expected text or a number for {name}")
    return problems, captured


def tls_context(ca_path: str | None) -> ssl.SSLContext:
    """Return a context that verifies certificate and host name, with this CA bundle or with the system's.

    Raises HttpCheckError if the bundle cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_path or None)
    except (OSError, ssl.SSLError) as error:
        raise HttpCheckError(
            f"The CA bundle {ca_path} cannot be used: {error}. Expected: a file with PEM certificates. "
            "It is named by the variable recovery_http_ca."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def fetch(check: Check, url: str, context: ssl.SSLContext, timeout: float, max_body: int = MAX_BODY) -> Answer:
    """Ask once, follow redirects on the same host, and return the answer, with no more body than is needed.

    `timeout` is for the whole of it, in seconds. Raises NoAnswerError.
    """
    deadline = time.monotonic() + timeout
    for _ in range(MAX_REDIRECTS + 1):
        answer = _request(check, url, context, deadline - time.monotonic(), max_body)
        location = answer.headers.get("location")
        if answer.status not in (301, 302, 303, 307, 308) or answer.status == check.status or not location:
            return answer
        target = urljoin(url, location)
        if not _same_host(url, target):
            reason = f"sends on to another host, {target}, which is not asked"
            raise NoAnswerError(reason, "correct the URL", final=True)
        url = target
    raise NoAnswerError(f"sends on more than {MAX_REDIRECTS} times", "correct the URL", final=True)


def _same_host(url: str, target: str) -> bool:
    before, after = urlsplit(url), urlsplit(target)
    upgrade = (before.scheme, after.scheme) == ("http", "https") and not before.port and not after.port
    same_place = before.scheme == after.scheme and before.port == after.port
    return before.hostname == after.hostname and (same_place or upgrade)


def _request(check: Check, url: str, context: ssl.SSLContext, timeout: float, max_body: int) -> Answer:
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.netloc, timeout=max(timeout, 0.1), context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=max(timeout, 0.1))
    expired = threading.Event()
    watchdog = threading.Timer(0, expired.set)  # not started: there is no connection yet
    try:
        connection.connect()
        # A socket's timeout begins anew with each byte; this ends the whole request.
        watchdog = threading.Timer(max(timeout, 0.1), _cut_off, [connection.sock, expired])
        watchdog.daemon = True
        watchdog.start()
        answer = _exchange(check, url, connection, max_body)
        if expired.is_set():
            raise TimeoutError  # what was read is only the part that came in time
        return answer
    except ssl.SSLCertVerificationError as error:
        raise NoAnswerError(
            f"shows a certificate that is refused: {error.verify_message}",
            "name the CA that issued it in recovery_http_ca, or correct the host name",
            final=True,
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        text = f"not within {timeout:.0f} s" if expired.is_set() else str(error) or type(error).__name__
        reason, advice = f"does not answer: {text}", "see whether the service runs, and read its log"
        raise NoAnswerError(reason, advice) from error
    finally:
        watchdog.cancel()
        connection.close()


def _cut_off(sock: socket.socket, expired: threading.Event) -> None:
    expired.set()
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        pass


def _exchange(check: Check, url: str, connection: http.client.HTTPConnection, max_body: int) -> Answer:
    parts = urlsplit(url)
    target = quote(parts.path or "/", safe=SAFE_IN_URL)
    if parts.query:
        target += f"?{quote(parts.query, safe=SAFE_IN_URL)}"
    headers = {"Accept-Encoding": "identity", "User-Agent": "alembic-recovery", "Connection": "close"}
    if check.range:
        headers["Range"] = f"bytes={check.range}"
    connection.request(check.method, target, headers=headers)
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    wanted = check.body_needed(max_body)
    if check.min_length and "content-length" not in found and "content-range" not in found:
        wanted = min(max_body, max(wanted, check.min_length))
    body = response.read(wanted + 1)
    return Answer(response.status, found, body[:wanted], len(body) > wanted, url)


def attempt(
    check: Check, captured: dict[str, t.Any], context: ssl.SSLContext, timeout: float, max_body: int
) -> dict[str, t.Any]:
    """Do one check once, add to `captured`, and return its result as the module documents it, and `final`."""
    started = time.monotonic()
    result: dict[str, t.Any] = {"name": check.name, "url": check.url, "method": check.method, "ok": False}
    result.update(status=0, expected_status=check.status, reason="", advice="", final=False, body_excerpt="")
    try:
        result["url"] = fill(check, captured)
        answer = fetch(check, result["url"], context, timeout, max_body)
        problems, found = evaluate(check, answer)
    except NoAnswerError as error:
        problems = [error.reason]
        result.update(advice=error.advice, final=error.final)
    else:
        captured.update(found)
        result.update(status=answer.status, content_type=answer.media_type(), length=answer.total_length())
        if problems:
            text = answer.body[: 4 * EXCERPT].decode("utf-8", "replace")
            result["body_excerpt"] = "".join(c if c.isprintable() else " " for c in text)[:EXCERPT].strip()
            result["advice"] = "read the log of the service, and compare its answer with what the check expects"
    result.update(ok=not problems, seconds=round(time.monotonic() - started, 3))
    if problems:
        result["reason"] = f"{check.method} {result['url']} {', and '.join(problems)}."
    return result


def run(
    checks: t.Sequence[Check],
    ca_path: str | None = None,
    timeout: float = 10,
    retries: int = 0,
    delay: float = 2,
    max_body: int = MAX_BODY,
    patience: float | None = None,
) -> list[dict[str, t.Any]]:
    """Do the checks in order; do those that failed again, `retries` times at most, `delay` seconds apart.

    After `patience` seconds none is repeated, and one that was not tried yet gets a second: a service that takes
    requests and never answers must not keep the caller for `timeout` seconds a check and attempt.

    Returns one result for each, in their order. Raises HttpCheckError if the CA bundle cannot be used.
    """
    context = tls_context(ca_path)
    captured: dict[str, t.Any] = {}
    results: dict[str, dict[str, t.Any]] = {}
    deadline = time.monotonic() + patience if patience is not None else float("inf")
    for turn in range(retries + 1):
        failed = [check for check in checks if not results.get(check.name, {}).get("ok")]
        if not failed or any(results.get(check.name, {}).get("final") for check in failed):
            break
        if turn:
            if time.monotonic() + delay >= deadline:
                break
            time.sleep(delay)
        for check in failed:
            left = min(timeout, max(deadline - time.monotonic(), 1.0))
            results[check.name] = {
                **attempt(check, captured, context, left, max_body),
                "attempts": turn + 1,
            }
    return [{key: value for key, value in results[check.name].items() if key != "final"} for check in checks]


def summary(results: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Return what to tell the user: a line for each check that failed, and what to do, or that all hold."""
    failed = [result for result in results if not result["ok"]]
    if not failed:
        return f"{len(results)} of {len(results)} HTTP checks are as expected."
    lines = [f"{len(failed)} of {len(results)} HTTP checks failed."]
    for result in failed:
        begins = f" Body begins: {result['body_excerpt']}" if result["body_excerpt"] else ""
        lines.append(f"{result['name']}: {result['reason']}{begins}")
    lines.append(f"Next: {failed[0]['advice']}.")
    return "\n".join(lines)
