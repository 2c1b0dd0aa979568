"""A database that is ahead of its code, and the local images: which has the code is told without running any."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator

import pytest
from ansible.module_utils.alembic_recovery.docker_cli import RUN_LABEL

from tests.docker.observation import ask
from tests.docker.production import BESIDE, Production
from tests.support.modules import run_module

pytestmark = [pytest.mark.docker, BESIDE]

NEXT = "9f8e7d6c5b4a"
REVISION = f'''"""After all others."""

revision: str = "{NEXT}"
down_revision = "d4641a241b98"


def upgrade() -> None:
    pass
'''


@pytest.fixture(scope="module")
def images(made: Production) -> Iterator[dict[str, str]]:
    """Two images made from the application's own: `newer`, of the same repository, with a revision more; `other`."""
    own = made.replica.container("aiproxysrv").image
    repository = own.tags[0].rpartition(":")[0]
    names = {"newer": f"{repository}:{made.replica.prefix}-newer", "other": f"{made.replica.prefix}/other:1"}
    for kind, name in names.items():
        text = REVISION if kind == "newer" else REVISION.replace(NEXT, "0123456789ab")
        files = {"Dockerfile": f"FROM {own.tags[0]}\nCOPY next.py /app/src/alembic/versions/\n", "next.py": text}
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content.encode())
                archive.addfile(member, io.BytesIO(content.encode()))
        context.seek(0)
        made.replica.client.images.build(fileobj=context, custom_context=True, tag=name, rm=True)
    yield names
    for name in names.values():
        made.replica.client.images.remove(name, force=True)


def left_by(production: Production, run_id: str) -> list[str]:
    """The containers that a run has made and not removed."""
    mine = {"label": f"{RUN_LABEL}={run_id}"}
    return [str(one.name) for one in production.replica.client.containers.list(all=True, filters=mine)]


def test_ahead_names_the_local_image_that_has_the_code(production: Production, images: dict[str, str]) -> None:
    replica = production.replica
    ask(replica, f"update alembic_version set version_num = '{NEXT}'")
    options = production.options(run_id=production.run_id("ahead"), limit="prod")
    since = int(time.time())
    seen = run_module("alembic_status", options)
    assert seen["verdict"] == "AHEAD"
    assert f"Local image {images['newer']} has it: deploy that one" in seen["next_step"]
    assert images["other"] not in seen["next_step"]
    events = replica.client.events(since=since, until=int(time.time()) + 1, decode=True, filters={"type": "container"})
    searching = f"alembic-recovery-{options['run_id']}-search"
    done = {event["Action"] for event in events if event["Actor"]["Attributes"]["name"] == searching}
    assert {"create", "destroy"} <= done
    assert "start" not in done
    assert left_by(production, options["run_id"]) == []

    options["application"]["image"] = images["newer"]
    assert run_module("alembic_status", options)["heads"] == [NEXT]


def test_ahead_where_no_local_image_has_the_code(production: Production, images: dict[str, str]) -> None:
    ask(production.replica, "update alembic_version set version_num = 'nobodys'")
    options = production.options(run_id=production.run_id("nobodys"))
    seen = run_module("alembic_status", options)
    assert seen["verdict"] == "AHEAD"
    assert "No local image has it in the same place" in seen["next_step"]
    assert left_by(production, options["run_id"]) == []
