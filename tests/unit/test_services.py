"""What a log must not hold, what is masked, and which services are due for a restart."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable

import pytest
import service_restart
from ansible.module_utils.alembic_recovery import services
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.alembic_recovery.service_managers import SupervisorService
from ansible.module_utils.alembic_recovery.services import LOG_PATTERNS, Service, State, masked, wait_until_up

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by from look to look; what a look says of the age is left out, for SINCE is years ago."""
    seconds = itertools.count()
    monkeypatch.setattr(services.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(services.State, "age", lambda _state: 0.0)


class Scripted(Service):
    """A service that says of itself what it is told to, at each look."""

    pause = 0.0

    def __init__(self, looks: list[State]) -> None:
        super().__init__("api", "supervisor unit api", 1)
        self._looks = iter(looks)

    def state(self) -> State:
        return next(self._looks)

    def log_lines(self) -> list[str]:
        return ["column songs.sketch_id does not exist"]

    def stop_argv(self) -> list[str]:
        return ["true"]

    start_argv = stop_argv

    def restart(self) -> None:
        raise NotImplementedError


def looks(began: Callable[[int], datetime.datetime | None]) -> list[State]:
    """It is running at each look, in a process that began at a moment."""
    return [State("api", "", True, started_at=began(second)) for second in range(30)]


def test_one_that_is_started_again_between_any_two_looks_is_not_up(clock: None) -> None:
    """A look takes a second on a full machine: each then sees another process, which has been up for a moment."""
    service = Scripted(looks(lambda second: SINCE + datetime.timedelta(seconds=second)))
    with pytest.raises(RecoveryError, match=r"is started again and again: 9 times in 8 s.*sketch_id does not exist"):
        wait_until_up(service, 8)


@pytest.mark.parametrize(
    "began",
    [
        pytest.param(lambda _second: SINCE, id="the same process"),
        pytest.param(lambda second: SINCE + datetime.timedelta(milliseconds=20 * second), id="read inexactly"),
        pytest.param(lambda _second: None, id="nobody knows since when"),
        pytest.param(lambda second: SINCE + datetime.timedelta(seconds=second > 2), id="started twice, then it stays"),
    ],
)
def test_one_that_stays_is_up(clock: None, began: Callable[[int], datetime.datetime | None]) -> None:
    assert wait_until_up(Scripted(looks(began)), 8).running


def test_one_whose_process_is_gone_while_its_supervisor_still_calls_it_running_is_not_up(clock: None) -> None:
    running = [State("api", "", True, started_at=began, said="RUNNING") for began in (*[SINCE] * 4, None)]
    with pytest.raises(RecoveryError, match="is not running after 8 s"):
        wait_until_up(Scripted([*running, *[State("api", "", False)] * 30]), 8)


@pytest.mark.parametrize("deed", ["start", "stop"])
def test_a_stop_that_is_under_way_is_waited_for(clock: None, deed: str) -> None:
    """A manager refuses to start what it is still stopping, and it may still write to the database."""
    service = Scripted([State("worker", "", False, said="STOPPING")] * 3 + [State("worker", "", False)] * 2)
    getattr(service, deed)()
    assert not service.state().stopping


def test_one_that_comes_back_whenever_it_is_stopped_is_said(clock: None) -> None:
    class Restless(Scripted):
        def _stays_down(self, seen: State, seconds: float) -> bool:
            return False

    with pytest.raises(RecoveryError, match="was told to stop and comes back: it is UNKNOWN"):
        Restless([State("worker", "", False, said="UNKNOWN")] * 200).stop()


def test_supervisord_is_told_again_until_the_program_stays_down() -> None:
    """It takes no stop from a program that has just ended by itself, and starts it once more."""

    class Flapping(Scripted, SupervisorService):
        told = 0

        def __init__(self, *said: str) -> None:
            Service.__init__(self, "worker", "supervisor unit worker", 1)
            self._looks = iter([State("worker", "", False, said=word) for word in said])

        def stop_argv(self) -> list[str]:
            self.told += 1
            return ["true"]

    service = Flapping("EXITED", "STARTING", "STOPPED")
    service.stop()
    assert service.told == 3


def test_a_stop_that_does_not_end_is_said(clock: None) -> None:
    service = Scripted([State("worker", "", False, said="STOPPING")] * 200)
    with pytest.raises(RecoveryError, match="was told to stop and still runs"):
        service.start()
