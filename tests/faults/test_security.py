"""The points of the security checklist that apply to what is built; docs/faults.md is the table."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg import sql

from replica import seed
from replica.application import BROKEN, HEAD, USER
from replica.databases import AppDatabase, DatabaseFactory
from replica.host import HostReplica
from tests.docker.observation import RUN_FILES
from tests.faults import injections
from tests.faults.conftest import MARKED_PASSWORD, MARKER, Place, Site
from tests.faults.injections import described, run_apart
from tests.support.ansible_run import ROOT, Run, run, run_playbook
from tests.support.command_lines import Watch
from tests.support.modules import run_module

OPEN_BITS = 0o077


def tracked() -> list[Path]:
    """The files of the repository."""
    done = run("git", "ls-files", "-z")
    return [ROOT / name for name in done.out.split("\0") if name]


def shipped() -> list[Path]:
    """Those of them that run in a recovery."""
    ours = ("action_plugins", "callback_plugins", "inventories", "library", "module_utils", "playbooks", "roles")
    found = [path for path in tracked() if path.relative_to(ROOT).parts[0] in ours]
    return [*found, ROOT / "recover.yml", ROOT / "ansible.cfg"]


def tasks(node: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a playbook or task file."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from tasks(value)
    elif isinstance(node, list):
        for value in node:
            yield from tasks(value)


# S1 to S5: secrets


def test_s01_no_secret_is_needed_where_postgresql_asks_for_none(place: Place, databases: DatabaseFactory) -> None:
    """Over the socket as its own user (`peer`): no password is asked for and none is given to anybody."""
    database = databases.create()
    options = described(database)
    del options["password"]
    result = run_module("pg_backup", {**place.arguments(database), "database": {**options, "user": "postgres"}})
    assert not result.get("failed"), result
    refused = run_module("pg_catalog", {"database": options})
    assert refused["failed"]
    assert "Set recovery_stack.database.password (from Ansible Vault)" in refused["msg"]
    database.drop()


def test_s02_no_task_puts_a_secret_into_the_environment() -> None:
    """Ansible writes `environment:` into the shell's command line, which everybody on the target can read."""
    for path in shipped():
        if path.suffix == ".yml" and path.parts[-2] != "meta":
            for task in tasks(yaml.safe_load(path.read_text())):
                assert "environment" not in task or "runtime" in task, f"{path} has an environment:"


@pytest.fixture(scope="module")
def marked_replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostReplica]:
    """A replica on this machine whose database password can be found again."""
    replica = HostReplica(tmp_path_factory.mktemp("marked") / "replica", password=MARKED_PASSWORD)
    yield replica.up(data=seed.Size(songs=200, rules=200))
    replica.down()


@contextlib.contextmanager
def system_log() -> Iterator[list[bytes]]:
    """What is written to the system's log meanwhile, where nobody else is listening there."""
    said: list[bytes] = []
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        log.bind("/dev/log")
    except OSError:
        log.close()
        yield said
        return
    log.settimeout(0.2)
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                said.append(log.recv(65536))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join()
        log.close()
        Path("/dev/log").unlink()


class Observed:
    """A run of recover.yml with all that is asked for to be said, and all that it has left anywhere."""

    def __init__(self, replica: HostReplica, directory: Path) -> None:
        self.directory = directory
        inventory = yaml.safe_load(replica.inventory_file.read_text())
        server = inventory["demo"]["hosts"]["demo-server"]
        # As a user would do it: what is secret is in Ansible Vault and nowhere else.
        (directory / "vault-password").write_text("open sesame")
        server["recovery_stack"]["database"]["password"] = "{{ vault_password }}"
        app = server["recovery_stack"]["app"]
        del app["environment_file"]
        app["environment"] = {
            "DATABASE_URL": "{{ vault_url }}",
            "API_TOKEN": "{{ vault_token }}",
            "PYTHONUNBUFFERED": "1",
            "MODE": "d",
        }
        server["recovery_directory"] = str(directory / "target")
        server["recovery_controller_directory"] = str(directory / "controller")
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
        secrets = {
            "vault_password": MARKED_PASSWORD,
            "vault_url": replica.database_url,
            "vault_token": f"{MARKER}-token",
        }
        encrypted = run(
            *("ansible-vault", "encrypt", "--vault-password-file", directory / "vault-password"),
            *("--output", directory / "vault.yml"),
            stdin=yaml.safe_dump(secrets),
        )
        assert encrypted.code == 0, encrypted.text
        self.home = directory / "home"
        self.home.mkdir()
        self.environment = {
            "HOME": str(self.home),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.home / "local-temp"),
            "ANSIBLE_REMOTE_TEMP": str(self.home / "remote-temp"),
            "ANSIBLE_LOG_PATH": str(directory / "ansible.log"),
        }

    def run(self, playbook: str, *arguments: str | Path) -> Run:
        """Run a playbook at -vvv."""
        return run_playbook(
            playbook,
            "-vvv",
            *("-i", self.directory / "inventory.yml", "-l", "demo"),
            *("--vault-password-file", self.directory / "vault-password", "-e", f"@{self.directory / 'vault.yml'}"),
            *arguments,
            environment=self.environment,
            timeout=500,
        )


@pytest.fixture(scope="module")
def observed(
    marked_replica: HostReplica, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Observed, dict[str, Run], Watch, list[bytes]]:
    """The broken production looked at with a wrong key in its description, and recovered, at -vvv."""
    seen = Observed(marked_replica, tmp_path_factory.mktemp("observed"))
    wrong = seen.directory / "wrong.yml"
    runs = {}
    with Watch(MARKER) as watch, system_log() as said:
        # A key that nobody knows, with a secret as its value: refused without showing it.
        text = (seen.directory / "inventory.yml").read_text()
        wrong.write_text(text.replace("          password:", "          passwd:"))
        assert wrong.read_text() != text
        runs["misspelt"] = seen.run("playbooks/status.yml", "-i", wrong)
        runs["recover"] = seen.run("recover.yml", "--diff", "-e", "recovery_confirm=aiproxy@demo")
    return seen, runs, watch, said


Seen = tuple[Observed, dict[str, Run], Watch, list[bytes]]


def test_s03_the_observed_run_recovered(observed: Seen, marked_replica: HostReplica) -> None:
    """Otherwise what follows would prove nothing."""
    _, runs, watch, _ = observed
    assert runs["recover"].code == 0, runs["recover"].text[-4000:]
    assert marked_replica.alembic("current").stdout.split()[0] == HEAD
    assert "pg_backup" in runs["recover"].out
    assert "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in runs["recover"].out
    assert watch.rounds > 200


@pytest.mark.parametrize("name", ["misspelt", "recover"])
def test_s03_no_password_in_any_output_at_vvv(observed: Seen, name: str) -> None:
    found = observed[1][name]
    assert MARKER not in found.text


def test_s03_a_misspelt_key_is_refused_by_name(observed: Seen) -> None:
    found = observed[1]["misspelt"]
    assert found.code == 2
    assert "passwd" in found.text


def test_s02_s03_no_password_in_any_process_list(observed: Seen) -> None:
    assert observed[2].found == set()


def test_s03_no_password_in_the_system_log(observed: Seen) -> None:
    # Other runs on this machine may log there, too.
    ours = (MARKER.encode(), str(observed[0].directory).encode())
    assert [line for line in observed[3] if any(text in line for text in ours)] == []


def test_s03_s08_no_password_in_any_file_that_is_left(observed: Seen, marked_replica: HostReplica) -> None:
    seen = observed[0]
    assert injections.holding(seen.directory, MARKER) == []
    left = {path.name for path in seen.directory.rglob("*") if path.is_file()}
    assert any(name.endswith(".manifest.json") for name in left)
    assert left >= RUN_FILES, "the journals, the record and what the keeper wrote were looked at, too"
    assert "ansible.log" in left
    # Where the user, that is the replica, has put it: nothing has been added to that.
    assert [
        name
        for name in injections.holding(marked_replica.directory, MARKER)
        if not name.startswith(("database.password", "database.env"))
    ] == []


def test_s08_nothing_temporary_is_left(observed: Seen) -> None:
    seen = observed[0]
    assert list(seen.directory.rglob("*.partial")) == []
    for temporary in ("local-temp", "remote-temp"):
        directory = seen.home / temporary
        assert not directory.exists() or [path for path in directory.rglob("*") if path.is_file()] == []


def test_s06_s07_everything_that_is_left_is_private(observed: Seen) -> None:
    seen = observed[0]
    for side in ("target", "controller"):
        found = {}
        for path in (seen.directory / side).rglob("*"):
            found[str(path.relative_to(seen.directory))] = path.lstat().st_mode & OPEN_BITS
            if path.is_file():
                assert path.lstat().st_mode & 0o777 == 0o600, path
        assert found
        assert all(mode in (0, 0o011) for mode in found.values()), found


def test_s04_variables_of_the_application_are_not_shown(observed: Seen) -> None:
    """The application's URL and a token, given in the inventory; `1` is none, and is not masked wherever it stands."""
    found = observed[1]["recover"].text
    assert MARKER not in found
    assert f"Missing: {HEAD}_add_song_sketches_table.py" in " ".join(found.split())


@pytest.mark.parametrize("password", ["songs", "aiproxy", "pg", "1"])
def test_s03_a_password_that_is_a_part_of_a_name_is_refused_before_anything_is_done(
    place: Place, databases: DatabaseFactory, password: str
) -> None:
    """Ansible masks a password also in the middle of a path: the next task would look for `********_run.dump`."""
    name = f"{password}_and_more"
    database = databases.create(name=name)
    options = {**described(database), "user": "postgres", "password": password}
    result = run_module("pg_backup", {**place.arguments(database), "database": options})
    assert result["failed"]
    assert "Ansible masks a secret wherever it stands" in result["msg"]
    assert place.names() == []
    database.drop()


_LITERAL_SECRET = re.compile(
    r"(?i)(password|passwd|secret|token|api_key)['\"]?\s*[:=]\s*['\"]?(?!\{\{|<|null|none|true|false|VALUE_)[A-Za-z0-9+/]{6,}"
)
_KEY = re.compile("-----BEGIN [A-Z ]*" + "PRIVATE KEY-----")


def test_s05_no_secret_is_shipped() -> None:
    for path in shipped():
        text = path.read_text()
        assert not _KEY.search(text), path
        if path.suffix in (".yml", ".cfg"):
            assert [line for line in text.splitlines() if _LITERAL_SECRET.search(line)] == [], path


# S6 to S11: files


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_s06_s07_private_whatever_the_umask_is(broken_database: AppDatabase, tmp_path: Path, umask: int) -> None:
    directory = tmp_path / "new" / "way" / "backups"
    arguments = {"database": described(broken_database), "directory": str(directory), "run_id": "run"}
    result = run_apart("pg_backup", arguments, umask=umask)
    assert result["changed"]
    assert injections.modes(tmp_path / "new") == {
        ".": "0711",
        "way": "0711",
        "way/backups": "0700",
        **{f"way/backups/{Path(entry['path']).name}": "0600" for entry in result["files"]},
    }


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_s06_s07_private_on_the_controller_whatever_the_umask_is(site: Site, place: Place, umask: int) -> None:
    made = run_module("pg_backup", place.arguments(site.database))
    book = [
        {"name": "Copy", "backup_fetch": {"files": made["files"], "directory": str(site.controller / "way" / "here")}}
    ]
    before = os.umask(umask)
    try:
        copied = site.play(book)
    finally:
        os.umask(before)
    assert copied.code == 0, copied.text
    assert injections.modes(site.controller) == {
        ".": "0711",
        "way": "0711",
        "way/here": "0700",
        **{f"way/here/{Path(entry['path']).name}": "0600" for entry in made["files"]},
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_s06_with_sudo_the_files_belong_to_the_login_user(broken_database: AppDatabase, tmp_path: Path) -> None:
    """Else they could not be copied by sftp, and through `become` they would be held in memory several times."""
    place = Place(tmp_path / "backups")
    environment = {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    result = run_apart("pg_backup", place.arguments(broken_database), environment=environment, umask=0o077)
    for path in [place.directory, *place.directory.iterdir()]:
        assert path.stat().st_uid == 65534, path
        assert path.stat().st_mode & OPEN_BITS == 0, path
    assert len(place.names()) == len(result["files"]) == 3


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: path.symlink_to(path.parent), "links are not followed"),
        (lambda path: path.mkdir(mode=0o755), "is open to others (mode 0755)"),
        (lambda path: path.write_text("a file"), "is not a directory"),
        (lambda path: (path.mkdir(mode=0o700), os.chown(path, 65534, 65534)), "belongs to user 65534"),
    ],
    ids=["link", "open", "file", "somebody_else"],
)
def test_s07_a_place_that_is_not_ours_alone_is_refused(
    broken_database: AppDatabase, tmp_path: Path, prepare: Callable[[Path], object], said: str
) -> None:
    if "user" in said and os.geteuid() != 0:
        pytest.skip("only root can give directories away")
    directory = tmp_path / "backups"
    prepare(directory)
    before = injections.modes(tmp_path)
    arguments = {"database": described(broken_database), "directory": str(directory), "run_id": "run"}
    result = run_module("pg_backup", arguments)
    assert result["failed"]
    assert said in result["msg"]
    assert injections.modes(tmp_path) == before


@pytest.mark.parametrize("directory", ["/tmp", "/var/tmp", "/dev/shm", "/dev/null/backups"])
def test_s07_everybodys_places_and_impossible_ones_are_refused(broken_database: AppDatabase, directory: str) -> None:
    arguments = {"database": described(broken_database), "directory": directory, "run_id": "run"}
    result = run_module("pg_backup", arguments)
    assert result["failed"]
    assert directory in result["msg"]
    assert "recovery_directory" in result["msg"] or "Choose another place" in result["msg"]


def test_s07_s08_a_link_that_waits_under_the_name_is_not_followed(place: Place, broken_database: AppDatabase) -> None:
    victim = place.directory.parent / "victim"
    victim.write_text("untouched")
    place.directory.mkdir(mode=0o700)
    arguments = place.arguments(broken_database)
    stem = place.directory / f"{broken_database.name}_{arguments['run_id']}"
    for suffix in (".dump.partial", ".globals.sql"):
        link = Path(f"{stem}{suffix}")
        link.symlink_to(victim)
        result = run_module("pg_backup", arguments)
        assert result["failed"]
        assert "nothing is overwritten" in result["msg"]
        assert victim.read_text() == "untouched"
        link.unlink()


def test_s10_the_saved_roles_hold_no_password(place: Place, broken_database: AppDatabase) -> None:
    """Also where the role may read them: a superuser."""
    options = {**described(broken_database), "user": "postgres", "password": None}
    result = run_module("pg_backup", {**place.arguments(broken_database), "database": options})
    saved = Path(next(entry["path"] for entry in result["files"] if entry["path"].endswith(".globals.sql")))
    verifier = broken_database.server.execute(sql.SQL("select rolpassword from pg_authid where rolname = 'aiuser'"))
    assert verifier[0][0].startswith("SCRAM-SHA-256$")
    assert f"CREATE ROLE {USER}" in saved.read_text()
    assert "SCRAM" not in saved.read_text()
    assert "PASSWORD" not in saved.read_text()


def test_s11_the_hashes_are_on_both_sides(observed: Seen) -> None:
    directory = observed[0].directory
    [target] = (directory / "target").rglob("*.manifest.json")
    [copy] = (directory / "controller").rglob("*.manifest.json")
    assert target.read_bytes() == copy.read_bytes()
    manifest = json.loads(copy.read_text())
    for part in (manifest["file"], manifest["globals"]):
        for side in (target.parent, copy.parent):
            done = subprocess.run(["sha256sum", side / part["name"]], capture_output=True, text=True, check=True)
            assert done.stdout.split()[0] == part["sha256"]


# S12 to S19: execution


def test_s12_stored_text_that_looks_like_sql_stays_text(
    place: Place, broken_database: AppDatabase, tmp_path: Path
) -> None:
    """What a plain dump would have had executed on the way back: restored as the text that it is."""
    texts = [
        "Bobby; update users set display_name = 'INJECTED'; --",
        f"\\! touch {tmp_path / 'owned'}",
        "\\.\n\\! id",
        "\\restrict x\n\\unrestrict x",
    ]
    for number, text in enumerate(texts):
        statement = sql.SQL("insert into users (email, display_name, created_at) values ({}, {}, now())")
        values = sql.Literal(f"x{number}"), sql.Literal(text)
        broken_database.server.execute(statement.format(*values), broken_database.name)
    result = run_module("pg_backup", place.arguments(broken_database))
    with injections.restoring(broken_database, result["dump"]) as copy:
        assert [
            row[0] for row in copy.rows("select display_name from users where email like 'x%' order by id")
        ] == texts
    assert not (tmp_path / "owned").exists()
    # Nothing here gives a file to psql, and no shell is between.
    for path in shipped():
        if path.suffix == ".py":
            text = path.read_text()
            assert "shell=True" not in text, path
            assert "os.system" not in text, path
            assert not re.search(r"psql.{0,40}(--file|\"-f\")", text), path


HOSTILE = [
    'it\'s "quoted"',
    "$HOME `touch OWNED` $(touch OWNED) ;touch OWNED",
    "-x",
    "--help",
    "dbname=postgres user=x",
    "postgresql://127.0.0.1/x",
    "../up",
    "back\\slash\nline",
    "'; drop table songs; --",
    "%s {0} {{ 7 * 7 }} :name",
    "Größe🎵",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_s15_hostile_database_names(
    place: Place, databases: DatabaseFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    database = databases.create(name=name)
    try:
        result = run_module("pg_backup", place.arguments(database))
        assert not result.get("failed"), result["msg"]
        assert result["manifest"]["database"]["name"] == name
        assert Path(result["dump"]).parent == place.directory
        with injections.restoring(database, result["dump"]) as copy:
            assert injections.counts(copy) == injections.counts(database) == result["manifest"]["row_counts"]
        # The same through psql, as in a container.
        monkeypatch.setitem(sys.modules, "psycopg", None)
        seen = run_module("pg_catalog", {"database": described(database)})
        assert seen["row_counts"] == result["manifest"]["row_counts"]
        assert seen["fingerprint"] == result["manifest"]["fingerprint"]
        pruned = run_module("pg_backup_prune", {"directory": str(place.directory), "database_name": name})
        assert pruned["kept"] == [result["manifest_file"]]
        asked = run_module(
            "alembic_status",
            {
                "database": described(database),
                "application": {
                    "runtime": "host",
                    "workdir": str(database.application),
                    "python": sys.executable,
                    "environment": {"DATABASE_URL": database.url},
                },
            },
        )
        assert asked.get("current") == [BROKEN], asked
    finally:
        monkeypatch.undo()
        database.drop()
    assert {path.name for path in tmp_path.iterdir()} <= {"backups"}


@pytest.mark.parametrize("through", ["psycopg", "psql"])
def test_s15_hostile_names_inside_of_the_database(
    place: Place, broken_database: AppDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, through: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name for name in HOSTILE if len(name) > 2] + ['x"; \\! touch OWNED\n\\! touch OWNED', "\\! touch OWNED"]
    for name in names:
        broken_database.server.execute(
            sql.SQL("create table {} as select 1 as {}").format(sql.Identifier(name), sql.Identifier(name)),
            broken_database.name,
        )
        broken_database.server.execute(
            sql.SQL("alter table {} owner to {}").format(sql.Identifier(name), sql.Identifier(USER)),
            broken_database.name,
        )
    if through == "psql":
        monkeypatch.setitem(sys.modules, "psycopg", None)
    result = run_module("pg_backup", place.arguments(broken_database))
    assert not result.get("failed"), result["msg"]
    for name in names:
        assert result["manifest"]["row_counts"][f"public.{name}"] == 1
    content = run_module("pg_catalog", {"database": described(broken_database), "content": True})["content"]
    assert {f"public.{name}" for name in names} <= content.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"backups"}


@pytest.mark.parametrize("key", ["run_id", "directory", "user", "host"])
def test_s15_hostile_values_elsewhere(
    place: Place, broken_database: AppDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("../x", "$(touch OWNED)", "; touch OWNED", "-x", "a b", "x\ny"):
        arguments = place.arguments(broken_database)
        if key == "user":
            arguments["database"][key] = value
        elif key == "host":
            arguments["database"].update(host=f"/nowhere/{value}" if value != "-x" else value * 40, unix_socket=None)
        elif key == "directory":
            arguments["directory"] = str(place.directory / value)
        else:
            arguments["run_id"] = value
        result = run_module("pg_backup", arguments)
        # A directory may be called whatever its owner likes.
        assert bool(result.get("failed")) == (key != "directory"), (value, result)
    assert [path.name for path in tmp_path.rglob("OWNED") if path.is_file()] == []


PLANTED = {
    "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=off",
    "PGSERVICE": "elsewhere",
    "PGSERVICEFILE": "/nowhere",
    "PGPASSFILE": "/nowhere",
    "PGHOST": "192.0.2.1",
    "PGPORT": "1",
    "PGDATABASE": "template1",
    "PGUSER": "postgres",
    "PGPASSWORD": "planted",
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "German",
    "PGTARGETSESSIONATTRS": "standby",
    "PG_COLOR": "always",
}


@pytest.mark.parametrize("through", ["psycopg", "psql"])
def test_s16_planted_variables_do_not_decide(
    place: Place, broken_database: AppDatabase, tmp_path: Path, through: str
) -> None:
    """Neither for libpq in the module's own process nor for PostgreSQL's programs."""
    startup = tmp_path / "home"
    startup.mkdir()
    (startup / ".psqlrc").write_text(f"\\! touch {tmp_path / 'owned'}\n\\echo planted\n")
    (startup / "sitecustomize.py").write_text("import sys\nsys.modules['psycopg'] = None\n")
    planted = {**PLANTED, "HOME": str(startup), "PSQLRC": str(startup / ".psqlrc")}
    if through == "psql":
        planted["PYTHONPATH"] = str(startup)
    quiet = run_apart("pg_catalog", {"database": described(broken_database)})
    result = run_apart("pg_backup", place.arguments(broken_database), environment=planted)
    assert not result.get("failed"), result["msg"]
    assert result["manifest"]["database"]["name"] == broken_database.name
    assert result["manifest"]["database"]["user"] == USER
    assert result["manifest"]["fingerprint"] == quiet["fingerprint"]
    assert not (tmp_path / "owned").exists()


def test_s18_host_keys_are_checked() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "ansible.cfg")
    assert not settings.has_option("defaults", "host_key_checking")
    for path in shipped():
        text = path.read_text()
        for word in ("StrictHostKeyChecking", "UserKnownHostsFile", "host_key_checking"):
            assert word.lower() not in text.lower(), f"{path} says something about {word}"
    shown = run("ansible-config", "dump", "--type", "all", environment={"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")})
    checks = [line for line in shown.out.splitlines() if line.startswith(("HOST_KEY_CHECKING", "host_key_checking"))]
    assert checks
    assert all(line.endswith("= True") for line in checks)


def test_s18_an_unknown_host_is_not_spoken_with(site: Site, ssh_server: injections.SshServer) -> None:
    connection = ssh_server.variables()
    Path(ssh_server.directory / "nothing").touch()
    connection["ansible_ssh_common_args"] = f"-o UserKnownHostsFile={ssh_server.directory / 'nothing'}"
    # A connection that an earlier test has left open would not look at the key.
    environment = {"ANSIBLE_SSH_CONTROL_PATH_DIR": f"{site.environment['ANSIBLE_SSH_CONTROL_PATH_DIR']}/unknown"}
    speak = [{"name": "Speak", "ansible.builtin.command": {"argv": ["true"]}}]
    refused = site.play(speak, connection, environment=environment)
    assert refused.code == 4
    assert "Host key verification failed" in refused.text


def test_s18_the_temporary_directories_are_private(site: Site) -> None:
    """Without pipelining, when modules are written to the target as files."""
    watcher = [
        {
            "name": "Look",
            "ansible.builtin.command": {"argv": ["stat", "-c", "%a", "{{ lookup('env', 'ANSIBLE_REMOTE_TEMP') }}"]},
            "register": "seen",
        },
        {"name": "Show", "ansible.builtin.debug": {"msg": "mode {{ seen.stdout }}"}},
    ]
    shown = site.play(watcher, environment={"ANSIBLE_PIPELINING": "false"})
    assert "mode 700" in shown.text, shown.text


def test_s19_the_role_is_no_superuser(broken_database: AppDatabase, site: Site, marked_replica: HostReplica) -> None:
    """All of this works with the role that owns the tables and may make databases; there was no other."""
    question = sql.SQL("select rolsuper, rolcreatedb, rolcreaterole from pg_roles where rolname = 'aiuser'")
    assert broken_database.server.execute(question) == [(False, True, False)]
    assert marked_replica.postgres.execute(question) == [(False, True, False)]


_PIN = re.compile(r"^[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][0-9A-Za-z.]*(; .+)?$")


def test_s23_every_requirement_has_one_exact_version() -> None:
    names: dict[str, set[str]] = {}
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for line in path.read_text().splitlines():
            if not line or line.startswith(("#", "-c ", "-r ")):
                continue
            assert _PIN.match(line), f"{path.name}: {line}"
            name = re.split(r"[=\[]", line)[0].lower().replace("_", "-")
            names.setdefault(path.stem, set()).add(name)
    # What they bring along is pinned, too.
    for stem in ("run", "demo", "make"):
        assert names[stem] <= names["constraints"], stem


def test_s23_what_is_dangerous_is_an_error_for_ansible_lint() -> None:
    settings = yaml.safe_load((ROOT / ".ansible-lint").read_text())
    assert settings["profile"] == "production"
    assert not settings.get("skip_list")
    assert not settings.get("warn_list")
