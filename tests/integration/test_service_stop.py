"""service_stop on a real supervisord: the last one first, and only what runs."""

from __future__ import annotations

from typing import Any

from tests.support.modules import run_module
from tests.support.supervised import Supervised


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
