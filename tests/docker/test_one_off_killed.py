"""Whole runs whose one-off container is killed, in each stage that has one: nothing happens to production."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import docker.errors
import pytest

from replica.application import BROKEN, HEAD
from tests.docker.observation import database, one_offs
from tests.docker.production import BESIDE, Site
from tests.docker.test_rollback_docker import SAME, services, words
from tests.support.ansible_run import Run

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.thorough, BESIDE]


def records(site: Site) -> dict[str, dict[str, Any]]:
    """The records of the runs so far, by run."""
    found = {}
    for path in (site.target / "prod" / "runs").glob("*/record.json"):
        found[path.parent.name] = json.loads(path.read_text())
    return found


def kill_one_off(site: Site, stage: str, known: set[str], running: Future[Run]) -> str:
    """Kill the first container of the new run that runs in a stage; its name."""
    api = site.production.replica.client.api
    while not running.done():
        for run_id, facts in records(site).items():
            if run_id in known or facts["stage"] != stage:
                continue
            for found in api.containers(filters={"label": f"alembic-recovery.run={run_id}"}):
                try:
                    api.kill(found["Id"], "SIGKILL")
                except docker.errors.APIError:
                    continue
                return str(found["Names"][0])
        time.sleep(0.02)
    raise AssertionError(f"no container ran in the stage {stage}: {running.result().text}")


@pytest.mark.timeout(1800)
def test_acceptance_3_a_one_off_that_is_killed_in_each_stage_that_has_one(site: Site) -> None:
    replica = site.production.replica
    before, policies = database(replica), services(site)

    for stage in ("backing_up", "rehearsing", "migrating"):
        known = set(records(site))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(site.recover, "-e", json.dumps({"recovery_rehearse": stage == "rehearsing"}))
            killed = kill_one_off(site, stage, known, running)
            failed = running.result()
        assert failed.code == 2, (stage, killed, failed.text)
        assert "failed: " in words(failed)
        after = database(replica)
        for part in SAME:
            assert after[part] == before[part], (stage, part)
        assert services(site) == policies, stage
        assert replica.query("select version_num from alembic_version") == BROKEN
        assert site.production.beside() == {}, stage
        assert one_offs(replica) == [], stage

    done = site.recover("-e", json.dumps({"recovery_rehearse": False}))
    assert done.code == 0, done.text
    assert replica.query("select version_num from alembic_version") == HEAD
