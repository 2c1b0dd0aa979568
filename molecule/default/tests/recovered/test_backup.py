"""The files of the backup, on the server and on this machine."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from replica.application import BROKEN
from tests.docker.observation import RUN_FILES

STAGES = ("locked", "backed_up", "fenced", "cloned", "migrated", "swapped", "starting", "done")


@pytest.fixture
def copies(controller_directory: Path) -> list[Path]:
    """The files on this machine, by name."""
    return sorted(path for path in controller_directory.rglob("*") if path.is_file())


@pytest.fixture
def manifest(copies: list[Path]) -> dict[str, Any]:
    """The manifest."""
    (path,) = (path for path in copies if path.name.endswith(".manifest.json"))
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def test_there_is_exactly_one(copies: list[Path]) -> None:
    """Two runs and two rehearsals: only the run that migrated has made one."""
    suffixes = [path.name.partition(".")[2] for path in copies]
    assert suffixes == ["dump", "globals.sql", "manifest.json"]
    assert len({path.name.partition(".")[0] for path in copies}) == 1


def test_copies_are_private(copies: list[Path]) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in copies} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in copies} == {0o700}


def test_the_server_has_the_same_private_files(server: Host, server_directory: str, copies: list[Path]) -> None:
    directory = server.file(f"{server_directory}/prod/backups")
    assert (directory.mode, directory.user) == (0o700, "deploy")
    assert sorted(directory.listdir()) == [path.name for path in copies]
    for path in copies:
        file = server.file(f"{directory.path}/{path.name}")
        assert (file.mode, file.user) == (0o600, "deploy")
        assert file.sha256sum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_describes_what_was_there_before(
    manifest: dict[str, Any], copies: list[Path], before: dict[str, Any]
) -> None:
    by_name = {path.name: path.read_bytes() for path in copies}
    for part in (manifest["file"], manifest["globals"]):
        content = by_name[part["name"]]
        assert (part["size_bytes"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest["revisions"] == [BROKEN]
    assert manifest["row_counts"] == {f"public.{table}": count for table, count in before["rows"].items()}
    assert manifest["database"]["name"] == "aiproxy"
    assert list(manifest["images"].values()) == [before["containers"]["postgres"]["image"]]


def test_no_role_password_is_in_it(copies: list[Path]) -> None:
    (path,) = (path for path in copies if path.name.endswith(".globals.sql"))
    text = path.read_text()
    assert "CREATE ROLE aiuser" in text
    assert "SCRAM-SHA-256" not in text


@pytest.fixture
def run_directory(server: Host, server_directory: str) -> str:
    """Where the run wrote down what it did; the others, which changed nothing, wrote nothing."""
    directory = server.file(f"{server_directory}/prod/runs")
    assert (directory.mode, directory.user) == (0o700, "deploy")
    (name,) = directory.listdir()
    return f"{directory.path}/{name}"


def test_what_the_run_wrote_down_is_private(server: Host, run_directory: str) -> None:
    directory = server.file(run_directory)
    assert (directory.mode, directory.user) == (0o700, "deploy")
    assert set(directory.listdir()) == {*RUN_FILES, "alive"}
    assert server.file(f"{run_directory}/alive").listdir() == []
    for name in RUN_FILES:
        file = server.file(f"{run_directory}/{name}")
        assert (file.mode, file.user) == (0o600, "deploy"), name


@pytest.mark.parametrize("name", ["rehearsal.jsonl", "journal.jsonl"])
def test_the_journals_tell_of_both_revisions(server: Host, run_directory: str, name: str) -> None:
    """First of the rehearsal's copy, then of the clone."""
    journal = server.file(f"{run_directory}/{name}")
    proved = [line for line in map(json.loads, journal.content_string.splitlines()) if line["event"] == "proved"]
    assert [line["revision"] for line in proved] == ["234ea0f4b6c3", "d4641a241b98"]


def test_the_record_says_that_the_run_has_ended_well(server: Host, run_directory: str) -> None:
    record = json.loads(server.file(f"{run_directory}/record.json").content_string)
    assert record["stage"] == "done"
    stages = [entry["stage"] for entry in record["stages"]]
    assert [stages.index(name) for name in STAGES] == sorted(stages.index(name) for name in STAGES)
    page = server.file(f"{run_directory}/BREAK-GLASS.txt").content_string
    assert "The run has ended well." in page
