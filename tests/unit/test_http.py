"""HTTP checks, the pure part: what is refused, how URLs are filled, how answers are judged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery.http import (
    Answer,
    Check,
    HttpCheckError,
    NoAnswerError,
    dig,
    evaluate,
    fill,
    parse_checks,
    summary,
)

URL = "https://songs.example.com/api"


def check(**options: Any) -> Check:
    """A check as the inventory describes it."""
    return parse_checks([{"name": "songs", "url": URL, **options}])[0]


def json_answer(document: Any, status: int = 200) -> Answer:
    return Answer(status, {"content-type": "application/json"}, json.dumps(document).encode())


WAV = Answer(
    206,
    {"content-type": "audio/wav", "content-range": "bytes 0-15/44144", "content-length": "16"},
    b"RIFF\x68\xac\x00\x00WAVEfmt ",
)

GOOD = [
    pytest.param({}, Answer(200, {}, b""), {}, id="status-alone"),
    pytest.param({"status": 404}, Answer(404, {}, b""), {}, id="another-status"),
    pytest.param(
        {"content_type": "text/html"},
        Answer(200, {"content-type": "Text/HTML; charset=utf-8"}, b""),
        {},
        id="type",
    ),
    pytest.param({"contains": "grüße"}, Answer(200, {}, "viele grüße".encode()), {}, id="contains-umlaut"),
    pytest.param({"json_not_empty": "items"}, json_answer({"items": [1]}), {}, id="list"),
    pytest.param({"json_not_empty": ""}, json_answer([0]), {}, id="root"),
    pytest.param({"json_not_empty": "count"}, json_answer({"count": 0}), {}, id="zero-is-something"),
    pytest.param({"min_length": 5}, Answer(200, {}, b"12345"), {}, id="length-of-the-body"),
    pytest.param({"min_length": 9}, Answer(200, {"content-length": "9"}, b"12"), {}, id="length-of-the-header"),
    pytest.param({"first_bytes": "52 49 46 46"}, Answer(200, {}, b"RIFF."), {}, id="first-bytes"),
    pytest.param(
        {"range": "0-15", "content_type": "audio/wav", "min_length": 1000, "first_bytes": "52494646"},
        WAV,
        {},
        id="audio",
    ),
    pytest.param(
        {"range": "0-99"},
        Answer(206, {"content-range": "bytes 0-2/3"}, b"abc"),
        {},
        id="range-longer-than-the-file",
    ),
    pytest.param({"range": "3-"}, Answer(206, {"content-range": "bytes 3-5/6"}, b"def"), {}, id="open-range"),
    pytest.param(
        {"capture": {"song_id": "items.0.id", "title": "items.0.title"}},
        json_answer({"items": [{"id": 7, "title": "a b"}]}),
        {"song_id": 7, "title": "a b"},
        id="capture",
    ),
]


@pytest.mark.parametrize(("options", "answer", "captured"), GOOD)
def test_an_answer_as_expected(options: dict[str, Any], answer: Answer, captured: dict[str, Any]) -> None:
    assert evaluate(check(**options), answer) == ([], captured)


BAD = [
    pytest.param({}, Answer(500, {}, b"boom"), "answered 500, expected 200", id="status"),
    pytest.param({"range": "0-15"}, Answer(200, {}, b"x" * 99), "answered 200, expected 206", id="range-ignored"),
    pytest.param(
        {"content_type": "audio/wav"},
        Answer(200, {}, b""),
        "is of type none, expected audio/wav",
        id="no-type",
    ),
    pytest.param(
        {"content_type": "audio/wav"},
        Answer(200, {"content-type": "text/html; charset=utf-8"}, b""),
        "is of type text/html, expected audio/wav",
        id="type",
    ),
    pytest.param({"contains": "Songs"}, Answer(200, {}, b"songs"), "does not contain 'Songs'", id="contains"),
    pytest.param(
        {"contains": "Songs"},
        Answer(200, {}, b"so", True),
        "does not contain 'Songs' in its first 2 bytes",
        id="truncated",
    ),
    pytest.param({"min_length": 6}, Answer(200, {}, b"12345"), "is 5 bytes long, expected at least 6", id="too-short"),
    pytest.param(
        {"min_length": 1000, "range": "0-15"},
        Answer(206, {"content-range": "bytes 0-15/44"}, b"R" * 16),
        "is 44 bytes long, expected at least 1000",
        id="the-file-is-too-short-not-the-part",
    ),
    pytest.param(
        {"range": "0-15"},
        Answer(206, {"content-range": "bytes 0-15/44"}, b"R" * 3),
        "sent 3 bytes, expected the 16 of the range 0-15",
        id="part-of-the-range",
    ),
    pytest.param(
        {"first_bytes": "52494646"},
        Answer(200, {}, b"OggS"),
        "begins with the bytes 4f676753, expected 52494646",
        id="bytes",
    ),
    pytest.param(
        {"first_bytes": "5249"},
        Answer(200, {}, b""),
        "begins with the bytes none, expected 5249",
        id="no-bytes",
    ),
    pytest.param(
        {"json_not_empty": "items"},
        json_answer({"items": []}),
        "has nothing in items, expected something",
        id="[]",
    ),
    pytest.param({"json_not_empty": ""}, json_answer({}), "has nothing in the document, expected something", id="{}"),
    pytest.param({"json_not_empty": "a"}, json_answer({"a": None}), "has nothing in a, expected something", id="null"),
    pytest.param(
        {"json_not_empty": "items"},
        json_answer({"error": "x", "code": 1}),
        "should have something in items: the document has no items (it has code, error)",
        id="no-such-key",
    ),
    pytest.param({"json_not_empty": "items"}, Answer(200, {}, b"<html>"), "is not JSON (Expecting value", id="html"),
    pytest.param({"json_not_empty": "items"}, Answer(200, {}, b"\xff\xfe"), "is not JSON (", id="not-utf-8"),
    pytest.param(
        {"json_not_empty": "items"},
        Answer(200, {}, b'{"items": [', True),
        "is longer than 11 bytes, which is as much as is read (max_body)",
        id="json-too-long",
    ),
    pytest.param(
        {"capture": {"song_id": "items.0.id"}},
        json_answer({"items": []}),
        "should have song_id at items.0.id: items is a list of 0, it has no element 0",
        id="capture-from-nothing",
    ),
    pytest.param(
        {"capture": {"song_id": "items"}},
        json_answer({"items": [1]}),
        "has list at items, expected text or a number for song_id",
        id="capture-a-list",
    ),
    pytest.param(
        {"capture": {"u": "u"}},
        json_answer({"u": ""}),
        "has str at u, expected text or a number for u",
        id="capture-empty",
    ),
]


@pytest.mark.parametrize(("options", "answer", "problem"), BAD)
def test_an_answer_that_is_wrong(options: dict[str, Any], answer: Answer, problem: str) -> None:
    problems, captured = evaluate(check(**options), answer)

    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert captured == {}


def test_all_that_is_wrong_is_said() -> None:
    answer = Answer(200, {"content-type": "text/html"}, b"abc")

    problems, _ = evaluate(check(content_type="audio/wav", min_length=10, first_bytes="ff"), answer)

    assert [problem.split()[0] for problem in problems] == ["is", "is", "begins"]


REFUSED = [
    pytest.param([{"url": "songs"}], "'songs' is no URL that begins with https://host", id="no-url"),
    pytest.param([{"url": "file:///etc/passwd"}], "is no URL that begins with", id="file"),
    pytest.param([{"url": "https:///api"}], "is no URL that begins with", id="no-host"),
    pytest.param([{"url": "https://user:geheim@host/"}], "holds credentials", id="credentials"),
    pytest.param([{"range": "15"}], "the range '15' is not of the form 0-15 or 0-", id="range"),
    pytest.param([{"first_bytes": "RIFF"}], "first_bytes 'RIFF' is not hexadecimal", id="no-hex"),
    pytest.param([{"first_bytes": "525"}], "first_bytes '525' is not hexadecimal", id="half-a-byte"),
    pytest.param([{}, {}], "Two HTTP checks are called 'songs'", id="same-name"),
    pytest.param(
        [{"url": URL + "/{song_id}"}],
        "songs: {song_id} in https://songs.example.com/api/{song_id} is captured by no check before it. "
        "Captured so far: nothing. Add `capture: {song_id: a.dotted.path}`",
        id="nothing-captured",
    ),
    pytest.param(
        [{"name": "a", "url": URL + "/{id}", "capture": {"id": "id"}}],
        "is captured by no check before it",
        id="own-capture",
    ),
]


@pytest.mark.parametrize(("described", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_asked(described: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(HttpCheckError) as raised:
        parse_checks({"name": "songs", "url": URL, **item} for item in described)

    assert message in raised.value.message
    assert "geheim" not in raised.value.message


def test_a_range_is_expected_to_be_answered_with_206() -> None:
    assert check(range="0-15").status == 206
    assert check(range="0-15", status=200).status == 200
    assert check().status == 200


@pytest.mark.parametrize(
    ("url", "value", "filled"),
    [
        pytest.param("https://h/s/{v}", 7, "https://h/s/7", id="number"),
        pytest.param("https://h/s?q={v}", "a b\r\nX: y", "https://h/s?q=a%20b%0D%0AX:%20y", id="quoted"),
        pytest.param("https://h{v}", "/audio/7.wav?x=1", "https://h/audio/7.wav?x=1", id="path"),
        pytest.param("https://h:8443{v}", "/a%20b", "https://h:8443/a%20b", id="already-quoted"),
    ],
)
def test_captured_values_in_a_url(url: str, value: Any, filled: str) -> None:
    assert fill(Check("x", url), {"v": value}) == filled


@pytest.mark.parametrize("value", [".evil.example/x", "@evil.example/x", ":81/x", "7"])
def test_a_captured_value_never_leads_to_another_host(value: str) -> None:
    with pytest.raises(NoAnswerError, match=r"does not lead to h$"):
        fill(Check("x", "https://h{v}"), {"v": value})


def test_a_check_without_its_captured_value_is_not_tried() -> None:
    with pytest.raises(NoAnswerError, match="not tried: song_id was not captured"):
        fill(Check("x", "https://h/{song_id}"), {})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("a.b.c", "a.b is int, it has no c", id="scalar"),
        pytest.param("l.2", "l is a list of 2, it has no element 2", id="index"),
        pytest.param("l.x", "l is a list of 2, it has no element x", id="name-in-a-list"),
        pytest.param("z", "the document has no z (it has a, l)", id="key"),
    ],
)
def test_how_far_a_path_led(path: str, message: str) -> None:
    with pytest.raises(LookupError) as raised:
        dig({"a": {"b": 1}, "l": [1, {"d": 5}]}, path)

    assert str(raised.value) == message


def test_a_path_through_lists_and_objects() -> None:
    assert dig({"l": [1, {"d": 5}]}, "l.1.d") == 5


def test_the_summary_names_each_failure_and_the_next_step() -> None:
    good = {"ok": True}
    bad = {
        "ok": False,
        "name": "songs",
        "reason": "GET u answered 500, expected 200.",
        "body_excerpt": "boom",
        "advice": "look",
    }

    assert summary([good, good]) == "2 of 2 HTTP checks are as expected."
    assert summary([good, bad]) == (
        "1 of 2 HTTP checks failed.\nsongs: GET u answered 500, expected 200. Body begins: boom\nNext: look."
    )
