"""After `recover.yml --check` on the broken system: everything is as it was, and it is still broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from replica.docker import DockerReplica
from tests.replica import behaviour


@pytest.mark.parametrize(
    "part",
    [
        "version",
        "databases",
        "schema",
        "globals",
        "rows",
        "content",
        "sequences",
        "writes",
        "containers",
        "changed_files",
        "one_offs",
        "files",
    ],
)
def test_nothing_has_changed(part: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    assert now[part] == before[part]


def test_every_part_is_compared(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert now.keys() == before.keys()
    assert len(before) == 12
    assert before["rows"]["songs"] >= 10_000


def test_there_is_no_backup(server: Host, server_directory: str, controller_directory: Path) -> None:
    assert server.check_output("find %s -mindepth 1", server_directory) == ""
    assert not controller_directory.exists()


def test_users_still_see_what_they_saw(replica: DockerReplica) -> None:
    behaviour.is_broken(replica.web)
