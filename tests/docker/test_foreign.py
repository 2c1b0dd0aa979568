"""Dumps from elsewhere, and what was written since, where the database is in a container."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replica.application import BROKEN
from tests.docker.observation import one_offs
from tests.docker.production import BESIDE, Production
from tests.support.modules import run_module

pytestmark = [pytest.mark.docker, BESIDE]

INTO = "aiproxy_restored_20251021t031500z_7f3a"


@pytest.fixture
def into(production: Production) -> Iterator[str]:
    """The name of a new database."""
    yield INTO
    production.replica.query(f"drop database if exists {INTO} with (force)")


def dump(production: Production, path: Path, *options: str) -> Path:
    """Dump in the container, as somebody else would who knows how to."""
    container = production.options()["database"]["container"]
    argv = ["docker", "exec", container, "pg_dump", "-U", "aiuser", *options, "aiproxy"]
    with path.open("wb") as file:
        subprocess.run(argv, stdout=file, check=True, timeout=60)
    return path


def databases(production: Production) -> str:
    return production.replica.query("select string_agg(datname, ',' order by datname) from pg_database")


@pytest.mark.parametrize("form", ["custom", "plain", "zstd"])
def test_pg_restore_foreign(production: Production, tmp_path: Path, into: str, form: str) -> None:
    path = dump(production, tmp_path / "backup", *(["--format=custom"] if form == "custom" else []))
    if form == "zstd":
        subprocess.run(["zstd", "-q", "--rm", path, "-o", tmp_path / "packed"], check=True)
        path = tmp_path / "packed"
    options = {
        "database": production.options()["database"],
        "path": str(path),
        "into": into,
        "plain_sql": "execute",
        "work_directory": str(tmp_path / "work"),
        "run_id": production.run_id("foreign"),
    }
    there = databases(production)
    would = run_module("pg_restore_foreign", options, check=True)
    assert would["changed"] is True, would
    assert (databases(production), list(tmp_path.iterdir())) == (there, [path])

    done = run_module("pg_restore_foreign", options)
    assert done["changed"] is True, done
    assert (done["revisions"], done["rows"]["public.songs"]) == ([BROKEN], 200)
    assert done["dumped_from"].startswith("15.")
    count = ["psql", "-U", "aiuser", "-d", into, "-Atc", "select count(*) from songs"]
    assert production.replica.execute("postgres", count).stdout.strip() == "200"

    again = run_module("pg_restore_foreign", options)
    assert f"There is a database {into} already" in again["msg"]
    assert one_offs(production.replica) == []


def test_a_terminal(production: Production, tmp_path: Path, into: str) -> None:
    """Row 1, by a real terminal: docker exec -t, as the first plan had it."""
    container = production.options()["database"]["container"]
    there = databases(production)
    for form in ("plain", "custom"):
        path = tmp_path / form
        argv = ["docker", "exec", "-t", container, "pg_dump", "-U", "aiuser", f"--format={form}", "aiproxy"]
        with path.open("wb") as file:
            subprocess.run(argv, stdout=file, check=True, timeout=60)
        options: dict[str, Any] = {"database": production.options()["database"], "path": str(path), "into": into}
        result = run_module("pg_restore_foreign", {**options, "plain_sql": "execute"})
        assert "written through a terminal" in result["msg"]
    assert databases(production) == there


def test_written_since(production: Production, tmp_path: Path) -> None:
    xid = production.replica.query("select pg_current_xact_id()")
    options = {"database": production.options()["database"], "since_xid": xid}
    assert run_module("pg_written", options)["total_written"] == 0
    production.replica.query("update songs set title = title where id in (select id from songs limit 3)")
    seen = run_module("pg_written", options)
    assert seen["sentences"] == ["songs: 3 rows written since."]
    path = tmp_path / "state" / "written.jsonl"
    done = run_module("pg_export", {**options, "path": str(path)})
    assert (done["rows"], done["tables"]) == (3, {"public.songs": 3})
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {line["table"] for line in lines} == {"public.songs"}
    assert all(line["row"]["id"] for line in lines)
