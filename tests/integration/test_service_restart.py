"""service_restart on a real supervisord: four steps, order, what does not come up, logs."""

from __future__ import annotations

import datetime
from typing import Any

from tests.support.evidence import files
from tests.support.modules import run_module
from tests.support.supervised import STEADY, TRACEBACK, Supervised

TALKS = "import sys\nsys.stderr.write('sqlalchemy.exc.ProgrammingError: no such thing\\n')\n" + STEADY


def restart(supervised: Supervised, *names: str, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run service_restart."""
    services = [supervised.option(name) for name in names or ("api", "worker")]
    return run_module("service_restart", {"services": services, "timeout": 20, **more}, check=check)


def look(supervised: Supervised, *names: str, **more: Any) -> dict[str, Any]:
    """Run service_status, and require that it leaves all processes as they are."""
    services = [supervised.option(name) for name in names or ("api", "worker")]
    before = supervised.processes()
    result = run_module("service_status", {"services": services, **more})
    assert result["changed"] is False
    assert supervised.processes() == before
    return result


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def test_check_real_check_real(supervised: Supervised) -> None:
    since = now()
    before, left = supervised.processes(), files(supervised.directory, without=["supervisord.log"])

    planned = restart(supervised, check=True, unless_started_since=since)
    assert (planned["changed"], planned["restarted"]) == (True, ["api", "worker"])
    assert supervised.processes() == before
    assert files(supervised.directory, without=["supervisord.log"]) == left

    done = restart(supervised, unless_started_since=since)
    assert (done["changed"], done["restarted"]) == (True, ["api", "worker"])
    after = supervised.processes()
    assert before.items().isdisjoint(after.items())
    api, worker = supervised.process("api"), supervised.process("worker")
    assert api is not None
    assert worker is not None
    assert api.create_time() < worker.create_time(), "not in the order given"
    moments = [datetime.datetime.fromisoformat(state["started_at"]) for state in done["services"]]
    for moment, process in zip(moments, (api, worker), strict=True):
        assert abs(moment.timestamp() - process.create_time()) < 2
    # Each is up for some seconds before the next is touched.
    assert worker.create_time() - api.create_time() > 3

    for check in (True, False):
        again = restart(supervised, check=check, unless_started_since=since)
        assert (again["changed"], again["restarted"]) == (False, [])
    assert supervised.processes() == after


def test_without_a_moment_all_are_restarted(supervised: Supervised) -> None:
    before = supervised.processes()
    assert restart(supervised, "api", check=True)["restarted"] == ["api"]
    assert supervised.processes() == before


def test_one_that_was_stopped_is_started(supervised: Supervised) -> None:
    supervised.control("stop", "api")
    assert supervised.process("api") is None
    seen = look(supervised)
    assert seen["problems"] == ["api (supervisor unit api) is not running."]
    assert [state["running"] for state in seen["services"]] == [False, True]
    worker = supervised.process("worker")
    since = datetime.datetime(2025, 10, 21, tzinfo=datetime.UTC).isoformat()
    done = restart(supervised, unless_started_since=since)
    assert (done["changed"], done["restarted"]) == (True, ["api"])
    assert supervised.state("api") == "RUNNING"
    assert supervised.process("worker") == worker


def test_row_53_one_that_does_not_come_up(supervised: Supervised) -> None:
    """It says so with the end of the log, does not touch the next, and works when the cause is removed."""
    supervised.set_program("api", TRACEBACK)
    worker = supervised.process("worker")
    seen = restart(supervised)
    assert seen["failed"] is True
    assert seen["service"] == "api"
    assert "api (supervisor unit api) was restarted and" in seen["msg"]
    assert "RuntimeError: column songs.sketch_id does not exist" in seen["msg"]
    assert supervised.process("worker") == worker
    problems = run_module("service_status", {"services": [supervised.option("api")]})["problems"]
    assert len(problems) == 1
    assert problems[0].startswith("api (supervisor unit api) is ")

    supervised.set_program("api", STEADY)
    assert restart(supervised)["restarted"] == ["api", "worker"]
    assert look(supervised)["problems"] == []


def test_row_53_one_that_comes_up_with_errors_in_its_log(supervised: Supervised) -> None:
    """What was in the log before the restart does not count."""
    with supervised.log("worker").open("a") as log:
        log.write("Traceback (most recent call last):\nold\n")
    assert restart(supervised, "worker")["changed"] is True
    supervised.set_program("worker", TALKS)
    seen = restart(supervised, "worker")
    assert seen["failed"] is True
    assert "is up again, but its log since the restart has errors: sqlalchemy.exc.Programming" in seen["msg"]
    assert seen["log_problems"] == ["sqlalchemy.exc.ProgrammingError: no such thing"]


def test_patterns_of_ones_own_and_no_password_is_repeated(supervised: Supervised) -> None:
    supervised.set_program("api", "print('see postgresql://a:s3cr3t@db/x')\n" + STEADY)
    seen = restart(supervised, "api", log_patterns=["^rea.y$", "postgresql:"])
    assert seen["log_problems"] == ["see postgresql://a:***@db/x", "ready"]
    assert "s3cr3t" not in str(seen)


def test_a_moment_that_is_none(supervised: Supervised) -> None:
    before = supervised.processes()
    seen = restart(supervised, unless_started_since="yesterday")
    assert "unless_started_since is 'yesterday', expected a moment such as" in seen["msg"]
    assert supervised.processes() == before
