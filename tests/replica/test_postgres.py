"""The embedded PostgreSQL by itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from psycopg import sql

from replica.errors import ReplicaError
from replica.postgres import EmbeddedPostgres, installation


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_packages_that_only_root_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gets a copy that its user can run, with the libraries beside it; nothing is opened up."""
    source = installation(16)
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    with tempfile.TemporaryDirectory() as private, tempfile.TemporaryDirectory() as public:
        package = Path(private) / source.parent.name
        shutil.copytree(source, package / source.name)
        (package / "__init__.py").touch()
        shutil.copytree(libraries, package.with_name(libraries.name))
        Path(private).chmod(0o700)
        Path(public).chmod(0o711)
        monkeypatch.syspath_prepend(private)
        assert installation(16).is_relative_to(private)
        server = EmbeddedPostgres(Path(public) / "pg", durable=False)
        try:
            server.create()
            server.start()
            assert server.execute(sql.SQL("select 1")) == [(1,)]
            assert Path(private).stat().st_mode & 0o777 == 0o700
        finally:
            server.remove()
        assert list((Path(public) / "pg").iterdir()) == []


def test_a_server_goes_on_where_another_process_left_it(embedded_postgres: EmbeddedPostgres) -> None:
    """State is in the directory: a second object finds the same server, and does not make a new one."""
    again = EmbeddedPostgres(embedded_postgres.directory)
    assert again.running()
    assert again.conninfo() == embedded_postgres.conninfo()
    with pytest.raises(ReplicaError, match="already"):
        again.create()


def test_unknown_version() -> None:
    """The versions that there are, in the message."""
    with pytest.raises(ReplicaError, match=r"no embedded PostgreSQL 12; expected one of \[16, 18\]"):
        installation(12)


def test_a_failing_script_is_reported(embedded_postgres: EmbeddedPostgres) -> None:
    """What psql said is in the message, also when it stops reading in the middle."""
    script = [b"select 1/0;\n", *(b"-- padding\n" * 10_000 for _ in range(20))]
    with pytest.raises(ReplicaError, match="division by zero"):
        embedded_postgres.load("postgres", script)
