"""Dumps that pg_dump itself has made, and what a terminal, a cut and a bad copy make of them."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.alembic_recovery import foreign_dump

from replica.application import BROKEN
from replica.databases import AppDatabase
from replica.postgres import installation
from tests.support.dumps import counts, dumper
from tests.support.evidence import Witness


@pytest.fixture
def dump(broken: AppDatabase, tmp_path: Path) -> Callable[..., Path]:
    """Dump the database, with awkward things in it, to a file whose name says nothing."""
    return dumper(broken, tmp_path)


@pytest.mark.parametrize(
    "options",
    [(), ("--inserts",), ("--column-inserts", "--rows-per-insert=7"), ("--data-only",), ("--clean", "--if-exists")],
    ids=lambda options: " ".join(options) or "copy",
)
def test_a_plain_dump_says_what_is_in_it(dump: Callable[..., Path], witness: Witness, options: tuple[str, ...]) -> None:
    found = foreign_dump.describe(str(dump(*options)))
    assert (found.kind, found.compression, found.problems) == ("plain", "", [])
    expected = counts(witness)
    if "--inserts" in options or "--column-inserts" in options:
        expected = {name: count for name, count in expected.items() if count}
    assert (found.rows, found.uncounted, found.revisions) == (expected, [], [BROKEN])
    assert str(found.dumped_from).startswith("16.")
    assert str(found.dumped_by).startswith("16.")


def test_by_the_root_of_its_partitions(dump: Callable[..., Path], witness: Witness) -> None:
    found = foreign_dump.describe(str(dump("--load-via-partition-root")))
    assert found.rows == counts(witness, leaves=False)


@pytest.mark.parametrize(
    ("options", "kind", "compression"),
    [
        (("--format=custom",), "custom", ""),
        (("--format=custom", "--compress=0"), "custom", ""),
        (("--format=directory",), "directory", ""),
        (("--format=tar",), "tar", ""),
        (("--compress=6",), "plain", "gzip"),
        (("--compress=lz4",), "unknown", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_the_kinds(dump: Callable[..., Path], options: tuple[str, ...], kind: str, compression: str) -> None:
    if "lz4" in options[0] and not _can(options):
        pytest.skip("this pg_dump has no lz4")
    found = foreign_dump.describe(str(dump(*options)))
    assert (found.kind, found.compression) == (kind, compression)
    assert bool(found.problems) == (kind == "unknown")


def _can(options: tuple[str, ...]) -> bool:
    done = subprocess.run(
        [installation(16) / "bin" / "pg_dump", *options, "--file=/dev/null", "host=/none"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "compression" not in done.stderr


@pytest.mark.parametrize("options", [(), ("--format=custom",), ("--format=custom", "--compress=0"), ("--format=tar",)])
def test_row_01_through_a_terminal(dump: Callable[..., Path], options: tuple[str, ...]) -> None:
    """The line discipline of a terminal makes CR LF of each LF."""
    path = dump(*options)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert any("written through a terminal" in problem for problem in foreign_dump.describe(str(path)).problems)


def test_row_01_a_directory_in_text_mode(dump: Callable[..., Path]) -> None:
    contents = dump("--format=directory") / "toc.dat"
    contents.write_bytes(contents.read_bytes().replace(b"\n", b"\r\n"))
    assert "written through a terminal" in foreign_dump.describe(str(contents.parent)).problems[0]


def test_row_01_gzip_through_a_terminal(dump: Callable[..., Path]) -> None:
    path = dump("--compress=6")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert "written through a terminal" in foreign_dump.describe(str(path)).problems[0]
    path.write_bytes(gzip.compress(dump().read_bytes().replace(b"\n", b"\r\n")))
    assert "written through a terminal" in foreign_dump.describe(str(path)).problems[0]


def test_row_02_a_warning_in_front(dump: Callable[..., Path]) -> None:
    path = dump()
    path.write_bytes(
        b'WARNING:  database "x" has a collation version mismatch\nDETAIL:  x\nHINT:  y\n' + path.read_bytes()
    )
    assert "messages of a program" in foreign_dump.describe(str(path)).problems[0]


def test_row_03_the_error_of_a_dump_that_failed(broken: AppDatabase, tmp_path: Path) -> None:
    argv = [broken.server.bin_dir / "pg_dump", "--verbose", broken.server.conninfo("there_is_none")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    path = tmp_path / "backup"
    path.write_bytes(done.stdout)
    found = foreign_dump.describe(str(path))
    assert found.kind == "text"
    assert "the message of a program instead of a dump" in found.problems[0]


def test_both_streams_in_one_file(broken: AppDatabase, dump: Callable[..., Path]) -> None:
    path = dump()
    with path.open("wb") as file:
        argv = [broken.server.bin_dir / "pg_dump", "--verbose", broken.server.conninfo(broken.name)]
        subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT, timeout=60, check=True)
    assert any("messages of a program" in problem for problem in foreign_dump.describe(str(path)).problems)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("options", [(), ("--inserts",), ("--compress=6",)], ids=["copy", "inserts", "gzip"])
def test_row_08_cut_off(dump: Callable[..., Path], options: tuple[str, ...], part: float) -> None:
    path = dump(*options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    problems = " ".join(foreign_dump.describe(str(path)).problems)
    assert "cut off" in problems or "ends too early" in problems


def test_utf_16(dump: Callable[..., Path]) -> None:
    path = dump()
    path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode("utf-16"))
    assert "the mark of UTF-16" in foreign_dump.describe(str(path)).problems[0]


def test_with_create_and_of_all(broken: AppDatabase, dump: Callable[..., Path], tmp_path: Path) -> None:
    problems = " ".join(foreign_dump.describe(str(dump("--create"))).problems)
    assert "CREATE DATABASE" in problems
    assert "goes to another database by itself" in problems
    path = tmp_path / "all"
    argv = [broken.server.bin_dir / "pg_dumpall", "--globals-only", "--file", path, "-d", broken.server.conninfo()]
    subprocess.run(argv, check=True, timeout=60, capture_output=True)
    assert "CREATE ROLE" in " ".join(foreign_dump.describe(str(path)).problems)


def test_a_directory_whose_contents_are_gone(dump: Callable[..., Path]) -> None:
    path = dump("--format=directory")
    (path / "toc.dat").unlink()
    assert "without toc.dat" in foreign_dump.describe(str(path)).problems[0]
    shutil.rmtree(path)
