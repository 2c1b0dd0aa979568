"""The rows and points that are about Docker: terminals, killed clients, one-off containers, a container's variables."""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ansible.module_utils.alembic_recovery import dump, naming, workbench
from ansible.module_utils.alembic_recovery.docker_cli import DockerCli
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.postgres import Login
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime
from docker.models.containers import Container

from replica.application import BROKEN, DATABASE, HEAD, USER
from replica.docker import DockerReplica
from replica.engine import containers
from tests.docker.observation import REHEARSAL_FILES, RUN_FILES, one_offs
from tests.faults import injections
from tests.faults.conftest import MARKED_PASSWORD, MARKER
from tests.faults.injections import ModuleProcess, run_apart
from tests.support.ansible_run import ROOT, run_playbook
from tests.support.command_lines import Watch
from tests.support.modules import run_module
from tests.support.waiting import wait_until

pytestmark = pytest.mark.docker
BULKY = "bulky"


class Server:
    """The database's container, and the backups of one test."""

    def __init__(self, replica: DockerReplica, directory: Path) -> None:
        self.replica = replica
        self.name = replica.name("postgres")
        self.directory = directory

    def options(self, database: str = DATABASE, **more: Any) -> dict[str, Any]:
        """The option `database` of modules; no password, as in the seed."""
        return {"runtime": "docker", "container": self.name, "name": database, "user": USER, **more}

    def arguments(self, database: str = DATABASE, **more: Any) -> dict[str, Any]:
        """The options of `pg_backup`, for a run of its own."""
        return {
            "database": self.options(database),
            "directory": str(self.directory),
            "run_id": f"faults-{uuid.uuid4().hex[:8]}",
            **more,
        }

    def psql(self, statement: str, database: str = DATABASE) -> str:
        """Ask in the container."""
        done = self.replica.execute("postgres", ["psql", "-XAtq", "-U", USER, "-d", database, "-c", statement])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sessions(self) -> list[str]:
        """The product's sessions in the server."""
        found = self.psql(
            "select application_name from pg_stat_activity where application_name like 'alembic-recovery%'"
        )
        return found.splitlines()

    def one_offs(self, run_id: str) -> list[Container]:
        """The containers of a run."""
        label = f"alembic-recovery.run={run_id}"
        return containers(self.replica.client, label=label)


@pytest.fixture(scope="module")
def bulky_server(docker_replica: DockerReplica) -> DockerReplica:
    """The replica with a second database, whose dump takes a second or two."""
    server = Server(docker_replica, Path("/nowhere"))
    server.psql(f"create database {BULKY}", "postgres")
    server.psql("create table songs (id int, lyrics text)", BULKY)
    server.psql(
        "insert into songs select n, string_agg(md5((n * 40 + part)::text), ' ') from generate_series(1, 40000) n, "
        "generate_series(1, 40) part group by n",
        BULKY,
    )
    return docker_replica


@pytest.fixture
def server(bulky_server: DockerReplica, tmp_path: Path) -> Server:
    """The database's container, and a place for backups."""
    return Server(bulky_server, tmp_path / "backups")


def start_and_stop_pg_dump(server: Server) -> tuple[ModuleProcess, dict[str, Any], psutil.Process]:
    """Start a backup, and suspend the Docker client that takes its dump once something is written."""
    arguments = server.arguments(BULKY)
    name, partial = one_off(arguments), server.directory / f"{BULKY}_{arguments['run_id']}.dump.partial"

    def clients() -> list[psutil.Process]:
        return [found for found in injections.processes(name) if "pg_dump" in found.info["cmdline"]]

    module, (client,) = injections.caught_in_the_act("pg_backup", arguments, partial, clients)
    return module, arguments, client


def one_off(arguments: dict[str, Any]) -> str:
    """The name of a backup's container."""
    return f"alembic-recovery-{arguments['run_id']}-backup"


# Row 1


def test_row_01_a_terminal_ruins_a_dump_and_reading_it_through_says_so(server: Server, tmp_path: Path) -> None:
    """The seed's own command, `docker exec -t`: it ends with 0, and what it wrote is lost."""
    server.directory.mkdir(mode=0o700)
    ruined = server.directory / "ruined.dump"
    with ruined.open("wb") as file:
        command = ["docker", "exec", "-t", server.name, "pg_dump", "-U", USER, "-Fc", DATABASE]
        assert subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, check=False).returncode == 0
    assert ruined.read_bytes().startswith(b"PGDMP")
    runtime = DockerRuntime(DockerCli(), server.name, run_id="faults-terminal")
    login = Login(DATABASE, USER)
    with workbench.open_workbench(
        runtime, login, str(server.directory), bin_dir=None, run_id="faults-terminal"
    ) as bench:
        backup = dump.Backup(
            bench,
            None,  # type: ignore[arg-type]
            dump.names(str(server.directory), DATABASE, "x"),
            run_id="x",
            version_table="alembic_version",
            images={},
            timeout=60,
            lock_timeout=1,
        )
        with pytest.raises(DatabaseError, match="cannot be read through"):
            backup._read_through(str(ruined), 4)


def test_row_01_no_command_of_a_backup_has_a_terminal(server: Server) -> None:
    with Watch("docker") as watch:
        result = run_apart("pg_backup", server.arguments(BULKY))
    assert result["changed"]
    seen = {line for line in watch.found if server.name in line or "alembic-recovery-faults" in line}
    assert any(" exec " in line and server.name in line and "psql" in line for line in seen)
    assert any(" exec " in line and "pg_dump" in line for line in seen)
    assert not [line for line in seen if {"-t", "--tty", "-it", "-ti"} & set(line.split(" pg_")[0].split())]
    assert Path(result["dump"]).read_bytes().startswith(b"PGDMP")


# Row 2


def test_row_02_a_real_collation_mismatch_is_shown_and_is_not_in_the_dump(server: Server) -> None:
    """Databases made by an image whose ICU was older: very common since the tags of the image moved on."""
    server.psql("create database moved template template0 locale_provider icu icu_locale 'de-DE'", "postgres")
    try:
        server.psql("create table names (name text primary key)", "moved")
        server.psql("update pg_database set datcollversion = '1.0' where datname = 'moved'", "postgres")
        result = run_module("pg_backup", server.arguments("moved"))
        assert not result.get("failed"), result["msg"]
        assert 'database "moved" has a collation version mismatch' in json.dumps(result["warnings"]).replace('\\"', '"')
        assert Path(result["dump"]).read_bytes().startswith(b"PGDMP")
        assert result["manifest"]["row_counts"] == {"public.names": 0}
    finally:
        server.psql("drop database moved", "postgres")


# Rows 6 and 7


def test_row_06_the_container_of_the_dump_is_killed(server: Server) -> None:
    module, arguments, client = start_and_stop_pg_dump(server)
    [container] = server.one_offs(arguments["run_id"])
    assert container.name == one_off(arguments)
    container.kill()
    client.resume()
    result = module.result()
    assert result["failed"]
    assert "pg_dump ended with exit code" in result["msg"]
    assert list(server.directory.iterdir()) == []
    wait_until(lambda: not server.sessions(), "the sessions to end")
    assert server.one_offs(arguments["run_id"]) == []


def test_row_07_the_docker_client_of_the_dump_is_killed(server: Server) -> None:
    """A killed `docker exec` leaves its process running: here it runs in a container that goes with the module."""
    module, arguments, client = start_and_stop_pg_dump(server)
    client.kill()
    result = module.result()
    assert result["failed"]
    assert list(server.directory.iterdir()) == []
    wait_until(lambda: not server.sessions(), "pg_dump's session to end")
    assert server.one_offs(arguments["run_id"]) == []


def test_row_07_a_killed_module_leaves_no_container_and_no_pg_dump(server: Server) -> None:
    module, arguments, _client = start_and_stop_pg_dump(server)
    module.kill()
    wait_until(lambda: not server.one_offs(arguments["run_id"]), "the container to go by itself")
    wait_until(lambda: not server.sessions(), "the sessions to end")
    left = [path.name for path in server.directory.iterdir()]
    assert len(left) == 1
    assert left[0].endswith(".dump.partial")
    time.sleep(0.5)
    size = (server.directory / left[0]).stat().st_size
    time.sleep(0.5)
    assert (server.directory / left[0]).stat().st_size == size
    assert run_module("pg_backup", server.arguments(BULKY))["changed"]


def test_row_07_a_run_that_comes_again_after_that_is_not_misled(server: Server) -> None:
    """The same run id: what is left of the first is neither taken nor overwritten."""
    module, arguments, _client = start_and_stop_pg_dump(server)
    module.kill()
    wait_until(lambda: not server.one_offs(arguments["run_id"]), "the container to go by itself")
    again = run_module("pg_backup", arguments)
    assert again["failed"]
    assert "is there already; nothing is overwritten" in again["msg"]


def test_row_06_a_backup_in_docker_is_what_it_says(server: Server) -> None:
    """Without a fault, for comparison: nothing is left but three private files, and zstd where that pg_dump has it."""
    arguments = server.arguments(BULKY)
    result = run_module("pg_backup", arguments)
    manifest = result["manifest"]
    assert manifest["row_counts"] == {"public.songs": int(server.psql("select count(*) from songs", BULKY))}
    assert manifest["images"] == {server.name: server.replica.container("postgres").attrs["Image"]}
    assert manifest["file"]["compression"] == "gzip:1"  # PostgreSQL 15 has no zstd
    assert injections.modes(server.directory) == {
        ".": "0700",
        **{Path(entry["path"]).name: "0600" for entry in result["files"]},
    }
    assert server.one_offs(arguments["run_id"]) == []


# S1, S2, S16


def test_s01_no_password_is_needed_in_the_container(server: Server) -> None:
    with Watch("PGPASSWORD") as watch:
        result = run_apart("pg_backup", server.arguments())
    assert not result.get("failed"), result["msg"]
    # Whatever the container itself was given is passed on by its name only.
    assert not [line for line in watch.found if "PGPASSWORD=" in line]


def test_s02_a_password_is_in_no_command_line(server: Server) -> None:
    arguments = server.arguments(BULKY)
    arguments["database"]["password"] = MARKED_PASSWORD
    with Watch(MARKER) as watch:
        result = run_apart("pg_backup", arguments)
        assert run_apart("pg_catalog", {"database": arguments["database"]})["row_counts"]
    assert not result.get("failed"), result["msg"]
    assert watch.found == set()
    assert watch.rounds > 50
    assert injections.holding(server.directory, MARKER) == []


@contextlib.contextmanager
def server_of_its_own(replica: DockerReplica, image: str, variables: dict[str, str]) -> Iterator[Container]:
    """A server beside the replica's, with a database that has nothing in it; it goes in the end."""
    name = f"{replica.prefix}_{uuid.uuid4().hex[:8]}"
    container = replica.client.containers.run(
        image,
        name=name,
        environment={
            "POSTGRES_USER": USER, "POSTGRES_PASSWORD": "not needed", "POSTGRES_DB": DATABASE, **variables,
        },
        detach=True,
        labels={"org.alembic-recovery.replica": name},
    )  # fmt: skip
    ready = ["env", "-u", "PGSERVICE", "-u", "PGHOST", "pg_isready", "-q", "-U", USER, "-d", DATABASE]
    try:
        wait_until(lambda: container.exec_run(ready).exit_code == 0, "the server to get ready", pause=0.2)
        yield container
    finally:
        container.remove(force=True, v=True)


@pytest.fixture
def planted(docker_replica: DockerReplica) -> Iterator[Container]:
    """Its container has been given variables that mislead PostgreSQL's programs."""
    variables = {
        "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
        "PGSERVICE": "elsewhere",
        "PGHOST": "192.0.2.1",
        "PGDATABASE": "template1",
        "PGUSER": "nobody",
        "PGCLIENTENCODING": "LATIN1",
    }
    with server_of_its_own(docker_replica, str(docker_replica.container("postgres").image.id), variables) as container:
        yield container


def test_s16_variables_of_the_container_do_not_decide(planted: Container, tmp_path: Path) -> None:
    options = {"runtime": "docker", "container": planted.name, "name": DATABASE, "user": USER}
    seen = run_module("pg_catalog", {"database": options})
    assert not seen.get("failed"), seen["msg"]
    arguments = {"database": options, "directory": str(tmp_path / "backups"), "run_id": "faults-planted"}
    result = run_module("pg_backup", arguments)
    assert not result.get("failed"), result["msg"]
    assert (result["manifest"]["database"]["name"], result["manifest"]["database"]["user"]) == (DATABASE, USER)
    assert result["manifest"]["fingerprint"] == seen["fingerprint"]


# S3, S4: the whole recovery; the last one, because it changes the replica


@pytest.mark.thorough
def test_s03_s04_the_whole_recovery_shows_no_password(server: Server, tmp_path: Path) -> None:
    """At -vvv: the application's URL with the password is in the containers' configuration, which is looked at."""
    replica = server.replica
    inventory = yaml.safe_load(replica.inventory_file.read_text())
    host = inventory["prod"]["hosts"]["production-server"]
    host["recovery_directory"] = str(tmp_path / "target")
    host["recovery_controller_directory"] = str(tmp_path / "controller")
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    environment = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local-temp"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote-temp"),
        "ANSIBLE_LOG_PATH": str(tmp_path / "ansible.log"),
    }
    started = datetime.datetime.now(datetime.UTC)
    arguments = [
        "-i",
        tmp_path / "inventory.yml",
        "-l",
        "prod",
        "-vvv",
        "--diff",
        "-e",
        "recovery_confirm=aiproxy@prod",
        # tests/docker/test_recover_docker.py looks at one with a rehearsal.
        "-e",
        "recovery_rehearse=false",
    ]
    assert server.psql("select version_num from alembic_version") == BROKEN
    with Watch(MARKER) as watch:
        run = run_playbook("recover.yml", *arguments, environment=environment, timeout=500)
    assert run.code == 0, run.text[-4000:]
    assert server.psql("select version_num from alembic_version") == HEAD
    assert MARKER not in run.text
    assert watch.found == set()
    # Of the run, too: its record, its audit, its journals, the page for emergencies, what its keeper wrote.
    assert {path.name for path in tmp_path.rglob("*")} >= RUN_FILES - REHEARSAL_FILES
    assert injections.holding(tmp_path, MARKER) == []
    assert one_offs(replica) == []
    assert server.sessions() == []
    events = replica.client.events(since=started, until=datetime.datetime.now(datetime.UTC), decode=True)
    assert [event for event in events if MARKER in json.dumps(event)] == []


def test_s17_the_tools_are_those_of_the_running_containers_image(docker_replica: DockerReplica, tmp_path: Path) -> None:
    """Dump and restore, while the tag of the server's image means another image: by its id, never by its name."""
    log, cli = tmp_path / "log", tmp_path / "docker"
    cli.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nexec docker "$@"\n')
    cli.chmod(0o755)
    tag, run_id = f"{docker_replica.prefix}-moves:latest", f"faults-{uuid.uuid4().hex[:8]}"
    mine, other = (docker_replica.container(name).image for name in ("postgres", "aiproxysrv"))
    mine.tag(tag)
    try:
        with server_of_its_own(docker_replica, tag, {}) as container:
            running = container.attrs
            assert (running["Config"]["Image"], running["Image"]) == (tag, mine.id)
            options = {"runtime": "docker", "container": container.name, "name": DATABASE, "user": USER}
            place = {"database": options, "docker_cli": str(cli), "run_id": run_id}
            other.tag(tag)
            backup = run_module("pg_backup", {**place, "directory": str(tmp_path / "backups")})
            assert backup.get("changed") is True, backup
            copy = naming.database(DATABASE, "restored", "20251021T031500Z-7f3a1c")
            restored = run_module("pg_restore", {**place, "manifest": backup["manifest_file"], "into": copy})
            assert restored.get("changed") is True, restored
    finally:
        docker_replica.client.images.remove(tag)
    made = [line for line in log.read_text().splitlines() if line.startswith(("run ", "create "))]
    assert {purpose for purpose in ("-backup", "-restore") if any(purpose in line for line in made)} == {
        "-backup", "-restore",
    }  # fmt: skip
    assert [line for line in made if running["Image"] not in line] == []
