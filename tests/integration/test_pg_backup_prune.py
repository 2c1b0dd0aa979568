"""pg_backup_prune: four steps on real backups; decided by manifests, never by names or times of files."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replica.application import State
from replica.databases import DatabaseFactory
from tests.support.evidence import files
from tests.support.modules import run_module
from tests.support.stacks import database_options

NOW = datetime.datetime.now(datetime.UTC)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def template(databases: DatabaseFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one real backup of a database called aiproxy_kept."""
    directory = tmp_path_factory.mktemp("template") / "backups"
    database = databases.create(State.UNTOUCHED, "aiproxy_kept")
    place = {"database": database_options(database), "directory": str(directory), "run_id": "template"}
    done = run_module("pg_backup", place)
    database.drop()
    assert done["changed"] is True
    return directory


@pytest.fixture
def make(template: Path, tmp_path: Path) -> Make:
    """Put a copy of the backup into a directory, under another run id and as old as it should be, in days."""
    directory = tmp_path / "backups"
    directory.mkdir(mode=0o700)

    def copy(run_id: str, days: float, *, name: str = "aiproxy_kept") -> Path:
        manifest = json.loads(next(template.glob("*.manifest.json")).read_text())
        for part, suffix in (("file", "dump"), ("globals", "globals.sql")):
            target = directory / f"{name}_{run_id}.{suffix}"
            shutil.copy(template / manifest[part]["name"], target)
            manifest[part]["name"] = target.name
        manifest["run_id"] = run_id
        manifest["created_at"] = (NOW - datetime.timedelta(days=days)).isoformat()
        manifest["database"]["name"] = name
        path = directory / f"{name}_{run_id}.manifest.json"
        path.write_text(json.dumps(manifest))
        return path

    return copy


def prune(manifest: Path, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module on the directory of a manifest."""
    place = {"directory": str(manifest.parent), "database_name": "aiproxy_kept", "keep": 2, "keep_days": 7}
    result = run_module("pg_backup_prune", {**place, **more}, check=check)
    assert "failed" not in result
    return result


def names(*manifests: Path) -> list[str]:
    return [str(path) for path in manifests]


def with_parts(*manifests: Path) -> set[str]:
    """The files of backups."""
    return {
        str(path.with_name(path.name.replace("manifest.json", suffix)))
        for path in manifests
        for suffix in ("manifest.json", "dump", "globals.sql")
    }


def test_check_real_check_real(make: Make) -> None:
    ages = {"d": 30, "b": 20, "c": 10, "a": 1}  # the names are not in the order of age
    backups = {run_id: make(run_id, days) for run_id, days in ages.items()}
    directory = backups["a"].parent
    before = files(directory)

    planned = prune(backups["a"], check=True)
    assert planned["changed"] is True
    assert planned["removed"] == names(backups["b"], backups["d"])
    assert planned["kept"] == names(backups["a"], backups["c"])
    assert files(directory) == before

    done = prune(backups["a"])
    assert (done["changed"], done["removed"], done["kept"]) == (True, planned["removed"], planned["kept"])
    left = files(directory)
    assert set(left) == {str(directory), *with_parts(backups["a"], backups["c"])}
    assert {path: seen for path, seen in left.items() if path != str(directory)}.items() <= before.items()

    for check in (True, False):
        again = prune(backups["a"], check=check)
        assert (again["changed"], again["removed"], again["kept"]) == (False, [], done["kept"])
    assert files(directory) == left


def test_the_times_of_files_say_nothing(make: Make) -> None:
    """A copy or a restored home gives old files new times; the manifest knows."""
    old, older, oldest = make("1", 10), make("2", 20), make("3", 30)
    os.utime(old, (0, 0))
    os.utime(oldest)
    assert prune(old)["removed"] == names(oldest)
    assert older.exists()


def test_young_ones_stay_however_many(make: Make) -> None:
    young = [make(str(number), number / 10) for number in range(5)]
    assert prune(young[0])["changed"] is False
    assert all(path.exists() for path in young)


def test_the_newest_good_ones_stay_however_old(make: Make) -> None:
    ancient = [make(str(number), 1000 + number) for number in range(3)]
    assert prune(ancient[0], keep=0)["kept"] == names(ancient[0])
    assert prune(ancient[0], keep=0)["changed"] is False, "the last one is never removed"
    assert ancient[0].exists()


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_a_damaged_one_does_not_count_as_good_and_is_left_for_a_person(make: Make, damage: str) -> None:
    damaged, newest, next_, last = make("0", 1), make("1", 10), make("2", 20), make("3", 30)
    dump = damaged.with_name(damaged.name.replace("manifest.json", "dump"))
    if damage == "shorter":
        os.truncate(dump, dump.stat().st_size - 1)
    else:
        dump.unlink()
    done = prune(newest)
    assert done["removed"] == names(last)
    assert done["kept"] == names(damaged, newest, next_)
    assert len(done["problems"]) == 1
    assert str(dump) in done["problems"][0]
    assert damaged.exists()


def test_other_databases_and_other_files_are_left_alone(make: Make) -> None:
    others = [make(str(number), 100 + number, name="aiproxy") for number in range(4)]
    mine = [make(str(number), 100 + number) for number in range(4)]
    directory = mine[0].parent
    strangers = [directory / "notes.txt", directory / "aiproxy_kept_x.dump", directory / "x.manifest.json"]
    for path in strangers:
        path.write_text("{}")
    (directory / "broken.manifest.json").write_text("no JSON")
    assert prune(mine[0])["removed"] == names(*mine[2:])
    assert all(path.exists() for path in [*others, *strangers, directory / "broken.manifest.json"])


def test_a_manifest_cannot_name_files_elsewhere(make: Make, tmp_path: Path) -> None:
    """What is removed is beside the manifest, whatever is written in it."""
    victim = tmp_path / "victim.dump"
    newest, old = make("1", 10), make("2", 20)
    manifest = json.loads(old.read_text())
    victim.write_bytes(b"x" * manifest["file"]["size_bytes"])
    manifest["file"]["name"] = "../victim.dump"
    old.write_text(json.dumps(manifest))
    run_module("pg_backup_prune", {"directory": str(old.parent), "database_name": "aiproxy_kept", "keep": 1})
    assert victim.exists()
    assert newest.exists()


def test_a_directory_that_is_not_there_holds_none(tmp_path: Path) -> None:
    done = prune(tmp_path / "none" / "x.manifest.json")
    assert (done["changed"], done["removed"], done["kept"]) == (False, [], [])
    assert not (tmp_path / "none").exists()
