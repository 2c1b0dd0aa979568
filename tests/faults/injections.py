"""What the tests of faults break things with, and how they look at what is left: nothing of the product is in here."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from replica.databases import AppDatabase
from replica.ports import free_port
from tests.support.ansible_run import ROOT, clean_environment
from tests.support.waiting import wait_until

#: Every connection of the product says who it is.
OURS = "alembic-recovery%"


# Modules as processes


class ModuleProcess:
    """A module of `library/` in a process of its own, so that it can be killed and can be given a umask."""

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        environment: dict[str, str] | None = None,
        umask: int = -1,
        check: bool = False,
        interpreter: Path | str = sys.executable,
    ) -> None:
        self.process = subprocess.Popen(
            [str(interpreter), "-m", "tests.faults.run_module", name, *(["--check"] if check else [])],
            cwd=ROOT,
            env=clean_environment(**(environment or {})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            umask=umask,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments))
        self.process.stdin.close()
        self.process.stdin = None

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def result(self, seconds: float = 600.0) -> dict[str, Any]:
        """Wait for its end; what it returned, with `peak_kib`, the most memory it had."""
        out, err = self.process.communicate(timeout=seconds)
        assert out, f"the module ended with {self.process.returncode} and said nothing but: {err}"
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        """End it as the kernel does that has run out of memory."""
        self.process.kill()
        self.process.communicate(timeout=30)


def run_apart(name: str, arguments: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    """Run a module in a process of its own to its end."""
    return ModuleProcess(name, arguments, **keywords).result()


# The database


def described(database: AppDatabase) -> dict[str, Any]:
    """A database as modules take it, with the host runtime."""
    return {
        "runtime": "host",
        "name": database.name,
        "user": database.user,
        "password": database.password,
        "unix_socket": str(database.server.socket_dir),
        "bin_dir": str(database.server.bin_dir),
    }


class Held:
    """An open transaction of somebody else that keeps a table from being dumped."""

    def __init__(self, conninfo: str, table: str = "songs", statement: str = "") -> None:
        self._connection = psycopg.connect(conninfo)
        self._connection.execute(sql.SQL("lock table {} in access exclusive mode").format(sql.Identifier(table)))
        if statement:
            self._connection.execute(sql.SQL(statement))

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def give_up(self) -> None:
        """Undo it."""
        self._connection.rollback()

    def commit(self) -> None:
        """Let it be true."""
        self._connection.commit()


def sessions(database: AppDatabase, *, waiting: bool = False) -> list[tuple[Any, ...]]:
    """The product's sessions in a database; those that wait for a lock."""
    condition = "and wait_event_type = 'Lock'" if waiting else ""
    return database.server.execute(
        sql.SQL(
            "select pid, application_name, left(query, 80) from pg_stat_activity where datname = {} "
            "and application_name like {} " + condition
        ).format(sql.Literal(database.name), sql.Literal(OURS))
    )


def restored(database: AppDatabase, dump: Path | str) -> Iterator[AppDatabase]:
    """Restore a dump into a new database, as whoever needs it would; the database goes afterwards."""
    name = f"restored_{time.monotonic_ns()}"
    server = database.server
    server.create_database(name, database.user)
    try:
        done = subprocess.run(
            [
                str(server.bin_dir / "pg_restore"),
                "--exit-on-error",
                "--no-password",
                "--dbname",
                server.conninfo(name),
                str(dump),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield AppDatabase(server, database.application, name, database.user, database.password)
    finally:
        server.drop_database(name)


restoring = contextlib.contextmanager(restored)


def counts(database: AppDatabase) -> dict[str, int]:
    """Exact row counts of all tables by `public.name`."""
    names = [row[0] for row in database.rows("select tablename from pg_tables where schemaname = 'public' order by 1")]
    return {f"public.{name}": database.value(f'select count(*) from "{name}"') for name in names}


# PostgreSQL's programs


def programs_with(directory: Path, bin_dir: Path, **replaced: str) -> Path:
    """A directory with PostgreSQL's programs, some of them replaced by shell scripts.

    `{real}` in a script is the real program.
    """
    directory.mkdir()
    for program in bin_dir.iterdir():
        if program.name not in replaced:
            (directory / program.name).symlink_to(program)
    for name, script in replaced.items():
        path = directory / name
        path.write_text("#!/bin/sh\n" + script.replace("{real}", str(bin_dir / name)))
        path.chmod(0o755)
    return directory


def processes(needle: str) -> list[psutil.Process]:
    """Processes with a text in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and any(needle in word for word in process.info["cmdline"] or [])
    ]


def caught_in_the_act(
    name: str, arguments: dict[str, Any], written: Path, find: Callable[[], list[psutil.Process]]
) -> tuple[ModuleProcess, list[psutil.Process]]:
    """Start a module, and suspend its processes once a file has content.

    A few megabytes are written in a second, and on a full machine the look may come too late: then once more.

    Args:
        name: The module.
        arguments: Its options.
        written: The file; what is beside it is removed before the next attempt.
        find: The processes that are to be suspended.

    Returns:
        The module, and the suspended processes.
    """
    for _attempt in range(10):
        there = set(written.parent.glob("*"))
        module = ModuleProcess(name, arguments)
        found: list[psutil.Process] = []
        while not found and not module.ended():
            if has_content(written):
                found = [process for process in find() if _suspended(process)]
            time.sleep(0.02)
        if found:
            return module, found
        result = module.result()
        assert not result.get("failed"), result
        for path in set(written.parent.glob("*")) - there:
            path.unlink()
    raise AssertionError(f"{name} always ended before it was caught")


def _suspended(process: psutil.Process) -> bool:
    """Suspend a process; whether it was still there."""
    try:
        process.suspend()
        wait_until(lambda: process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE), "it is suspended")
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


# Files


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    """Names below a directory with their sizes and times of change, to see that nothing was touched."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def modes(directory: Path) -> dict[str, str]:
    """Permissions of everything below a directory, the directory itself included (as `.`), in octal."""
    return {
        str(path.relative_to(directory)): f"{stat.S_IMODE(path.lstat().st_mode):04o}"
        for path in [directory, *sorted(directory.rglob("*"))]
    }


def flip_a_bit(path: Path | str, position: int | None = None) -> None:
    """Change one bit of a file and nothing else about it, neither its size nor its times."""
    path = Path(path)
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(times.st_size // 2 if position is None else position)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own with little room; needs root."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Write a file until there is no room left on its file system; return it."""
    hog = directory / "somebody-elses.log"
    with hog.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            block = b"\0" * size
            with contextlib.suppress(OSError):
                while file.write(block) == size:
                    pass
    return hog


def has_content(path: Path) -> bool:
    """Whether a file is there with something in it; it may be removed at any moment."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def holding(directory: Path, marker: str) -> list[str]:
    """Files below a directory that hold a text, whatever they are."""
    return [
        str(path.relative_to(directory))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and marker.encode() in path.read_bytes()
    ]


# ssh


class SshServer:
    """An OpenSSH server on the loopback address, for the user who runs the tests, with keys of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
        shutil.copy(directory / "user.pub", directory / "authorized_keys")
        (directory / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {directory / 'host'}\n"
            f"AuthorizedKeysFile {directory / 'authorized_keys'}\nStrictModes no\nUsePAM no\n"
            f"PidFile {directory / 'pid'}\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\nLogLevel ERROR\nMaxStartups 50\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._process = subprocess.Popen(
            [_sshd(), "-D", "-e", "-f", str(directory / "config")],
            stdin=subprocess.DEVNULL,
            stderr=(directory / "log").open("w"),
        )
        wait_until(lambda: self._answers() or self._process.poll() is not None, "sshd to answer")
        assert self._process.poll() is None, (directory / "log").read_text()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            return connection.recv(4) == b"SSH-"
        return False

    def variables(self, port: int | None = None) -> dict[str, Any]:
        """Variables for an inventory host that is this machine over ssh, its host key known and checked.

        `port` is that of somebody in between.
        """
        port = port or self.port
        known = self.directory / f"known_hosts_{port}"
        known.write_text(f"[127.0.0.1]:{port} {(self.directory / 'host.pub').read_text()}")
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": str(self.directory / "user"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes",
            "ansible_python_interpreter": sys.executable,
        }

    def stop(self) -> None:
        """End it, and the sessions that are still open."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait(10)


def _sshd() -> str:
    """Where sshd is; it must be started by its full path."""
    found = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    assert found, "there is no sshd on this machine: run tools/ensure-package sshd"
    return found


class Wire:
    """Stands between ssh and its server, and does something to a connection that has carried enough bytes.

    Args:
        port: The server's.
        after: Bytes from the server to the client.
        times: How many connections have it done to them; the others are left in peace.
        deed: What to do then; by default the connection is cut.
    """

    def __init__(self, port: int, after: int, times: int = 1000, deed: Callable[[], None] | None = None) -> None:
        self._target = port
        self._after = after
        self._times = times
        self._deed = deed
        self.cuts = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self._close(*self._open)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self.connections += 1
            self._open += [client, server]
            threading.Thread(target=self._carry, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, self._after), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                carried += len(data)
                if limit is not None and carried > limit and self.cuts < self._times:
                    self.cuts += 1
                    limit = None
                    if self._deed is None:
                        break
                    self._deed()
                target.sendall(data)
        self._close(source, target)

    @staticmethod
    def _close(*connections: socket.socket) -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


# Memory


@dataclass
class Memory:
    """The most memory (MiB) that one process, and all of them together, had."""

    one: float = 0.0
    all: float = 0.0


@contextlib.contextmanager
def memory_of(roots: Sequence[Callable[[], psutil.Process | None]]) -> Iterator[Memory]:
    """Watch the memory of processes and of all that they start."""
    seen = Memory()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            sizes = []
            for root in roots:
                with contextlib.suppress(psutil.Error):
                    top = root()
                    family = [top, *top.children(recursive=True)] if top else []
                    for process in family:
                        with contextlib.suppress(psutil.Error):
                            sizes.append(process.memory_info().rss / 2**20)
            seen.one = max([seen.one, *sizes])
            seen.all = max(seen.all, sum(sizes))
            time.sleep(0.05)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(10)
