"""The replica as processes on this machine."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import yaml

from replica.application import BROKEN, DATABASE, HEAD, State
from replica.errors import ReplicaError
from replica.expect import UNENCODED
from replica.host import HostReplica
from replica.seed import Size
from tests.replica import behaviour
from tests.support.waiting import wait_until

SMALL = Size(songs=120, rules=120)
AWKWARD_PASSWORD = "m%40rk:er/@ 'x' \"y\" \\ ä#?&="


def query(replica: HostReplica, statement: str) -> object:
    """A value from the application's database."""
    with psycopg.connect(replica.postgres.conninfo(DATABASE)) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that belong to a replica."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        surroundings = [line, process.info["cwd"] or "", *(process.info["environ"] or {}).values()]
        if process.pid != os.getpid() and any(str(directory) in text for text in surroundings):
            found.append(line)
    return found


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostReplica]:
    """A replica in the state of 2025-10-21, with an awkward password."""
    replica = HostReplica(tmp_path_factory.mktemp("broken"), password=AWKWARD_PASSWORD)
    yield replica.up(data=SMALL)
    replica.down()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostReplica]:
    """A replica at head."""
    replica = HostReplica(tmp_path_factory.mktemp("healthy"))
    yield replica.up(healthy=True, data=SMALL)
    replica.down()


@pytest.mark.parametrize("check", behaviour.HEALTHY, ids=lambda check: check.__name__)
def test_healthy(healthy: HostReplica, check: behaviour.Check) -> None:
    """All that users do works."""
    check(healthy.client)


def test_incident_answers_500_with_the_missing_column_in_the_log(broken: HostReplica) -> None:
    """What users saw on 2025-10-21, and what the log said."""
    behaviour.is_broken(broken.client)
    for program in ("api", "worker"):
        # Celery stores a failure, which the API waits for, before it writes it to its log.
        wait_until(
            lambda program=program: "column songs.sketch_id does not exist" in broken.log(program).read_text(),
            f"the log of {program} says it",
        )
    assert query(broken, "select version_num from alembic_version") == BROKEN


def test_status_says_what_is_broken(broken: HostReplica) -> None:
    """Everything runs, and the song list does not."""
    status = broken.status()
    assert status["programs"] == {"api": "RUNNING", "worker": "RUNNING"}
    assert (status["postgres"], status["songs"], status["version"]) == (True, 500, BROKEN)


def test_secrets_are_where_they_belong(broken: HostReplica) -> None:
    """The password is in its two files, which nobody else can read, and nowhere else."""
    quoted = broken.database_url.split(":", 2)[2].split("@/")[0]
    holders = set()
    for path in broken.directory.rglob("*"):
        if not path.is_file() or not os.access(path, os.R_OK) or "database" in path.parent.parts:
            continue
        content = path.read_text(errors="replace")
        if AWKWARD_PASSWORD in content or quoted in content:
            holders.add(path)
    assert holders == {broken.password_file, broken.environment_file}
    for path in (*holders, broken.supervisor_config, broken.directory / "tls" / "server.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    lines = "\n".join(processes_of(broken.directory))
    assert AWKWARD_PASSWORD not in lines
    assert quoted not in lines


def test_the_database_asks_for_the_password(broken: HostReplica) -> None:
    """The application's role gets in with its password only, owns the database, and is no superuser."""
    place = {"host": str(broken.postgres.socket_dir), "dbname": DATABASE, "user": "aiuser"}
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(**place, password="wrong")
    with psycopg.connect(**place, password=AWKWARD_PASSWORD) as connection:
        row = connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone()
        assert row == (False,)
        owner = "select pg_get_userbyid(datdba) from pg_database where datname = current_database()"
        assert connection.execute(owner).fetchone() == ("aiuser",)


def test_nothing_listens_but_the_api_on_loopback(broken: HostReplica) -> None:
    """One port for HTTPS; PostgreSQL and supervisord are on Unix sockets."""
    supervisor = psutil.Process(int((broken.directory / "supervisord.pid").read_text()))
    postmaster = int((broken.postgres.data / "postmaster.pid").read_text().split()[0])
    family = [supervisor, *supervisor.children(recursive=True), psutil.Process(postmaster)]
    found = {
        connection.laddr
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found == {("127.0.0.1", int(broken.base_url.rsplit(":", 1)[1]))}


def test_inventory_names_everything(broken: HostReplica) -> None:
    """The file that is left is the inventory; it has the parts of the contract and no password."""
    assert yaml.safe_load(broken.inventory_file.read_text()) == broken.inventory()
    host = broken.inventory()["demo"]["hosts"]["demo-server"]
    assert host["recovery_stack_name"] == "demo"
    stack = host["recovery_stack"]
    assert (Path(stack["database"]["bin_dir"]) / "pg_dump").is_file()
    assert Path(stack["app"]["python"]).is_file()
    assert (Path(stack["app"]["workdir"]) / stack["app"]["alembic_config"]).is_file()
    assert Path(stack["app"]["environment_file"]).read_text() == f"DATABASE_URL={broken.database_url}\n"
    assert [service["unit"] for service in stack["services"]] == ["api", "worker"]
    assert (stack["expect"]["current"], stack["expect"]["head"]) == (BROKEN, HEAD)


def test_rewritten_variant_the_workers_start_has_rewritten_the_rows(tmp_path: Path) -> None:
    """The worker's `alembic upgrade head && celery` ended with 0, moved nothing, and the worker is up."""
    replica = HostReplica(tmp_path / "replica")
    try:
        replica.up(variant=State.REWRITTEN, data=SMALL)
        assert f"Running upgrade {BROKEN}" in replica.log("worker").read_text()
        assert query(replica, "select version_num from alembic_version") == BROKEN
        assert query(replica, "select to_regclass('song_sketches')") is None
        assert query(replica, UNENCODED) == 0
        behaviour.is_broken(replica.client)
    finally:
        replica.down()


def test_strict_start_the_api_does_not_come_up_and_names_what_is_missing(tmp_path: Path) -> None:
    """The supervisor tries again and again; the log says why."""
    replica = HostReplica(tmp_path / "replica")
    try:
        replica.up(strict_start=True, data=SMALL)
        assert "the database lacks song_sketches, songs.sketch_id" in replica.log("api").read_text()
        wait_until(
            lambda: replica.log("supervisord").read_text().count("spawned: 'api'") >= 3,
            "the API is started again and again",
        )
    finally:
        replica.down()


def test_down_leaves_nothing_wherever_the_replica_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory that only its owner may enter, with a name too long for a socket: no trace after down."""
    with tempfile.TemporaryDirectory() as short, tempfile.TemporaryDirectory() as home:
        # PostgreSQL's own user must get into the first, and cannot get into the second.
        Path(short).chmod(0o711)
        Path(home).chmod(0o700)
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.setenv("HOME", home)
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        directory = Path(home) / ("long" * 30) / "replica"
        replica = HostReplica(directory).up(healthy=True, data=SMALL)
        assert stat.S_IMODE(Path(home).stat().st_mode) == 0o700
        assert replica.client.request("/api/v1/songs").status == 200
        assert processes_of(directory)
        data = replica.postgres.data
        assert data.is_relative_to(short)
        HostReplica(directory).down()
        assert not directory.exists()
        assert not data.exists()
        assert processes_of(directory) == processes_of(data) == []
        HostReplica(directory).down()
        assert list(Path(short).iterdir()) == []
        assert [path for path in Path(home).rglob("*") if path not in directory.parents] == []


def test_what_is_no_replica_is_left_alone(tmp_path: Path) -> None:
    """Neither up nor down touch a directory with somebody else's files."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ReplicaError, match="not empty"):
        HostReplica(tmp_path).up()
    with pytest.raises(ReplicaError, match="no replica"):
        HostReplica(tmp_path).down()
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_command_line(tmp_path: Path, root: Path) -> None:
    """The four commands, as typed."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "replica", "host", *arguments, "--dir", str(tmp_path / "replica")]
        return subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)

    missing = command("inventory")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "there is no replica" in missing.stderr
    try:
        up = command("up", "--healthy", "--songs", "10", "--rules", "10", "--postgres", "18")
        assert up.returncode == 0, up.stderr
        assert yaml.safe_load(command("status").stdout)["songs"] == 200
        assert "demo" in yaml.safe_load(command("inventory").stdout)
    finally:
        down = command("down")
    assert down.returncode == 0, down.stderr
    assert not (tmp_path / "replica").exists()
