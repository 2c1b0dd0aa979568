"""pg_restore beside a database in a container: proved, or dropped with its reason, and never a container left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replica.application import DATABASE
from tests.docker.observation import ask, one_offs
from tests.docker.production import BESIDE, MARKER, Production
from tests.docker.watch import watch
from tests.support.modules import run_module

pytestmark = [pytest.mark.docker, BESIDE]
INTO = f"{DATABASE}_scratch_20251021t031500z_7f3a"
# A restore has an empty search_path: what the inner function calls is not found then.
NOT_TO_BE_RESTORED = (
    "create function plain(text) returns text language sql immutable as 'select lower($1)'",
    "create function indexed(text) returns text language plpgsql immutable as 'begin return plain($1); end'",
    "create index ix_indexed on songs (indexed(title))",
)


@pytest.fixture
def options(production: Production) -> Iterator[dict[str, Any]]:
    """The options that both modules share; what is restored goes with the test."""
    database = production.options()["database"]
    yield {"database": database, "run_id": production.run_id("restore")}
    run_module("pg_clone", {"database": database, "clone": INTO, "state": "absent"})


def restored(production: Production) -> list[str]:
    listed = ask(production.replica, "select datname from pg_database order by 1", "postgres")
    return [name for name in listed.splitlines() if name == INTO]


def test_row_12_a_dump_that_cannot_be_restored_leaves_nothing(
    production: Production, options: dict[str, Any], tmp_path: Path
) -> None:
    place = {**options, "directory": str(tmp_path / "backups")}
    good = run_module("pg_backup", place)
    for statement in NOT_TO_BE_RESTORED:
        ask(production.replica, statement)
    bad = run_module("pg_backup", {**place, "run_id": production.run_id("bad")})
    before = production.observe(tmp_path)

    planned = run_module("pg_restore", {**options, "manifest": bad["manifest_file"], "into": INTO}, check=True)
    assert planned.get("changed") is True, planned
    with watch(production.replica, MARKER) as started:
        failed = run_module("pg_restore", {**options, "manifest": bad["manifest_file"], "into": INTO})
    assert "pg_restore ended with exit code 1" in failed["msg"], failed
    assert "function plain(text) does not exist" in failed["msg"]
    assert failed["msg"].endswith(f"{INTO} was dropped again; nothing else was touched.")
    assert started.secrets == set()
    assert (restored(production), one_offs(production.replica)) == ([], [])
    assert production.observe(tmp_path) == before

    done = run_module("pg_restore", {**options, "manifest": good["manifest_file"], "into": INTO})
    assert done.get("changed") is True, done
    assert {"structure", "row_counts", "content", "sequences", "revisions", "properties"} <= set(done["proved"])
    assert (restored(production), one_offs(production.replica)) == ([INTO], [])
    assert done["row_counts"]["public.songs"] == 200
    counted = "select count(*), md5(string_agg(s::text, ',' order by s.id)) from songs s"
    assert ask(production.replica, counted, INTO) == ask(production.replica, counted)
