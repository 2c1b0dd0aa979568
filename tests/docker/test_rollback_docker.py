"""`playbooks/rollback.yml` on the replica in containers: each way back, and what each refuses first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from replica.application import BROKEN, ENCODED, HEAD
from replica.docker import DockerReplica
from tests.docker.observation import ask, database, kept
from tests.docker.production import BESIDE, Production, Site
from tests.replica import behaviour
from tests.support.ansible_run import Run

pytestmark = [pytest.mark.docker, pytest.mark.slow, BESIDE]

#: What makes a database the same for its users; `writes` and `databases` are of its life.
SAME = ("version", "rows", "content", "sequences", "schema")
# Rows that do not look as if they had been encoded before.
PLAIN = "update lyric_parsing_rules set replacement = 'ä ' || id::text"


def back(site: Site, *arguments: str, **variables: Any) -> Run:
    """Run rollback.yml, confirmed."""
    given = {"recovery_confirm": "aiproxy@prod", **variables}
    return site.play("playbooks/rollback.yml", "-e", json.dumps(given), *arguments)


def words(run: Run) -> str:
    """All that was printed, each run of white space as one blank."""
    return " ".join(run.text.split())


def services(site: Site) -> dict[str, tuple[str, str]]:
    """State and restart policy of the services' containers."""
    seen = {name: site.production.replica.container(name).attrs for name in ("aiproxysrv", "celery-worker")}
    return {n: (at["State"]["Status"], at["HostConfig"]["RestartPolicy"]["Name"]) for n, at in seen.items()}


@pytest.fixture(scope="module")
def older(made: Production) -> Iterator[str]:
    """An image of the application as it was before the two revisions; its tag."""
    replica: DockerReplica = made.replica
    image, tag = replica.container("aiproxysrv").image, f"{replica.prefix}-older"
    gone = [f"/app/src/alembic/versions/{revision}_*.py" for revision in (ENCODED, HEAD)]
    container = replica.client.containers.create(image, entrypoint=["sh", "-ec", f"rm {' '.join(gone)}"])
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs()
        container.commit(repository=tag, tag="before")
    finally:
        container.remove(force=True)
    yield f"{tag}:before"
    replica.client.images.remove(f"{tag}:before")


def test_acceptance_1_swap_back_and_a_downgrade_that_would_lose_rows(site: Site, older: str) -> None:
    replica = site.production.replica
    before, policies = database(replica), services(site)
    recovered = site.recover()
    assert recovered.code == 0, recovered.text
    for title in ("Ein neues Lied", "Noch eines"):
        assert replica.web.request("/api/v1/songs", data={"title": title, "lyrics": "la"}).status == 201
    migrated = database(replica)

    lossy = back(site, rollback_way="downgrade", rollback_image=older)
    refused = back(site)
    untouched = database(replica)
    done = back(site, rollback_accept_written=2)

    assert lossy.code == 2
    # What the rehearsal of the recovery has found, on the data of the incident.
    assert f"{ENCODED}: " in words(lossy)
    assert "lyric_parsing_rules" in words(lossy)
    assert "rollback_accept_loss" in words(lossy)
    assert "- swap_back (proved)" in words(lossy)
    assert refused.code == 2
    assert "songs: 2 rows written since, 2 more than then." in words(refused)
    assert "-e rollback_accept_written=2" in words(refused)
    for part in SAME:
        assert untouched[part] == migrated[part], part
    assert done.code == 0, done.text
    after = database(replica)
    for part in SAME:
        assert after[part] == before[part], part
    assert services(site) == policies
    (export,) = (site.target / "prod" / "backups").glob("*.written.jsonl")
    rows = [json.loads(line)["row"]["title"] for line in export.read_text().splitlines()]
    assert sorted(rows) == ["Ein neues Lied", "Noch eines"]
    (replaced,) = (name for name in site.production.beside() if "_replaced_" in name)
    assert kept(replica, replaced)["rows"] == migrated["rows"]


@pytest.mark.thorough
def test_acceptance_1_a_downgrade_that_a_rehearsal_has_proved_lossless(site: Site, older: str) -> None:
    replica = site.production.replica
    ask(replica, PLAIN)
    before, policies = database(replica), services(site)
    recovered = site.recover()
    assert recovered.code == 0, recovered.text
    assert replica.query("select version_num from alembic_version") == HEAD

    unknown = back(site, "--check", rollback_way="downgrade", rollback_image="no-such-image:1")
    running = back(site, "--check", rollback_way="downgrade")
    done = back(site, rollback_way="downgrade", rollback_image=older)

    assert "There is no image no-such-image:1 on this host" in words(unknown)
    assert running.code == 2
    assert f"The code that will run afterwards knows more than {BROKEN}" in words(running)
    assert done.code == 0, done.text
    assert "Gone back: downgrade" in words(done)
    after = database(replica)
    for part in SAME:
        assert after[part] == before[part], part
    assert services(site) == policies


@pytest.mark.thorough
def test_acceptance_1_the_backup_is_restored(site: Site) -> None:
    replica = site.production.replica
    before, policies = database(replica), services(site)
    recovered = site.recover("-e", "recovery_rehearse=false")
    assert recovered.code == 0, recovered.text
    assert replica.web.request("/api/v1/songs", data={"title": "Ein neues Lied", "lyrics": "la"}).status == 201
    (manifest,) = (site.target / "prod" / "backups").glob("*.manifest.json")
    run_id = manifest.name.partition("_")[2].removesuffix(".manifest.json")

    done = back(site, rollback_way="restore", rollback_accept_restore=run_id)

    assert done.code == 0, done.text
    after = database(replica)
    # A dump makes objects in an order of its own: the schema is the same, line by line in another order.
    assert sorted(after["schema"]) == sorted(before["schema"])
    for part in ("version", "rows", "content", "sequences"):
        assert after[part] == before[part], part
    counts = json.loads(manifest.read_text())["row_counts"]
    assert {name.removeprefix("public."): count for name, count in counts.items()} == after["rows"]
    assert services(site) == policies
    again = back(site)
    assert again.code == 0, again.text
    assert "changed=0" in words(again)
    behaviour.page_is_served(replica.web)
