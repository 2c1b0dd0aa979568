"""Private directories and files, durable names, environment files, and which backups may go."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from ansible.module_utils.alembic_recovery import files
from ansible.module_utils.alembic_recovery.errors import StackError
from ansible.module_utils.alembic_recovery.retention import Kept, removable
from ansible.module_utils.alembic_recovery.runtime import read_environment_file


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_private_directory_and_file_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.private_directory(str(tmp_path / "a" / "b"))
        files.open_private(str(tmp_path / "a" / "b" / "f")).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "b" / "f").stat().st_mode) == 0o600


def test_a_directory_that_is_open_to_others_is_refused_with_the_command_to_close_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(StackError, match=f"mode 0750.*chmod 0700 {tmp_path}"):
        files.private_directory(str(tmp_path))


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StackError, match="links are not followed"):
        files.private_directory(str(tmp_path / "link"))


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    with pytest.raises(StackError, match="nothing is overwritten"):
        files.settle(str(tmp_path / "new"), str(tmp_path / "old"))
    with pytest.raises(StackError, match="File exists"):
        files.open_private(str(tmp_path / "old"))
    assert (tmp_path / "old").read_text() == "old"


def test_free_bytes_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    assert files.free_bytes(str(tmp_path / "a" / "b")) > 0


def test_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# comment\n\nA=1\nexport B='x y'\nC=\"a=b#c\"\n; more\nD=\n E = spaced \n")
    assert read_environment_file(str(path)) == {"A": "1", "B": "x y", "C": "a=b#c", "D": "", "E": "spaced"}


def test_environment_file_names_the_line_and_never_its_text(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("A=1\ns3cret without a name\n")
    with pytest.raises(StackError) as caught:
        read_environment_file(str(path))
    assert "line 2" in caught.value.message
    assert "s3cret" not in caught.value.message


NOW = datetime.datetime(2025, 10, 21, tzinfo=datetime.UTC)


def kept(age_days: int, problem: str | None = None) -> Kept:
    return Kept(f"/b/{age_days}.manifest.json", NOW - datetime.timedelta(days=age_days), "aiproxy", problem)


@pytest.mark.parametrize(
    ("backups", "keep", "gone"),
    [
        pytest.param([kept(1), kept(8), kept(9), kept(10)], 3, [10], id="old, and not among the newest three"),
        pytest.param([kept(1), kept(2), kept(3), kept(4)], 1, [], id="young ones stay"),
        pytest.param([kept(30), kept(40)], 3, [], id="the newest stay however old"),
        pytest.param([kept(30), kept(40)], 0, [40], id="one good backup always stays"),
        pytest.param(
            [kept(1, "broken"), kept(2, "broken"), kept(30), kept(40)], 1, [40], id="broken ones do not count"
        ),
        pytest.param([kept(30), kept(40, "broken")], 1, [], id="broken ones are left for a person"),
        pytest.param([], 3, [], id="none"),
    ],
)
def test_removable(backups: list[Kept], keep: int, gone: list[int]) -> None:
    found = removable(list(reversed(backups)), keep=keep, keep_days=7, now=NOW)
    assert [item.path for item in found] == [f"/b/{age}.manifest.json" for age in gone]
