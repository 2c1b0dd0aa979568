"""pg_export: the rows that were written since, in a private file, and never a part of one."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from replica.databases import AppDatabase
from tests.support.evidence import Witness, files, mode
from tests.support.modules import run_module
from tests.support.writes import EXPECTED, ODD, prepare, write


@pytest.fixture(params=["psycopg", "psql"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How SQL is asked."""
    if request.param == "psql":
        monkeypatch.setitem(sys.modules, "psycopg", None)
    return str(request.param)


@pytest.fixture
def swapped(broken: AppDatabase, witness: Witness) -> dict[str, Any]:
    """The options for what was written since now."""
    return prepare(broken, witness)


@pytest.fixture
def options(swapped: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "state" / "written.jsonl"
    return {"database": swapped["database"], "since_xid": swapped["since_xid"], "path": str(path)}


def test_check_real_check_real(options: dict[str, Any], witness: Witness, tmp_path: Path) -> None:
    write(witness)
    before = witness.look()
    expected = {name: row[0] for name, row in EXPECTED.items()}

    would = run_module("pg_export", options, check=True)
    assert (would["changed"], would["tables"], would["rows"]) == (True, expected, 9)
    assert "sha256" not in would
    assert not (tmp_path / "state").exists()

    done = run_module("pg_export", options)
    assert (done["changed"], done["tables"], done["rows"]) == (True, expected, 9)
    path = Path(done["path"])
    assert (done["sha256"], done["size_bytes"]) == (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        path.stat().st_size,
    )
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert "slash" not in json.dumps(done), "no data in the result"
    left = files(tmp_path)

    for check in (True, False):
        again = run_module("pg_export", options, check=check)
        assert again["failed"] is True
        assert "is there already" in again["msg"]
    assert files(tmp_path) == left
    assert witness.look() == before


@pytest.mark.parametrize("way", ["psycopg", "psql"], indirect=True)
def test_row_52_each_row_as_it_is(options: dict[str, Any], witness: Witness, way: str) -> None:
    rows = witness.query("select to_jsonb(s) from songs s order by id limit 3")
    witness.execute(
        "update songs set title = title where id in (select id from songs order by id limit 3)",
        'insert into "Odd ""name" values (1, E\'' + ODD.replace("\\", "\\\\").replace("'", "''") + "')",
    )
    done = run_module("pg_export", options)
    lines = [json.loads(line) for line in Path(done["path"]).read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["row"]["note"] for line in lines if line["table"] == 'public.Odd "name'] == [ODD]
    exported = sorted((line["row"] for line in lines if line["table"] == "public.songs"), key=lambda row: row["id"])
    assert exported == [row[0] for row in rows]


def test_no_half_file(options: dict[str, Any], witness: Witness, tmp_path: Path) -> None:
    witness.execute("alter table no_key enable row level security", "update songs set title = title")
    result = run_module("pg_export", options)
    assert result["failed"] is True
    assert list((tmp_path / "state").iterdir()) == []


def test_an_open_directory(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    result = run_module("pg_export", {**options, "path": str(tmp_path / "open" / "x")}, check=True)
    assert "is open to others" in result["msg"]
