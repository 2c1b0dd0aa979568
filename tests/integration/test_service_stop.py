"""service_stop on a real supervisord: the last one first, and only what runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.support.modules import run_module
from tests.support.supervised import STEADY, Supervised
from tests.support.waiting import wait_until


def stop(supervised: Supervised, *, check: bool = False) -> dict[str, Any]:
    return run_module("service_stop", {"services": [supervised.option(n) for n in ("api", "worker")]}, check=check)


def test_check_real_check_real(supervised: Supervised) -> None:
    before = supervised.processes()

    planned = stop(supervised, check=True)
    assert (planned["changed"], planned["stopped"]) == (True, ["worker", "api"])
    assert supervised.processes() == before

    done = stop(supervised)
    assert (done["changed"], done["stopped"]) == (True, ["worker", "api"])
    assert supervised.processes() == {}
    log = (supervised.directory / "supervisord.log").read_text()
    assert log.rindex("stopped: worker") < log.rindex("stopped: api")

    for check in (True, False):
        again = stop(supervised, check=check)
        assert (again["changed"], again["stopped"]) == (False, [])


def test_one_that_is_not_known_is_named(supervised: Supervised) -> None:
    refused = run_module("service_stop", {"services": [supervised.option("api", unit="other")]})

    assert refused["failed"] is True
    assert "supervisord has no program other" in refused["msg"]
    assert supervised.state("api") == "RUNNING"


def test_one_that_ends_again_and_again_does_not_come_back(tmp_path: Path) -> None:
    """Whatever moment of its life it is stopped in: for a moment after its end, supervisord takes no stop."""
    with Supervised(tmp_path, {"api": "import time\ntime.sleep(1.2)\n", "worker": STEADY}) as supervised:
        log = supervised.directory / "supervisord.log"
        for pause in (0, 0.4, 0.8):
            supervised.control("start", "all")
            ends = log.read_text().count("exited: api")
            wait_until(lambda ends=ends: log.read_text().count("exited: api") > ends, "it has ended by itself")
            time.sleep(pause)

            done = stop(supervised)

            assert (done["changed"], done["stopped"][0]) == (True, "worker")
            time.sleep(2.5)
            assert supervised.processes() == {}, pause
