"""The recovery over ssh, on a server that has Python, sudo and a Docker client and nothing else."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replica.application import HEAD
from replica.server import HOSTNAME, Server
from tests.docker.observation import REHEARSAL_FILES, RUN_FILES, kept
from tests.docker.production import BESIDE, MARKER, Production, Site
from tests.docker.watch import Started, watch
from tests.replica import behaviour
from tests.support.ansible_run import Run

pytestmark = [pytest.mark.docker, pytest.mark.slow, BESIDE]

#: A third of the time; Molecule shows it over ssh in every `make test`.
REHEARSE = bool(os.environ.get("EVERY_PAIR"))
# Kind, owner, mode and path, for `find`.
SEEN = "%y %u %m %p\\n"

Recap = Callable[[str], dict[str, int]]


@dataclass
class Recovered:
    """A whole run over ssh as one of the users, and what was seen of the server before and after."""

    user: str
    server: Server
    site: Site
    run: Run
    started: Started
    before: dict[str, Any]
    after: dict[str, Any]
    packages: tuple[str, str]

    @property
    def backups(self) -> str:
        """Where the server keeps this run's backups."""
        return f"{self.site.variables['recovery_directory']}/prod/backups"


@pytest.fixture(scope="module")
def sockets() -> Iterator[dict[str, str]]:
    """The setting where connections are kept open; the path of a socket must be short."""
    with tempfile.TemporaryDirectory(prefix="cp-", dir="/tmp") as directory:
        yield {"ANSIBLE_SSH_CONTROL_PATH_DIR": directory}


# In `make test`, molecule recovers over ssh as deploy.
USERS = [pytest.param(user, marks=pytest.mark.thorough) for user in ("deploy", "engineer")]


@pytest.fixture(scope="module", params=USERS)
def recovered(
    request: pytest.FixtureRequest,
    made: Production,
    server: Server,
    sockets: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Recovered:
    """Recover as a user who becomes root by sudo, and as one who may use the engine and finds containers by labels."""
    made.reset()
    user = request.param
    variables = server.inventory(user)["prod"]["hosts"][HOSTNAME]
    directory = f"{server.backups}/{user}"
    server.execute("install", "-d", "-m", "0711", "-o", user, directory)
    variables["recovery_directory"] = directory
    if user == "engineer":
        use_labels(variables["recovery_stack"], made.replica.prefix)
    site = Site(made, tmp_path_factory.mktemp(user), variables, sockets)
    before, packages = made.observe(), server.execute("dpkg", "-l")
    with watch(made.replica, MARKER) as started:
        run = site.recover("-vvv", "-e", f"recovery_rehearse={REHEARSE}")
    after = made.observe()
    return Recovered(user, server, site, run, started, before, after, (packages, server.execute("dpkg", "-l")))


def use_labels(stack: dict[str, Any], project: str) -> None:
    """Describe the stack by Compose's labels instead of by containers' names."""
    for place in (stack["database"], stack["app"], *stack["services"]):
        service = place.pop("container").removeprefix(f"{project}-").removesuffix("-1")
        place.update(compose_project=project, compose_service=service)


def test_it_recovers(recovered: Recovered, recap: Recap) -> None:
    assert recovered.run.code == 0, recovered.run.text
    # Back up, copy it, stop, close, clone, migrate, swap, start; record a baseline.
    assert recap(recovered.run.out)["changed"] == 9
    assert recovered.after["version"] == [HEAD]
    assert recovered.after["rows"] == {**recovered.before["rows"], "song_sketches": 0}
    for check in (behaviour.songs_are_listed, behaviour.details_are_shown, behaviour.worker_answers):
        check(recovered.site.production.replica.web)


def test_it_was_ssh_with_the_server_known_and_nobody_logged_in_as_root(recovered: Recovered) -> None:
    said = recovered.run.text
    assert set(re.findall(r"ESTABLISH SSH CONNECTION FOR USER: (\S+)", said)) == {recovered.user}
    assert "StrictHostKeyChecking=yes" in said
    assert ("sudo" in said) is (recovered.user == "deploy")


def test_a_server_with_another_key_is_not_believed(recovered: Recovered, tmp_path: Path) -> None:
    """The same connection, with the key of somebody else expected."""
    key = tmp_path / "other"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    assert subprocess.run(command, check=False).returncode == 0
    known = tmp_path / "known_hosts"
    known.write_text(f"{recovered.server.name} {' '.join(key.with_suffix('.pub').read_text().split()[:2])}\n")
    variables = dict(recovered.site.variables)
    was = str(recovered.server.directory / "known_hosts")
    assert was in variables["ansible_ssh_common_args"]
    variables["ansible_ssh_common_args"] = variables["ansible_ssh_common_args"].replace(was, str(known))
    # A connection that is open already would not look at the key.
    with tempfile.TemporaryDirectory(prefix="cp-", dir="/tmp") as sockets:
        environment = {"ANSIBLE_SSH_CONTROL_PATH_DIR": sockets}
        run = Site(recovered.site.production, tmp_path, variables, environment).play("playbooks/status.yml")

    assert run.code == 4, run.text
    assert "Host key verification failed" in run.text


def test_the_backup_came_by_sftp_and_is_the_same_on_both_sides(recovered: Recovered) -> None:
    assert "sftp> get" in recovered.run.text or "SSH: EXEC sftp" in recovered.run.text
    copies = sorted(path for path in recovered.site.controller.rglob("*") if path.is_file())
    assert [path.suffix for path in copies] == [".dump", ".sql", ".json"]
    for path in copies:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        there = recovered.server.execute("sha256sum", f"{recovered.backups}/{path.name}").split()[0]
        assert there == hashlib.sha256(path.read_bytes()).hexdigest()
    listed = recovered.server.execute(
        "stat", "-c", "%U %a", recovered.backups, *(f"{recovered.backups}/{path.name}" for path in copies)
    )
    assert listed.splitlines() == [f"{recovered.user} 700", *[f"{recovered.user} 600"] * 3]


def test_pg_dump_ran_as_the_login_user(recovered: Recovered) -> None:
    """Also where sudo has made the module root: a file of root's could not be copied by sftp."""
    number = recovered.server.execute("id", "-u", recovered.user).strip()
    group = recovered.server.execute("id", "-g", recovered.user).strip()
    assert recovered.started.one_off("backup")["Config"]["User"] == f"{number}:{group}"


def test_nothing_was_installed(recovered: Recovered) -> None:
    before, after = recovered.packages
    assert "openssh-server" in before
    assert after == before
    for program in ("psql", "pip", "pip3", "alembic"):
        recovered.server.execute("sh", "-c", f"! command -v {program}")
    recovered.server.execute("python3", "-c", "import importlib.util as u; assert u.find_spec('psycopg') is None")


def test_nothing_is_left_but_backups_and_what_the_run_wrote_down(recovered: Recovered) -> None:
    assert recovered.after["changed_files"]["server"] == recovered.before["changed_files"]["server"]
    for home in ("/root", f"/home/{recovered.user}"):
        recovered.server.execute("test", "!", "-e", f"{home}/.ansible")
    place = recovered.site.variables["recovery_directory"]
    found = [line.split(" ") for line in recovered.server.execute("find", place, "-printf", SEEN).splitlines()]
    files = sorted(Path(path).name for kind, _, _, path in found if kind == "f")
    (dump,) = (name.removesuffix(".dump") for name in files if name.endswith(".dump"))
    backup = {f"{dump}.{suffix}" for suffix in ("dump", "globals.sql", "manifest.json")}
    written = RUN_FILES if REHEARSE else RUN_FILES - REHEARSAL_FILES
    (baseline,) = (name for name in files if name.startswith("baseline-"))
    assert sorted(files) == sorted(backup | written | {baseline, "revisions.json"})
    # Also what the keeper writes, which is root's process where sudo has made the module root.
    assert {(owner, mode) for kind, owner, mode, _ in found if kind == "f"} == {(recovered.user, "600")}
    below = [
        (owner, mode) for kind, owner, mode, path in found if kind == "d" and path.count("/") > place.count("/") + 1
    ]
    assert set(below) == {(recovered.user, "700")}
    assert recovered.after["one_offs"] == []
    # The keeper has ended with the run.
    running = recovered.server.execute("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "keeper" not in running
    sessions = "select application_name from pg_stat_activity where application_name like 'alembic-recovery%'"
    assert recovered.site.production.replica.query(sessions) == ""


def test_the_database_from_before_is_kept_closed_and_is_what_it_was(recovered: Recovered) -> None:
    production = recovered.site.production
    ((old, is_open),) = production.beside().items()
    assert is_open is False
    was = kept(production.replica, old)
    for part in ("version", "rows", "content", "sequences", "schema", "writes"):
        assert was[part] == recovered.before[part], part


def test_containers_are_the_same_and_are_restarted_as_before(recovered: Recovered) -> None:
    for service, was in recovered.before["containers"].items():
        is_ = recovered.after["containers"][service]
        assert {part: is_[part] for part in ("id", "image", "policy", "state")} == {
            part: was[part] for part in ("id", "image", "policy", "state")
        }
        assert (is_["started"] != was["started"]) is (service in ("aiproxysrv", "celery-worker"))


def test_s02_no_password_is_in_a_process_list_or_in_the_output(recovered: Recovered) -> None:
    assert recovered.started.secrets == set()
    assert MARKER not in recovered.run.text


def test_a_second_run_changes_nothing(recovered: Recovered, recap: Recap) -> None:
    run = recovered.site.recover()
    assert run.code == 0, run.text
    assert recap(run.out)["changed"] == 0


# -- what stands in the way --------------------------------------------------------------------------------------


def test_a_user_who_may_not_use_the_engine_is_told_what_to_do(
    made: Production, server: Server, sockets: dict[str, str], tmp_path: Path
) -> None:
    """Without sudo, deploy is not in the engine's group."""
    variables = {**server.inventory("deploy")["prod"]["hosts"][HOSTNAME], "ansible_become": False}
    run = Site(made, tmp_path, variables, sockets).recover()
    assert run.code == 2, run.text
    said = " ".join(run.text.split())
    assert "may not talk to the Docker Engine" in said
    assert "ansible_become: true" in said


def test_a_server_without_the_docker_command_is_told_apart(
    made: Production, server: Server, sockets: dict[str, str], tmp_path: Path
) -> None:
    """The command is where a login does not look, and then named by its path."""
    places = ["/usr/local/bin/docker", "/usr/bin/docker"]
    there = [path for path in places if server.container.exec_run(["test", "-e", path])[0] == 0]
    server.execute("mkdir", "-p", "/hidden")
    for number, path in enumerate(there):
        server.execute("mv", path, f"/hidden/docker-{number}")
    try:
        variables = server.inventory("engineer")["prod"]["hosts"][HOSTNAME]
        site = Site(made, tmp_path, variables, sockets)
        missing = site.play("playbooks/status.yml")
        variables["recovery_stack"]["docker_cli"] = "/hidden/docker-0"
        named = site.play("playbooks/status.yml")
    finally:
        for number, path in enumerate(there):
            server.execute("mv", f"/hidden/docker-{number}", path)
        server.execute("rmdir", "/hidden")
    assert missing.code == 2, missing.text
    said = " ".join(missing.text.split())
    assert "There is no `docker` command on this host" in said
    assert "docker_cli" in said
    assert named.code == 0, named.text
    assert "Verdict: " in named.out
