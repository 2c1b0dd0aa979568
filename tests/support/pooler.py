"""A real PgBouncer before a database of a test, on a Unix socket of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from replica.databases import AppDatabase

PORT = 6432
_INI = """[databases]
{name} = host={socket_dir} dbname={name} user={user} password={password}

[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {directory}
auth_type = any
pool_mode = {mode}
default_pool_size = {sessions}
ignore_startup_parameters = extra_float_digits
logfile = {directory}/pgbouncer.log
pidfile = {directory}/pgbouncer.pid
"""


def program() -> str:
    """The path of pgbouncer; where there is none, the test is skipped, or fails under `make`, which installs it."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        message = "there is no pgbouncer on this machine: run tools/ensure-package pgbouncer"
        if os.environ.get("RECOVERY_TESTS_STRICT"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return found


@contextmanager
def pgbouncer(database: AppDatabase, mode: str, *, sessions: int = 5) -> Iterator[Path]:
    """Run one, and give the directory of its socket; it goes with the context. `mode` is its `pool_mode`."""
    found = program()
    # A socket's path must be short; and PgBouncer refuses to run as root.
    directory = Path(tempfile.mkdtemp(prefix="pooler-", dir=tempfile.gettempdir()))
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(directory, user.pw_uid, user.pw_gid)
    ini = directory / "pgbouncer.ini"
    ini.write_text(
        _INI.format(
            name=database.name,
            socket_dir=database.server.socket_dir,
            user=database.user,
            password=database.password,
            port=PORT,
            directory=directory,
            mode=mode,
            sessions=sessions,
        )
    )
    os.chown(ini, user.pw_uid, user.pw_gid)
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    child = subprocess.Popen([found, "--quiet", str(ini)], stderr=subprocess.DEVNULL, **as_user)  # type: ignore[call-overload]
    try:
        _wait(child, directory, database)
        yield directory
    finally:
        child.terminate()
        child.wait(timeout=20)
        shutil.rmtree(directory)


def _wait(child: subprocess.Popen[bytes], directory: Path, database: AppDatabase) -> None:
    deadline = time.monotonic() + 20
    while not _answers(directory, database):
        log = directory / "pgbouncer.log"
        said = log.read_text() if log.exists() else "nothing"
        assert child.poll() is None, f"pgbouncer has ended; its log: {said}"
        assert time.monotonic() < deadline, f"pgbouncer does not answer; its log: {said}"
        time.sleep(0.05)


def _answers(directory: Path, database: AppDatabase) -> bool:
    try:
        with psycopg.connect(host=str(directory), port=PORT, dbname=database.name, user=database.user):
            return True
    except psycopg.OperationalError:
        return False
