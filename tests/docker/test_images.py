"""A database that is ahead of its code, and the local images: which has the code is told without running any."""

from __future__ import annotations

import datetime
import io
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.alembic_recovery import images as local_images
from ansible.module_utils.alembic_recovery.docker_cli import RUN_LABEL, DockerCli

from replica.engine import containers
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
    # Another test may give it a name of its own meanwhile.
    own_tag = next(tag for tag in own.tags if tag.startswith("alembic-recovery/"))
    repository = own_tag.rpartition(":")[0]
    names = {"newer": f"{repository}:{made.replica.prefix}-newer", "other": f"{made.replica.prefix}/other:1"}
    for kind, name in names.items():
        text = REVISION if kind == "newer" else REVISION.replace(NEXT, "0123456789ab")
        files = {"Dockerfile": f"FROM {own_tag}\nCOPY next.py /app/src/alembic/versions/\n", "next.py": text}
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
    mine = f"{RUN_LABEL}={run_id}"
    return [str(one.name) for one in containers(production.replica.client, label=mine)]


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


def test_ahead_where_the_images_cannot_be_listed(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict does not depend on it."""
    wrapper = tmp_path / "docker"
    wrapper.write_text(f'#!/bin/sh\n[ "$1 $2" != "image ls" ] || {{ echo no list today >&2; exit 1; }}\n'
                       f'exec {shutil.which("docker")} "$@"\n')  # fmt: skip
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    ask(production.replica, "update alembic_version set version_num = 'nobodys'")
    seen = run_module("alembic_status", production.options(run_id=production.run_id("unlisted")))
    assert seen["verdict"] == "AHEAD"
    assert "The local images could not be looked through for it: " in seen["next_step"]
    assert "no list today" in seen["next_step"]


def test_what_a_killed_look_has_left_is_removed_once_it_is_old(production: Production) -> None:
    """And nothing else: no container of another purpose, none that was started, none that is not ours."""
    client, image = production.replica.client, production.replica.container("aiproxysrv").image
    run_id = production.run_id("killed")
    prefix, label = f"alembic-recovery-{run_id}", {RUN_LABEL: run_id}
    made = {
        "left": client.containers.create(image, ["/bin/true"], name=f"{prefix}-search", labels=label),
        "of another purpose": client.containers.create(image, ["/bin/true"], name=f"{prefix}-look", labels=label),
        "not ours": client.containers.create(image, ["/bin/true"], name=f"{prefix}-their-search"),
        "started": client.containers.create(
            image, entrypoint=["/bin/true"], name=f"{prefix}-ended-search", labels=label
        ),
    }
    try:
        made["started"].start()
        made["started"].wait()
        names = {one.name for one in made.values()}

        def there() -> set[str | None]:
            return {one.name for one in containers(client)} & names

        local_images.remove_left_behind(DockerCli(), datetime.timedelta(hours=1))
        assert there() == names
        time.sleep(1.1)
        local_images.remove_left_behind(DockerCli(), datetime.timedelta(0))
        assert there() == names - {made["left"].name}
    finally:
        for kind, one in made.items():
            if kind != "left" or one.name in there():
                one.remove(force=True)
