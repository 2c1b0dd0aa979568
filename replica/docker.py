"""The replica as containers, named and labelled as Compose did it in production."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

from replica import application, certificates, images, seed
from replica.application import DATABASE, USER, State
from replica.engine import containers
from replica.errors import ReplicaError
from replica.expect import expectation
from replica.host import add_up_options, dump_inventory, size_of
from replica.ports import free_port
from replica.web import Client

PREFIX = "mac_ki_service"
PORT = 8443
OWNER = "org.alembic-recovery.replica"
SERVICES = ("postgres", "aiproxysrv", "celery-worker", "redis", "proxy")
START_SECONDS = 240.0
SECOND = 1_000_000_000  # the engine counts in nanoseconds
# Seconds between health checks where a restart waits for one; each costs the machine a tenth of a second of work.
INTERVALS = {"aiproxysrv": 3, "celery-worker": 3}

# There is no curl in the images, and a Python every few seconds would cost more than the application.
_ASK = "exec 3<>/dev/tcp/127.0.0.1/{}; printf 'GET {} HTTP/1.0\\r\\n\\r\\n' >&3; grep -q ' 200 ' <&3"
_ASK_API = _ASK.format(8000, "/api/v1/health")
_ASK_PROXY = _ASK.format(8081, "/health")
_ASK_WORKER = 'test -n "$(find /tmp/worker.alive -newermt "-15 seconds")"'


class DockerReplica:
    """A replica of five containers, a network and a volume.

    Args:
        prefix: The Compose project's name; replicas with different prefixes live side by side.
        directory: Where the certificate authority and the inventory are kept on this machine.
        password: The application's database password, for a replica that is to be made; made up if it is not
            given.
        client: The engine; by default the one of the environment.
    """

    def __init__(
        self,
        prefix: str = PREFIX,
        *,
        directory: Path | str | None = None,
        password: str | None = None,
        client: docker.DockerClient | None = None,
    ) -> None:
        self.prefix = prefix
        self.directory = Path(directory or images.CACHE / "replica-docker" / prefix).resolve()
        self._given_password = password
        self.client = client or _engine()

    @property
    def authority(self) -> Path:
        """The certificate authority that clients need."""
        return self.directory / "ca.pem"

    @property
    def inventory_file(self) -> Path:
        """The inventory that ``up`` leaves."""
        return self.directory / "inventory.yml"

    @property
    def network(self) -> str:
        """The network's name."""
        return f"{self.prefix}_default"

    @property
    def volume(self) -> str:
        """The name of the volume with PostgreSQL's data."""
        return f"{self.prefix}_postgres-data"

    @property
    def base_url(self) -> str:
        """Scheme, host and port of the proxy."""
        path = self.directory / "port"
        if not path.is_file():
            raise ReplicaError(f"there is no replica {self.prefix}; run: docker up --prefix {self.prefix}")
        return f"https://127.0.0.1:{path.read_text()}"

    @property
    def web(self) -> Client:
        """For requests to the application."""
        return Client(self.base_url, self.authority)

    def name(self, service: str) -> str:
        """A container's name.

        Args:
            service: One of SERVICES.

        Returns:
            The name.
        """
        return f"{self.prefix}-{service}-1"

    def container(self, service: str) -> Container:
        """A container.

        Args:
            service: One of SERVICES.

        Returns:
            The container, as it is now.

        Raises:
            ReplicaError: There is none.
        """
        try:
            return self.client.containers.get(self.name(service))
        except docker.errors.NotFound as error:
            raise ReplicaError(
                f"there is no container {self.name(service)}; run: docker up --prefix {self.prefix}"
            ) from error

    def up(
        self,
        *,
        variant: State | str = State.UNTOUCHED,
        healthy: bool = False,
        data: seed.Size | None = None,
        strict_start: bool = False,
        port: int = PORT,
        report: images.Report = lambda _: None,
    ) -> DockerReplica:
        """Make the replica and start it.

        Args:
            variant: ``untouched``: the worker only works; ``rewritten``: it migrates first, at each start.
            healthy: Whether the database is at head instead of in the state of 2025-10-21.
            data: How much data.
            strict_start: Whether the API refuses to start on a schema that lacks something.
            port: Where the proxy listens on this machine's loopback address; 0 for any free port.
            report: Gets a line for each step that takes long.

        Returns:
            This replica.

        Raises:
            ReplicaError: A container of such a name is there already, or something did not start; nothing
                that this call made is left then.
        """
        self._refuse_what_is_there()
        names = images.ensure(self.client, report)
        try:
            self._prepare()
            secret = self._given_password or secrets.token_urlsafe(18)
            self._make_database(names, secret, State.HEALTHY if healthy else State.UNTOUCHED, data or seed.Size())
            self._start_rest(names, secret, State(variant) is State.REWRITTEN, strict_start, port)
            refuses = strict_start and not healthy
            self._wait({*SERVICES} - {"aiproxysrv"} if refuses else {*SERVICES}, refuses)
            self._finish()
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Remove containers, volume, network and files; nothing happens if there is no replica.

        Raises:
            ReplicaError: Something else hangs on the network or the volume.
        """
        for container in containers(self.client, label=f"{OWNER}={self.prefix}"):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        for kind, name in ((self.client.networks, self.network), (self.client.volumes, self.volume)):
            try:
                thing = kind.get(name)
                labels = thing.attrs.get("Labels") or {}
                if labels.get(OWNER) == self.prefix:
                    thing.remove()
            except docker.errors.NotFound:
                pass
            except docker.errors.APIError as error:
                raise ReplicaError(f"{name} cannot be removed: {error.explanation}") from error
        if (self.directory / "port").is_file() or self.authority.is_file():
            shutil.rmtree(self.directory)

    def status(self) -> dict[str, Any]:
        """What runs and what answers.

        Returns:
            ``prefix``, ``containers`` (state and health by service), ``url`` and ``songs`` (the status of the
            song list, or what stood in the way).
        """
        states: dict[str, str] = {}
        for service in SERVICES:
            try:
                state = self.container(service).attrs["State"]
                states[service] = " ".join(filter(None, (state["Status"], state.get("Health", {}).get("Status"))))
            except ReplicaError:
                states[service] = "missing"
        try:
            songs: int | str = self.web.request("/api/v1/songs").status
            url = self.base_url
        except (OSError, ReplicaError) as error:
            songs, url = str(error), ""
        return {"prefix": self.prefix, "containers": states, "url": url, "songs": songs}

    def alembic(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the ordinary ``alembic`` command in the running API container, without a terminal.

        Args:
            arguments: For example ``upgrade``, ``head``.

        Returns:
            The finished command, whatever it ended with.
        """
        return self.execute("aiproxysrv", ["alembic", *arguments])

    def execute(self, service: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in a running container, without a terminal.

        Args:
            service: One of SERVICES.
            command: Program and arguments.

        Returns:
            The finished command, whatever it ended with.
        """
        code, (out, err) = self.container(service).exec_run(list(command), demux=True)
        return subprocess.CompletedProcess(list(command), code, _text(out), _text(err))

    def query(self, statement: str) -> str:
        """Ask a question with psql in the database's container.

        Args:
            statement: One SQL statement.

        Returns:
            The rows, one a line, columns separated by ``|``.

        Raises:
            ReplicaError: psql failed.
        """
        command = [
            "psql",
            "-X",
            "-q",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            USER,
            "-d",
            DATABASE,
            "-c",
            statement,
        ]
        result = self.execute("postgres", command)
        if result.returncode != 0:
            raise ReplicaError(f"psql ended with {result.returncode}, expected 0; it said: {result.stderr.strip()}")
        return result.stdout.rstrip("\n")

    def inventory(self) -> dict[str, Any]:
        """An inventory with this machine as ``production-server`` in group ``prod``.

        Returns:
            What an inventory file in YAML holds.
        """
        api, worker = self.name("aiproxysrv"), self.name("celery-worker")
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "recovery_stack_name": "prod",
            "recovery_http_ca": str(self.authority),
            "recovery_stack": {
                "database": {
                    "runtime": "docker",
                    "container": self.name("postgres"),
                    "name": DATABASE,
                    "user": USER,
                },
                "app": {
                    "runtime": "docker",
                    "container": api,
                    "workdir": "/app",
                    "python": "python3",
                    "alembic_config": "alembic.ini",
                },
                "services": [
                    {"name": "api", "runtime": "docker", "container": api},
                    {"name": "worker", "runtime": "docker", "container": worker},
                ],
                "expect": expectation(self.base_url),
            },
        }
        return {"prod": {"hosts": {"production-server": variables}}}

    def _labels(self) -> dict[str, str]:
        """What marks everything that belongs to this replica."""
        return {OWNER: self.prefix, "com.docker.compose.project": self.prefix}

    def _refuse_what_is_there(self) -> None:
        """Never touch a container that somebody else has made under the same name."""
        for service in SERVICES:
            try:
                found = self.client.containers.get(self.name(service))
            except docker.errors.NotFound:
                continue
            if found.labels.get(OWNER) == self.prefix:
                raise ReplicaError(f"replica {self.prefix} is there already; run: docker down --prefix {self.prefix}")
            raise ReplicaError(
                f"the container {found.name} belongs to somebody else; choose another with: --prefix NAME"
            )

    def _prepare(self) -> None:
        """Directory, certificates, network and volume."""
        self.directory.mkdir(parents=True, exist_ok=True)
        certificates.make(self.directory, "127.0.0.1", "localhost")
        labels = self._labels()
        self.client.networks.create(
            self.network, driver="bridge", labels={**labels, "com.docker.compose.network": "default"}
        )
        self.client.volumes.create(self.volume, labels={**labels, "com.docker.compose.volume": "postgres-data"})

    def _create(
        self,
        service: str,
        image: str,
        *,
        environment: Mapping[str, str] | None = None,
        health: str | None = None,
        **options: Any,
    ) -> Container:
        """Make a container of a service; it does not run yet."""
        labels = {
            **self._labels(),
            "com.docker.compose.service": service,
            "com.docker.compose.container-number": "1",
            "com.docker.compose.oneoff": "False",
        }
        check = None
        if health is not None:
            check = {
                "test": ["CMD", "bash", "-c", health],
                "interval": INTERVALS.get(service, 10) * SECOND,
                "timeout": 5 * SECOND,
                "retries": 5,
            }
        # Under the service's name the others find it, as with Compose.
        endpoint = self.client.api.create_endpoint_config(aliases=[service])
        return self.client.containers.create(
            image,
            name=self.name(service),
            hostname=service,
            environment=dict(environment or {}),
            labels=labels,
            healthcheck=check,
            restart_policy={"Name": "unless-stopped"},
            network=self.network,
            networking_config={self.network: endpoint},
            **options,
        )

    def _application_environment(self, secret: str) -> dict[str, str]:
        """What both of the application's containers get."""
        return {
            "DATABASE_URL": application.database_url(
                user=USER, password=secret, database=DATABASE, host="postgres:5432"
            ),
            "CELERY_BROKER_URL": "redis://redis:6379/0",
            "CELERY_RESULT_BACKEND": "redis://redis:6379/1",
        }

    def _make_database(self, names: images.Images, secret: str, state: State, data: seed.Size) -> None:
        """PostgreSQL with the application's database in it."""
        settings = {"POSTGRES_USER": USER, "POSTGRES_PASSWORD": secret, "POSTGRES_DB": DATABASE}
        ready = f"pg_isready -q -U {USER} -d {DATABASE}"
        container = self._create(
            "postgres",
            names.postgres,
            environment=settings,
            health=ready,
            volumes={self.volume: {"bind": "/var/lib/postgresql/data", "mode": "rw"}},
            shm_size="128m",
        )
        container.start()
        end = time.monotonic() + START_SECONDS
        while self.execute("postgres", ready.split()).returncode != 0:
            if time.monotonic() > end:
                raise ReplicaError(
                    f"PostgreSQL did not get ready in {START_SECONDS:g} s; see: docker logs {container.name}"
                )
            time.sleep(0.2)
        application.bring_to(state, self._one_off(names.app, secret), self._load, data)

    def _one_off(self, image: str, secret: str) -> Any:
        """Runs Alembic in a container of its own, because the application's are not there yet."""

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            container = self.client.containers.run(
                image,
                ["alembic", *arguments],
                environment=self._application_environment(secret),
                network=self.network,
                labels=self._labels(),
                detach=True,
            )
            try:
                code = container.wait()["StatusCode"]
                out, err = (container.logs(stdout=first, stderr=not first) for first in (True, False))
                return subprocess.CompletedProcess(["alembic", *arguments], code, _text(out), _text(err))
            finally:
                container.remove(force=True)

        return run

    def _load(self, script: Iterable[bytes]) -> None:
        """Feed a script to psql in the database's container."""
        container = self.container("postgres")
        path = "/tmp/seed.sql"  # noqa: S108 (in a container that nobody else is in)
        container.put_archive("/", _archive({path: b"".join(script)}))
        command = [
            "psql",
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            USER,
            "-d",
            DATABASE,
            "-o",
            "/dev/null",
            "-f",
            path,
        ]
        result = self.execute("postgres", command)
        self.execute("postgres", ["rm", path])
        if result.returncode != 0:
            raise ReplicaError(f"psql ended with {result.returncode} while it loaded data; it said:\n{result.stderr}")

    def _start_rest(self, names: images.Images, secret: str, migrates: bool, strict: bool, port: int) -> None:
        """Redis, the application and the proxy."""
        settings = self._application_environment(secret)
        redis = ["redis-server", "--save", "", "--bind", "* -::*", "--protected-mode", "no"]
        self._create("redis", names.edge, command=redis, health="redis-cli ping | grep -q PONG").start()
        api = {**settings, "STRICT_START": "1"} if strict else settings
        self._create("aiproxysrv", names.app, environment=api, command=["bin/api"], health=_ASK_API).start()
        worker = {
            **settings,
            "MIGRATE_ON_START": "1" if migrates else "0",
            "WORKER_ALIVE_FILE": "/tmp/worker.alive",  # noqa: S108
        }
        self._create(
            "celery-worker",
            names.app,
            environment=worker,
            command=["bin/worker"],
            health=_ASK_WORKER,
            init=True,
        ).start()
        proxy = self._create(
            "proxy",
            names.edge,
            command=["nginx", "-g", "daemon off;"],
            health=_ASK_PROXY,
            ports={"443/tcp": ("127.0.0.1", port or free_port())},
        )
        files = {
            f"/etc/nginx/tls/{name}": (self.directory / name).read_bytes() for name in ("server.pem", "server.key")
        }
        proxy.put_archive("/", _archive(files))
        (self.directory / "server.key").unlink()
        try:
            proxy.start()
        except docker.errors.APIError as error:
            raise ReplicaError(
                f"the proxy cannot listen on 127.0.0.1:{port}: {error.explanation}; choose another: --port"
            ) from error

    def _wait(self, waiting: set[str], refuses: bool) -> None:
        """Wait until these services are healthy, and the API has refused its start if it should."""
        end = time.monotonic() + START_SECONDS
        while waiting or (refuses and not self.container("aiproxysrv").attrs["RestartCount"]):
            for service in sorted(waiting):
                if self.container(service).attrs["State"]["Health"]["Status"] == "healthy":
                    waiting.discard(service)
            if time.monotonic() > end:
                last = self.container(min(waiting, default="aiproxysrv"))
                raise ReplicaError(
                    f"{', '.join(sorted(waiting))} did not get healthy in {START_SECONDS:g} s;"
                    f" {last.name} said:\n" + _text(last.logs(tail=15))
                )
            time.sleep(0.2)

    def _finish(self) -> None:
        """Note the port and leave an inventory."""
        bindings = self.container("proxy").attrs["NetworkSettings"]["Ports"]["443/tcp"]
        (self.directory / "port").write_text(bindings[0]["HostPort"])
        self.inventory_file.write_text(dump_inventory(self.inventory()))


def _engine() -> docker.DockerClient:
    """The engine of the environment."""
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except docker.errors.DockerException as error:
        raise ReplicaError(f"there is no Docker Engine: {error}; start one, or set DOCKER_HOST") from error
    return client


def _text(output: bytes | None) -> str:
    """A command's output."""
    return (output or b"").decode(errors="replace")


def _archive(files: Mapping[str, bytes]) -> bytes:
    """Files for a container, owned by root; only the owner may read what is a key."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(content)
            entry.mode = 0o600 if name.endswith(".key") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Describe the commands of this form.

    Args:
        parser: Gets a sub-command each for up, down, status and inventory.
    """
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "make a replica and start it"),
        ("down", "remove a replica"),
        ("status", "say what runs and what answers"),
        ("inventory", "print an inventory for ansible-playbook"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--prefix", default=PREFIX, help=f"the Compose project's name ({PREFIX})")
        command.add_argument("--dir", type=Path, help="where the certificate authority and the inventory are kept")
        if name == "up":
            add_up_options(command)
            command.add_argument("--port", type=int, default=PORT, help=f"the proxy's port ({PORT}); 0 for a free one")


def run(arguments: argparse.Namespace, report: images.Report) -> str:
    """Do what the command line says.

    Args:
        arguments: Parsed by a parser that add_commands() has described.
        report: Gets a line for each step that takes long.

    Returns:
        What to print.

    Raises:
        ReplicaError: It cannot be done.
    """
    replica = DockerReplica(arguments.prefix, directory=arguments.dir)
    if arguments.command == "up":
        replica.up(
            variant=arguments.variant,
            healthy=arguments.healthy,
            data=size_of(arguments),
            strict_start=arguments.strict_start,
            port=arguments.port,
            report=report,
        )
        return f"{replica.base_url} runs as {replica.prefix}; its inventory is {replica.inventory_file}\n"
    if arguments.command == "down":
        replica.down()
        return f"nothing is left of {replica.prefix}\n"
    if arguments.command == "status":
        return json.dumps(replica.status(), indent=2) + "\n"
    return dump_inventory(replica.inventory())
