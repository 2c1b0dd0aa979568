"""The replica as supervised processes on this machine, with an embedded PostgreSQL.

Everything is in one directory, and listens on loopback or on Unix sockets only. What Redis and the proxy do
in the other form, Celery's file system broker and TLS in gunicorn do here.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import yaml

from replica import application, certificates, seed
from replica.application import DATABASE, USER, State
from replica.errors import ReplicaError
from replica.expect import expectation
from replica.ports import free_port
from replica.postgres import EmbeddedPostgres
from replica.processes import halted
from replica.web import Client

STATE_FILE = "replica.json"
START_SECONDS = 180.0
STOP_SECONDS = 20.0


class HostReplica:
    """A replica in one directory.

    Args:
        directory: Where it is or is to be.
        password: The application's database password, for a replica that is to be made; made up if it is not
            given.
        postgres_version: 16 or 18, for a replica that is to be made.
        createdb: Whether the application's role may make databases, for a replica that is to be made.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        password: str | None = None,
        postgres_version: int = 16,
        createdb: bool = True,
    ) -> None:
        self.directory = Path(directory).resolve()
        self._given_password = password
        self._createdb = createdb
        self.postgres = EmbeddedPostgres(self.directory / "database", version=postgres_version)

    @property
    def application(self) -> Path:
        """The deployed application: the directory with alembic.ini."""
        return self.directory / "app"

    @property
    def environment_file(self) -> Path:
        """KEY=VALUE lines with DATABASE_URL; nobody else can read it."""
        return self.directory / "database.env"

    @property
    def password_file(self) -> Path:
        """The application's database password; nobody else can read it."""
        return self.directory / "database.password"

    @property
    def supervisor_config(self) -> Path:
        """The configuration of supervisord, for supervisorctl."""
        return self.directory / "supervisord.conf"

    @property
    def inventory_file(self) -> Path:
        """The inventory that ``up`` leaves."""
        return self.directory / "inventory.yml"

    @property
    def authority(self) -> Path:
        """The certificate authority that clients need."""
        return self.directory / "tls" / "ca.pem"

    @property
    def base_url(self) -> str:
        """Scheme, host and port of the application."""
        return f"https://127.0.0.1:{self._state()['port']}"

    @property
    def client(self) -> Client:
        """For requests to the application."""
        return Client(self.base_url, self.authority)

    @property
    def password(self) -> str:
        """The application's database password."""
        return self.password_file.read_text()

    @property
    def database_url(self) -> str:
        """The application's DATABASE_URL."""
        return application.database_url(
            user=USER, password=self.password, database=DATABASE, socket_dir=self.postgres.socket_dir
        )

    def log(self, program: str) -> Path:
        """Where a program writes.

        Args:
            program: ``api``, ``worker`` or ``supervisord``.

        Returns:
            The log file.
        """
        return self.directory / "logs" / f"{program}.log"

    def up(
        self,
        *,
        variant: State | str = State.UNTOUCHED,
        healthy: bool = False,
        data: seed.Size | None = None,
        strict_start: bool = False,
    ) -> HostReplica:
        """Make the replica and start it.

        Args:
            variant: ``untouched``: the worker only works; ``rewritten``: it migrates first, at each start.
            healthy: Whether the database is at head instead of in the state of 2025-10-21.
            data: How much data.
            strict_start: Whether the API refuses to start on a schema that lacks something.

        Returns:
            This replica.

        Raises:
            ReplicaError: There is one already, or something did not start; nothing is left then.
        """
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ReplicaError(f"{self.directory} is not empty; expected a new directory, or first: host down --dir")
        try:
            self._prepare(migrates=State(variant) is State.REWRITTEN, strict_start=strict_start)
            self._make_database(State.HEALTHY if healthy else State.UNTOUCHED, data or seed.Size())
            self._configure()
            self.start()
            if strict_start and not healthy:
                self._wait("api", "the API to refuse its start", self._api_has_refused)
            else:
                self.client.wait("/api/v1/health", seconds=START_SECONDS)
            self._wait("worker", "the worker to take tasks", (self.directory / "worker.alive").exists)
        except BaseException:
            self.down()
            raise
        return self

    def start(self) -> None:
        """Start supervisord, and with it the application.

        Raises:
            ReplicaError: It did not start.
        """
        environment = self._environment()
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.supervisor_config)]
        with self.log("start").open("ab") as log:
            result = subprocess.run(
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if result.returncode != 0:
            said = self._last_lines("start")
            raise ReplicaError(f"supervisord ended with {result.returncode}, expected 0; it said:\n{said}")

    def stop(self) -> None:
        """Stop supervisord and the application; the database goes on.

        Raises:
            ReplicaError: A process is still there.
        """
        supervisor = self._supervisor()
        if supervisor is None:
            return
        family = [supervisor, *supervisor.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.terminate()
        self._kill(psutil.wait_procs(family, timeout=STOP_SECONDS)[1])

    def supervisorctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run supervisorctl for this replica.

        Args:
            arguments: For example ``restart``, ``api``.

        Returns:
            The finished command, whatever it ended with.
        """
        command = [
            sys.executable,
            "-m",
            "supervisor.supervisorctl",
            "-c",
            str(self.supervisor_config),
            *arguments,
        ]
        return subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def alembic(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the ordinary ``alembic`` command in the deployed application.

        Args:
            arguments: For example ``upgrade``, ``head``.

        Returns:
            The finished command, whatever it ended with.
        """
        return application.run_alembic(self.application, self.database_url, *arguments)

    def down(self) -> None:
        """Stop all processes and remove all files; nothing happens if there is no replica.

        Raises:
            ReplicaError: The directory holds something that is no replica, or a process is still there.
        """
        if not self.directory.exists():
            return
        ours = (self.directory / STATE_FILE).is_file()
        if not ours:
            if any(self.directory.iterdir()):
                raise ReplicaError(f"{self.directory} holds no {STATE_FILE}; it is no replica and is left as it is")
            self.directory.rmdir()
            return
        supervisor = self._supervisor()
        if supervisor is not None:
            # All of it goes, so nobody has to finish anything. Halted first, it starts nothing anew meanwhile.
            self._kill(halted(supervisor))
        self.postgres.remove()
        shutil.rmtree(self._state()["socket_dir"], ignore_errors=True)
        shutil.rmtree(self.directory)

    def status(self) -> dict[str, Any]:
        """What runs and what answers.

        Returns:
            ``directory``, ``postgres`` and ``supervisord`` (whether they run), ``programs`` (the state of
            each), ``url``, ``songs`` (the status of the song list, or what stood in the way) and ``version``
            (what alembic_version holds).
        """
        running = self._supervisor() is not None
        programs: dict[str, str] = {}
        if running:
            for line in self.supervisorctl("status").stdout.splitlines():
                name, state = line.split()[:2]
                programs[name] = state
        try:
            songs: int | str = self.client.request("/api/v1/songs").status
        except OSError as error:
            songs = str(error)
        postgres = self.postgres.running()
        return {
            "directory": str(self.directory),
            "postgres": postgres,
            "supervisord": running,
            "programs": programs,
            "url": self.base_url,
            "songs": songs,
            "version": self._version() if postgres else None,
        }

    def inventory(self) -> dict[str, Any]:
        """An inventory with this machine as the only host, in group ``demo``.

        Returns:
            What an inventory file in YAML holds. The password is not in it, but where it is.
        """
        base_url = self.base_url
        unit = {"runtime": "host", "manager": "supervisor", "manager_config": str(self.supervisor_config)}
        names = ("api", "worker")
        services = [{"name": name, **unit, "unit": name, "log_files": [str(self.log(name))]} for name in names]
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "recovery_stack_name": "demo",
            "recovery_http_ca": str(self.authority),
            "recovery_stack": {
                "database": {
                    "runtime": "host",
                    "name": DATABASE,
                    "user": USER,
                    "password": f"{{{{ lookup('ansible.builtin.file', '{self.password_file}') }}}}",
                    "unix_socket": str(self.postgres.socket_dir),
                    "bin_dir": str(self.postgres.bin_dir),
                },
                "app": {
                    "runtime": "host",
                    "workdir": str(self.application),
                    "python": sys.executable,
                    "alembic_config": "alembic.ini",
                    "environment_file": str(self.environment_file),
                },
                "services": services,
                "expect": expectation(base_url),
            },
        }
        return {"demo": {"hosts": {"demo-server": variables}}}

    def _kill(self, processes: list[psutil.Process]) -> None:
        """End processes at once."""
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if psutil.wait_procs(processes, timeout=STOP_SECONDS)[1]:
            raise ReplicaError(f"processes of {self.directory} are still there after a kill; look with: ps -ef")

    def _state(self) -> dict[str, Any]:
        """What ``up`` noted."""
        path = self.directory / STATE_FILE
        if not path.is_file():
            raise ReplicaError(f"there is no replica in {self.directory}; run: host up --dir {self.directory}")
        state: dict[str, Any] = json.loads(path.read_text())
        return state

    def _version(self) -> str | None:
        """What alembic_version holds."""
        with contextlib.closing(self._connect()) as connection:
            row = connection.execute("select version_num from alembic_version").fetchone()
            return None if row is None else str(row[0])

    def _connect(self) -> Any:
        """A superuser's connection to the application's database."""
        import psycopg

        return psycopg.connect(self.postgres.conninfo(DATABASE))

    def _prepare(self, *, migrates: bool, strict_start: bool) -> None:
        """Directories, secrets, certificates and the application's files."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # Root's PostgreSQL runs as another user, who must get past this directory, but can list nothing.
        self.directory.chmod(0o711 if os.geteuid() == 0 else 0o700)
        state = {
            "socket_dir": tempfile.mkdtemp(prefix="replica-run-"),
            "migrates": migrates,
            "strict_start": strict_start,
        }
        certificates.write_private(self.directory / STATE_FILE, json.dumps(state).encode())
        for name in ("logs", "tls", "broker", "control", "results"):
            (self.directory / name).mkdir(mode=0o700)
        certificates.make(self.directory / "tls", "127.0.0.1", "localhost")
        password = self._given_password or secrets.token_urlsafe(18)
        certificates.write_private(self.password_file, password.encode())
        application.copy_to(self.application)

    def _make_database(self, state: State, data: seed.Size) -> None:
        """PostgreSQL with the application's database in it."""
        self.postgres.create()
        self.postgres.start()
        self.postgres.create_role(USER, self.password, createdb=self._createdb)
        self.postgres.create_database(DATABASE, USER)
        certificates.write_private(self.environment_file, f"DATABASE_URL={self.database_url}\n".encode())
        application.bring_to(state, self.alembic, lambda script: self.postgres.load(DATABASE, script, role=USER), data)

    def _environment(self) -> dict[str, str]:
        """The environment of supervisord, which its programs inherit."""
        state = self._state()
        broker = self._at("broker")
        options = {
            "data_folder_in": broker,
            "data_folder_out": broker,
            "control_folder": self._at("control"),
            "polling_interval": 0.1,
        }
        settings = {
            "BIND": f"127.0.0.1:{state['port']}",
            "TLS_CERTIFICATE": self._at("tls/server.pem"),
            "TLS_KEY": self._at("tls/server.key"),
            "CELERY_BROKER_URL": "filesystem://",
            "CELERY_BROKER_TRANSPORT": "songapi.broker:Transport",
            "CELERY_BROKER_OPTIONS": json.dumps(options),
            "CELERY_RESULT_BACKEND": f"file://{self._at('results')}",
            "WORKER_ALIVE_FILE": self._at("worker.alive"),
            "MIGRATE_ON_START": "1" if state["migrates"] else "0",
            "STRICT_START": "1" if state["strict_start"] else "0",
        }
        return application.environment(self.database_url, settings)

    def _configure(self) -> None:
        """Write supervisord's configuration and the inventory; choose the port, which soon has its listener then."""
        state = {**self._state(), "port": free_port()}
        certificates.write_private(self.directory / STATE_FILE, json.dumps(state).encode())
        sockets = Path(self._state()["socket_dir"])
        program = {
            "directory": str(self.application),
            "redirect_stderr": "true",
            "stopasgroup": "true",
            "killasgroup": "true",
            "stopwaitsecs": "10",
            "startsecs": "1",
        }
        sections: dict[str, dict[str, str]] = {
            "unix_http_server": {"file": str(sockets / "supervisor.sock"), "chmod": "0700"},
            "supervisord": {
                "logfile": str(self.log("supervisord")),
                "pidfile": self._at("supervisord.pid"),
                "directory": str(self.directory),
                "childlogdir": self._at("logs"),
                **({"user": "root"} if os.geteuid() == 0 else {}),
            },
            "rpcinterface:supervisor": {
                "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
            },
            "supervisorctl": {"serverurl": f"unix://{sockets / 'supervisor.sock'}"},
        }
        for name in ("api", "worker"):
            command = str(self.application / "bin" / name)
            sections[f"program:{name}"] = {
                **program,
                "command": command,
                "stdout_logfile": str(self.log(name)),
            }
        for section in sections.values():
            for key, value in section.items():
                section[key] = value.replace("%", "%%")  # supervisord expands it.
        parser = configparser.RawConfigParser(delimiters=("=",))
        parser.read_dict(sections)
        text = io.StringIO()
        parser.write(text)
        certificates.write_private(self.supervisor_config, text.getvalue().encode())
        self.inventory_file.write_text(dump_inventory(self.inventory()))

    def _at(self, name: str) -> str:
        """A path in this replica's directory, as text."""
        return str(self.directory / name)

    def _supervisor(self) -> psutil.Process | None:
        """The running supervisord of this replica."""
        try:
            process = psutil.Process(int((self.directory / "supervisord.pid").read_text()))
            if str(self.supervisor_config) in process.cmdline():
                return process
        except (FileNotFoundError, ValueError, psutil.Error):
            pass  # No such file, or the number has another owner by now: it does not run.
        return None

    def _wait(self, program: str, what: str, happened: Callable[[], bool]) -> None:
        """Wait for something that a program does."""
        end = time.monotonic() + START_SECONDS
        while not happened():
            if time.monotonic() > end:
                said = self._last_lines(program)
                raise ReplicaError(f"waited {START_SECONDS:g} s for {what}; its log ends with:\n{said}")
            time.sleep(0.1)

    def _api_has_refused(self) -> bool:
        """Whether the API has stopped because of the schema at least once."""
        log = self.log("api")
        return log.exists() and "SchemaMismatchError" in log.read_text(errors="replace")

    def _last_lines(self, program: str) -> str:
        """The end of a program's log, for a message: the file itself goes when a start fails."""
        path = self.log(program)
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else ""


def dump_inventory(inventory: dict[str, Any]) -> str:
    """An inventory as YAML.

    Args:
        inventory: What the file is to hold.

    Returns:
        The file's text.
    """
    text: str = yaml.safe_dump(inventory, sort_keys=False, allow_unicode=True, width=100)
    return "---\n" + text


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Describe the commands of this form.

    Args:
        parser: Gets a sub-command each for up, down, status and inventory.
    """
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "make a replica and start it"),
        ("down", "stop a replica and remove it"),
        ("status", "say what runs and what answers"),
        ("inventory", "print an inventory for ansible-playbook"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--dir", type=Path, default=Path(".cache/replica"), help="where the replica is")
        if name == "up":
            add_up_options(command)
            command.add_argument("--postgres", type=int, choices=(16, 18), default=16, help="major version")


def add_up_options(command: argparse.ArgumentParser) -> None:
    """Describe what ``up`` of both forms can be told.

    Args:
        command: The parser of ``up``.
    """
    command.add_argument(
        "--variant",
        choices=("untouched", "rewritten"),
        default="untouched",
        help="whether the worker has migrated",
    )
    command.add_argument("--healthy", action="store_true", help="at head, nothing broken")
    command.add_argument("--strict-start", action="store_true", help="the API refuses a schema that does not fit")
    command.add_argument("--songs", type=int, default=10_000, help="number of songs (10000)")
    command.add_argument("--rules", type=int, default=10_000, help="number of rules (10000)")
    command.add_argument("--megabytes", type=int, default=0, help="bring the database up to this size")


def size_of(arguments: argparse.Namespace) -> seed.Size:
    """How much data the command line asks for.

    Args:
        arguments: Parsed by a parser that add_up_options() has described.

    Returns:
        The size.
    """
    return seed.Size(arguments.songs, arguments.rules, arguments.megabytes)


def run(arguments: argparse.Namespace) -> str:
    """Do what the command line says.

    Args:
        arguments: Parsed by a parser that add_commands() has described.

    Returns:
        What to print.

    Raises:
        ReplicaError: It cannot be done.
    """
    if arguments.command == "up":
        replica = HostReplica(arguments.dir, postgres_version=arguments.postgres).up(
            variant=arguments.variant,
            healthy=arguments.healthy,
            data=size_of(arguments),
            strict_start=arguments.strict_start,
        )
        return f"{replica.base_url} runs from {replica.directory}; its inventory is {replica.inventory_file}\n"
    replica = HostReplica(arguments.dir)
    if arguments.command == "down":
        replica.down()
        return f"nothing is left in {replica.directory}\n"
    if arguments.command == "status":
        return json.dumps(replica.status(), indent=2) + "\n"
    return dump_inventory(replica.inventory())
