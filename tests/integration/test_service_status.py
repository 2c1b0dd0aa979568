"""service_status on a real supervisord, against the process table; it changes nothing."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.modules import run_module
from tests.support.supervised import TRACEBACK, Supervised


def look(supervised: Supervised, *names: str, **more: Any) -> dict[str, Any]:
    """Run service_status, and require that it leaves all processes as they are."""
    services = [supervised.option(name) for name in names or ("api", "worker")]
    before = supervised.processes()
    result = run_module("service_status", {"services": services, **more})
    assert result["changed"] is False
    assert supervised.processes() == before
    return result


def test_what_runs_against_the_process_table(supervised: Supervised) -> None:
    seen = look(supervised)
    assert seen["problems"] == []
    for state in seen["services"]:
        process = supervised.process(state["name"])
        assert process is not None
        assert (state["running"], state["where"]) == (True, f"supervisor unit {state['name']}")
        started_at = datetime.datetime.fromisoformat(state["started_at"]).timestamp()
        assert abs(started_at - process.create_time()) < 2
    checked = run_module("service_status", {"services": [supervised.option("api")]}, check=True)
    assert checked["services"][0]["running"] is True


def test_one_that_is_started_again_and_again(supervised: Supervised) -> None:
    supervised.set_program("api", TRACEBACK)
    for _attempt in range(10):
        supervised.control("restart", "api")
        supervised.wait_for("api", "BACKOFF", "FATAL")
        seen = run_module("service_status", {"services": [supervised.option("api")]})
        # On a busy machine, supervisord may have given up before it is asked.
        if seen["problems"] != ["api (supervisor unit api) is not running."]:
            break
    assert seen["problems"] == ["api (supervisor unit api) is restarting in a loop."]


@pytest.mark.parametrize("module", ["service_status", "service_restart"])
def test_a_unit_that_is_not_there(supervised: Supervised, module: str) -> None:
    before = supervised.processes()
    seen = run_module(module, {"services": [supervised.option("api", unit="web")]})
    assert seen["failed"] is True
    assert "supervisord has no program web" in seen["msg"]
    assert "services[].unit" in seen["msg"]
    assert supervised.processes() == before


def test_a_manager_that_does_not_answer(supervised: Supervised, tmp_path: Path) -> None:
    other = tmp_path / "other.conf"
    other.write_text("[supervisorctl]\nserverurl=unix:///none.sock\n")
    seen = run_module("service_status", {"services": [supervised.option("api", manager_config=str(other))]})
    assert seen["failed"] is True
    assert "supervisord does not answer" in seen["msg"]
    assert str(other) in seen["msg"]


def test_no_manager() -> None:
    seen = run_module("service_status", {"services": [{"name": "api", "runtime": "host"}]})
    assert seen["msg"] == ("Service api has runtime: host and no manager. Set manager: supervisor or systemd.")
