"""A process whose output is read in pieces: its end, its error, and nobody left behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest
from ansible.module_utils.alembic_recovery.errors import CommandError
from ansible.module_utils.alembic_recovery.process import Source


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_it_writes_and_how_it_ended() -> None:
    code = "import sys; sys.stdout.buffer.write(b'x' * 300_000); sys.stderr.write('e' * 300_000); sys.exit(3)"
    with Source(python(code)) as source:
        assert len(source.stream.read()) == 300_000
        done = source.finish()
    assert (done.rc, done.stderr[:3]) == (3, "eee")


def test_its_input_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0in\r\n")
    with (tmp_path / "x").open("rb") as file, Source(["cat"], stdin=file) as source:
        assert source.stream.read() == b"\0in\r\n"
        assert source.finish().rc == 0


def test_one_that_never_ends_is_killed() -> None:
    started = time.monotonic()
    with Source(python("import time; time.sleep(60)"), timeout=0.5) as source:
        assert source.stream.read() == b""
        with pytest.raises(CommandError, match="did not end in time"):
            source.finish()
    assert time.monotonic() - started < 10


def test_leaving_it_ends_it() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Source(["yes"]) as source:
        assert source.stream.read(2) == b"y\n"
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_one_that_is_not_there() -> None:
    with pytest.raises(CommandError, match="could not be started"):
        Source(["/none/of/these"])
