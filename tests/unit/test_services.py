"""What a log must not hold, what is masked, and which services are due for a restart."""

from __future__ import annotations

import datetime
import re

import pytest
import service_restart
from ansible.module_utils.alembic_recovery.errors import StackError
from ansible.module_utils.alembic_recovery.services import LOG_PATTERNS, State, masked

BAD = [
    "Traceback (most recent call last):",
    "psycopg.errors.UndefinedColumn: column songs.sketch_id does not exist",
    "sqlalchemy.exc.ProgrammingError: (psycopg.errors.UndefinedColumn)",
    "[2025-10-21 03:00:00 +0000] [7] [ERROR] OperationalError: could not connect",
    "2025-10-21 03:00:00.000 UTC [42] FATAL:  the database system is starting up",
    "PANIC: could not write to log file",
]
GOOD = [
    "[2025-10-21 03:00:00 +0000] [7] [INFO] Booting worker with pid: 7",
    "celery@worker ready.",
    "INFO: 3 songs indexed, 0 errors",
    'GET /api/v1/songs?q=traceback HTTP/1.1" 200',
    "the word fatal: in lower case",
]


@pytest.mark.parametrize("line", BAD)
def test_bad_line(line: str) -> None:
    assert any(re.search(pattern, line) for pattern in LOG_PATTERNS)


@pytest.mark.parametrize("line", GOOD)
def test_good_line(line: str) -> None:
    assert not any(re.search(pattern, line) for pattern in LOG_PATTERNS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("postgresql://app:s3c:ret@db/app", "postgresql://app:***@db/app", id="url"),
        pytest.param("redis://:pw@redis:6379/0 and x", "redis://:***@redis:6379/0 and x", id="no user"),
        pytest.param("http://host:8000/a", "http://host:8000/a", id="a port is no password"),
        pytest.param("nothing here", "nothing here", id="plain"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


SINCE = datetime.datetime(2025, 10, 21, 3, 15, tzinfo=datetime.UTC)
EARLIER, LATER = SINCE - datetime.timedelta(seconds=1), SINCE + datetime.timedelta(seconds=1)


@pytest.mark.parametrize(
    ("state", "since", "expected"),
    [
        pytest.param(State("api", "", True, started_at=EARLIER), SINCE, True, id="started before"),
        pytest.param(State("api", "", True, started_at=LATER), SINCE, False, id="started since"),
        pytest.param(State("api", "", True, started_at=LATER), None, True, id="no moment: always"),
        pytest.param(State("api", "", False, started_at=LATER), SINCE, True, id="not running"),
        pytest.param(State("api", "", True, "unhealthy", started_at=LATER), SINCE, True, id="unhealthy"),
        pytest.param(State("api", "", True), SINCE, True, id="nobody knows since when"),
    ],
)
def test_due(state: State, since: datetime.datetime | None, expected: bool) -> None:
    assert service_restart.due(state, since) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2025-10-21T03:15:00Z", SINCE, id="Z"),
        pytest.param("2025-10-21T03:15:00", SINCE, id="no zone is UTC"),
        pytest.param("2025-10-21T05:15:00+02:00", SINCE, id="offset"),
        pytest.param("", None, id="empty"),
    ],
)
def test_parse_moment(text: str, expected: datetime.datetime | None) -> None:
    assert service_restart.parse_moment(text) == expected


def test_parse_moment_refuses() -> None:
    with pytest.raises(StackError, match="expected a moment such as"):
        service_restart.parse_moment("at three in the morning")
