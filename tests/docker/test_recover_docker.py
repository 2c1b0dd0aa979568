"""`recover.yml` on the replica in containers: what it survives, what it starts for that, and what it refuses."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replica.application import HEAD, State
from replica.docker import DockerReplica
from replica.expect import REPLACEMENTS, UNENCODED
from tests.docker.conftest import SMALL
from tests.docker.observation import OF_LABEL, ONE_OFF_LABEL, RUN_FILES, ask, engine, kept, written
from tests.docker.production import MARKER, PASSWORD, Production, Site
from tests.docker.watch import Started, watch
from tests.replica import behaviour
from tests.support.ansible_run import Run
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow]

VERSION = "select version_num from alembic_version"
READING = (
    behaviour.page_is_served,
    behaviour.songs_are_listed,
    behaviour.details_are_shown,
    behaviour.sound_plays,
    behaviour.worker_answers,
)
CHANGED_COLUMNS = {"alembic_version.version_num", "lyric_parsing_rules.replacement"}

Recap = Callable[[str], dict[str, int]]


# -- acceptance 5: the API is stopped ------------------------------------------------------------------------------


@dataclass
class Recovered:
    """One whole run, with the API's container stopped before it, and what was seen of it."""

    production: Production
    site: Site
    run: Run
    started: Started
    before: dict[str, Any]
    after: dict[str, Any]
    statements: list[Statement]

    @property
    def old(self) -> str:
        """The name of the database from before."""
        (name,) = self.production.beside()
        return name


@dataclass(frozen=True)
class Statement:
    """One that changes something, as the server has written it into its log."""

    database: str
    session: str
    sql: str


@pytest.fixture(scope="module")
def recovered(made: Production, tmp_path_factory: pytest.TempPathFactory) -> Recovered:
    """Stop the API, recover, and look."""
    made.reset()
    made.replica.container("aiproxysrv").stop(timeout=5)
    site = Site(made, tmp_path_factory.mktemp("stopped"), made.variables())
    before = made.observe()
    with watch(made.replica, MARKER) as started, statements(made.replica) as seen:
        run = site.recover("-vvv")
    return Recovered(made, site, run, started, before, made.observe(), seen)


@contextlib.contextmanager
def statements(replica: DockerReplica) -> Iterator[list[Statement]]:
    """Have the server log what changes something, and in which database; read it when the context ends."""
    seen: list[Statement] = []
    settings = {"log_statement": "'mod'", "log_line_prefix": "'@@%d@%a@'"}
    since = datetime.datetime.now(datetime.UTC)
    for name, value in settings.items():
        ask(replica, f"alter system set {name} = {value}", "postgres")
    ask(replica, "select pg_reload_conf()", "postgres")
    try:
        yield seen
        log = replica.container("postgres").logs(since=since).decode()
        for entry in log.split("\n@@"):
            place, _, said = entry.partition("LOG:  ")
            if said.startswith(("statement: ", "execute ")) and place.count("@") == 2:
                name, session, _ = place.split("@")
                seen.append(Statement(name, session, said.partition(": ")[2]))
    finally:
        for name in settings:
            ask(replica, f"alter system reset {name}", "postgres")
        ask(replica, "select pg_reload_conf()", "postgres")


def test_acceptance_5_it_recovers_although_the_api_is_stopped(recovered: Recovered, recap: Recap) -> None:
    assert recovered.before["containers"]["aiproxysrv"]["state"] == "exited"
    assert recovered.run.code == 0, recovered.run.text
    assert recap(recovered.run.out)["changed"] >= 4
    assert recovered.after["version"] == [HEAD]
    for service in ("aiproxysrv", "celery-worker"):
        state = recovered.production.replica.container(service).attrs["State"]
        assert (state["Status"], state["Health"]["Status"]) == ("running", "healthy")


@pytest.mark.parametrize("check", READING, ids=lambda check: check.__name__)
def test_acceptance_2_the_application_works(recovered: Recovered, check: behaviour.Check) -> None:
    check(recovered.production.replica.web)


def test_acceptance_3_all_other_data_is_identical(recovered: Recovered) -> None:
    kept = {name: text for name, text in recovered.before["content"].items() if name not in CHANGED_COLUMNS}

    assert len(kept) > 20
    assert {name: recovered.after["content"][name] for name in kept} == kept
    assert recovered.after["sequences"] == recovered.before["sequences"]
    assert recovered.production.replica.query(UNENCODED) == "0"


def test_the_database_from_before_is_kept_closed_and_is_what_it_was(recovered: Recovered) -> None:
    """Seen with PostgreSQL's own programs: schema, rows and checksums, and that nobody has written into it."""
    assert recovered.production.beside() == {recovered.old: False}
    assert recovered.old.startswith("aiproxy_old_")
    assert f"Kept: {recovered.old}, the database from before, closed." in " ".join(recovered.run.out.split())
    was = kept(recovered.production.replica, recovered.old)
    for part in ("version", "rows", "content", "sequences", "schema", "writes"):
        assert was[part] == recovered.before[part], part
    assert sorted([*recovered.before["databases"], recovered.old]) == recovered.after["databases"]
    assert recovered.after["globals"] == recovered.before["globals"]


def test_only_the_clone_was_migrated(recovered: Recovered) -> None:
    """What was executed where, as the server tells: the revisions in the clone, and nothing in the one in use."""
    migrating = [seen for seen in recovered.statements if seen.session.endswith(":migrate")]
    assert any("CREATE TABLE song_sketches" in seen.sql for seen in migrating)
    clone = recovered.old.replace("_old_", "_new_")
    assert {seen.database for seen in migrating} == {clone}
    ours = [seen for seen in recovered.statements if seen.session.startswith("alembic-recovery")]
    assert {seen.database for seen in ours} == {clone, "postgres"}


def test_what_was_not_to_be_restarted_was_not(recovered: Recovered) -> None:
    for service in ("postgres", "redis", "proxy"):
        assert recovered.after["containers"][service] == recovered.before["containers"][service]


def test_the_services_are_the_same_containers_and_are_restarted_as_before(recovered: Recovered) -> None:
    for service in ("aiproxysrv", "celery-worker"):
        was, is_ = (seen["containers"][service] for seen in (recovered.before, recovered.after))
        for part in ("id", "image", "policy"):
            assert is_[part] == was[part]
        assert was["policy"] == "unless-stopped"
        assert is_["started"] > was["started"]
    api, worker = (recovered.after["containers"][service]["started"] for service in ("aiproxysrv", "celery-worker"))
    assert api < worker


def test_no_terminal_is_ever_allocated(recovered: Recovered) -> None:
    replica = recovered.production.replica
    assert not any(seen["ProcessConfig"]["tty"] for seen in recovered.started.execs)
    assert not any(seen["Config"]["Tty"] for seen in recovered.started.one_offs)
    # The run was seen at all: SQL was asked in the database's container, and dumped in a one-off.
    asked = [words[0] for words in recovered.started.programs(replica.container("postgres").id)]
    assert "psql" in " ".join(asked)
    dumped = recovered.started.programs(recovered.started.one_off("backup")["Id"])
    assert any("pg_dump" in words for words in dumped)


def test_nothing_acts_in_a_container_of_production(recovered: Recovered) -> None:
    """A killed `docker exec` would leave its program running, so what acts has a container of its own."""
    replica = recovered.production.replica
    for service in ("postgres", "aiproxysrv", "celery-worker", "redis", "proxy"):
        for words in recovered.started.programs(replica.container(service).id):
            assert not {"pg_dump", "pg_restore", "pg_dumpall", "alembic"} & set(words), words


def test_s14_the_one_offs_for_alembic_see_what_the_service_sees_and_have_nothing_else(recovered: Recovered) -> None:
    service = recovered.production.replica.container("aiproxysrv").attrs
    looking = recovered.started.all_of("look")
    # At first, with the lock, before the clone is migrated, and after that: the API never ran.
    assert len(looking) == 4
    for seen in [*looking, recovered.started.one_off("migrate")]:
        assert set(seen["NetworkSettings"]["Networks"]) == set(service["NetworkSettings"]["Networks"])
        assert mounted(seen) == mounted(service)
        as_the_service(recovered, seen)


def test_the_rehearsal_is_where_production_cannot_be_reached_from(recovered: Recovered) -> None:
    """A server of the same image, and the application's one-offs, in an internal network of their own."""
    server, alembic = production_of(recovered, "postgres"), production_of(recovered, "aiproxysrv")
    throwaway = recovered.started.one_off("rehearsal", rehearsed=True)
    name = throwaway["Name"].removeprefix("/")
    assert throwaway["Image"] == server["Image"]
    assert throwaway["Config"]["Labels"][OF_LABEL] == recovered.production.replica.name("postgres")
    looking, migrating = (recovered.started.all_of(purpose, rehearsed=True) for purpose in ("look", "migrate"))
    # Up and down again; with a look before each, and one at what has come of it.
    assert (len(looking), len(migrating)) == (3, 2)
    for seen in [*looking, *migrating]:
        assert set(seen["NetworkSettings"]["Networks"]) == {name}
        assert mounted(seen) == {(source, place, False) for source, place, _ in mounted(alembic)}
        as_the_service(recovered, seen)
    # What restores is in the network of that server, and reads the backup.
    (restoring,) = (seen for seen in recovered.started.one_offs if seen["Name"].endswith("-restore"))
    assert restoring["HostConfig"]["NetworkMode"] == f"container:{throwaway['Id']}"
    assert restoring["HostConfig"]["Binds"] == [f"{recovered.site.target}/prod/backups:/backup:ro"]
    restored = recovered.started.programs(restoring["Id"])
    assert any("pg_restore" in words for words in restored)


def production_of(recovered: Recovered, service: str) -> dict[str, Any]:
    """What `docker inspect` says of a container of production."""
    seen: dict[str, Any] = recovered.production.replica.container(service).attrs
    return seen


def as_the_service(recovered: Recovered, seen: dict[str, Any]) -> None:
    """Image and environment of the API, and nothing that a service has beyond that."""
    service = production_of(recovered, "aiproxysrv")
    assert seen["Image"] == service["Image"]
    assert sorted(seen["Config"]["Env"]) == sorted(service["Config"]["Env"])
    assert seen["Config"]["WorkingDir"] == "/app"
    assert seen["Config"]["Entrypoint"] == ["python3"]
    only_looks_and_ends(seen)


def test_s14_s17_pg_backup_uses_a_one_off_of_the_servers_own_image(recovered: Recovered) -> None:
    server = recovered.production.replica.container("postgres").attrs
    seen = recovered.started.one_off("backup")
    config, host = seen["Config"], seen["HostConfig"]
    assert seen["Image"] == server["Image"]
    assert host["NetworkMode"] == f"container:{server['Id']}"
    assert host["Binds"] == [f"{recovered.site.target}/prod/backups:/backup"]
    only_looks_and_ends(seen)
    # It can write nowhere but into the directory, and has no rights that it does not need.
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] == 64
    assert not [pair for pair in config["Env"] if pair.startswith(("POSTGRES_", "PGPASSWORD"))]


def only_looks_and_ends(seen: dict[str, Any]) -> None:
    """No ports, no restart policy, no Compose labels, no health check; it goes when it ends."""
    config, host = seen["Config"], seen["HostConfig"]
    assert not host["PortBindings"]
    assert not any(seen["NetworkSettings"]["Ports"].values())
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert set(config["Labels"]) == {ONE_OFF_LABEL}
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert host["AutoRemove"] is True
    assert host["Privileged"] is False


def mounted(seen: dict[str, Any]) -> set[tuple[str, str, bool]]:
    """Source, destination and whether it can be written to, of each mount."""
    return {(mount["Source"], mount["Destination"], mount["RW"]) for mount in seen["Mounts"]}


def test_nothing_is_left_of_the_one_offs(recovered: Recovered) -> None:
    """No container, no network, no volume; no session either, not even the one that holds the lock."""
    purposes = {seen["Name"].rsplit("-", 1)[1] for seen in recovered.started.one_offs}
    assert purposes == {"look", "backup", "initdb", "rehearsal", "restore", "migrate"}
    assert recovered.after["one_offs"] == []
    modes = {seen["HostConfig"]["NetworkMode"] for seen in recovered.started.one_offs}
    networks = {mode for mode in modes if mode.startswith("alembic-recovery-")}
    assert len(networks) == 1
    assert not networks & {network.name for network in recovered.production.replica.client.networks.list()}
    volumes = {
        mount["Name"] for seen in recovered.started.one_offs for mount in seen["Mounts"] if mount["Type"] == "volume"
    }
    assert len(volumes) >= 1
    assert not volumes & {volume.name for volume in recovered.production.replica.client.volumes.list()}
    sessions = "select application_name from pg_stat_activity where application_name like 'alembic-recovery%'"
    assert recovered.production.replica.query(sessions) == ""


def test_s02_no_password_is_in_a_process_list(recovered: Recovered) -> None:
    assert recovered.started.secrets == set()


def test_s02_no_password_is_in_docker_inspect_beyond_the_services_own(recovered: Recovered) -> None:
    """The application's one-off has the environment of the application's container; nothing else knows it."""
    for seen in recovered.started.one_offs:
        environment = seen["Config"]["Env"]
        without = {**seen, "Config": {**seen["Config"], "Env": []}}
        assert MARKER not in json.dumps(without), seen["Name"]
        if seen["Name"].endswith(("-backup", "-rehearsal", "-restore")):
            assert MARKER not in json.dumps(environment), seen["Name"]
    assert MARKER not in json.dumps(recovered.started.execs)


def test_s03_no_password_is_in_the_output_or_in_a_file(recovered: Recovered) -> None:
    assert "PLAY RECAP" in recovered.run.out
    assert MARKER not in recovered.run.text
    looked_at = [path for path in recovered.site.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".dump" for path in looked_at)
    assert {path.name for path in looked_at} >= RUN_FILES
    assert [path for path in looked_at if MARKER.encode() in path.read_bytes()] == []


def test_acceptance_4_a_second_run_changes_nothing(recovered: Recovered, recap: Recap) -> None:
    before = recovered.production.observe(recovered.site.target, recovered.site.controller)
    run = recovered.site.recover()
    assert run.code == 0, run.text
    assert recap(run.out)["changed"] == 0
    assert "nothing to do" in run.out
    assert recovered.production.observe(recovered.site.target, recovered.site.controller) == before


# -- acceptance 5: the code does not run without its columns ---------------------------------------------------------


def test_trap_20_acceptance_5_it_recovers_code_that_restarts_in_a_loop_and_rows_that_are_rewritten(
    tmp_path: Path, recap: Recap
) -> None:
    """The API ends on a schema that does not fit, and the worker has migrated at its start."""
    replica = DockerReplica(f"tests_loop_{os.getpid()}", directory=tmp_path / "replica", password=PASSWORD)
    replica.down()
    try:
        replica.up(variant=State.REWRITTEN, strict_start=True, data=SMALL, port=0)
        assert replica.container("aiproxysrv").attrs["RestartCount"] >= 1
        # Between two starts no command can be run in it.
        wait_until(lambda: replica.container("aiproxysrv").attrs["State"]["Restarting"], "a moment between two", 300)
        production = Production(replica)
        before, meaning = production.observe(), replica.query(REPLACEMENTS)
        assert (before["version"], replica.query(UNENCODED)) == (["0f864573b58a"], "0")

        run = Site(production, tmp_path, production.variables()).recover("-e", "recovery_rehearse=false")

        assert run.code == 0, run.text
        assert recap(run.out)["changed"] >= 4
        after = production.observe()
        assert after["version"] == [HEAD]
        # What was encoded by then is encoded once, not twice.
        assert replica.query(REPLACEMENTS) == meaning
        name = "lyric_parsing_rules.replacement"
        assert after["content"][name] == before["content"][name]
        assert after["one_offs"] == []
        assert after["containers"]["aiproxysrv"]["id"] == before["containers"]["aiproxysrv"]["id"]
        assert after["containers"]["aiproxysrv"]["policy"] == "unless-stopped"
        assert replica.container("aiproxysrv").attrs["State"]["Health"]["Status"] == "healthy"
        (old,) = production.beside()
        was = kept(replica, old)
        for part in ("version", "rows", "content", "sequences", "schema"):
            assert was[part] == before[part], part
        for check in READING:
            check(replica.web)
    finally:
        replica.down()


# -- acceptance 4: check mode ----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_acceptance_4_check_mode_with_a_stopped_api_leaves_no_trace(site: Site, recap: Recap) -> None:
    """The hardest case of it: Alembic can be asked in a one-off container only."""
    api = site.production.replica.container("aiproxysrv")
    api.stop(timeout=5)
    before = site.production.observe(site.target, site.controller)

    run = site.recover("--check", "--diff")
    after = site.production.observe(site.target, site.controller)
    api.start()

    assert run.code == 0, run.text
    assert recap(run.out)["changed"] >= 3
    assert after == before
    assert not site.target.exists()
    assert not site.controller.exists()
    # The plan has the SQL where there is any.
    assert "CREATE TABLE song_sketches" in run.out


# -- what is refused -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A mistake, and which words say so."""

    where: str
    change: dict[str, Any]
    words: tuple[str, ...]


def key(stack: dict[str, Any], path: str) -> dict[str, Any]:
    """A part of the stack."""
    part: Any = stack
    for name in path.split("."):
        part = part[int(name) if name.isdigit() else name]
    assert isinstance(part, dict)
    return part


REFUSALS = {
    "missing container of the application": Refusal(
        "app", {"container": "no-such-api"}, ("There is no container named no-such-api", "docker ps --all")
    ),
    "missing container of the database": Refusal(
        "database",
        {"container": "no-such-postgres"},
        ("There is no container named no-such-postgres", "docker ps --all"),
    ),
    "missing container of a service": Refusal(
        "services.1", {"container": "no-such-worker"}, ("There is no container named no-such-worker", "docker ps --all")
    ),
    "wrong compose service": Refusal(
        "app",
        {"container": None, "compose_project": "{prefix}", "compose_service": "aiproxy-server"},
        ("Compose project {prefix}, service aiproxy-server: no container, expected exactly one", "container: NAME"),
    ),
    "wrong name of the database": Refusal(
        "database", {"name": "aiproxi"}, ('database "aiproxi" does not exist', "psql --list --username aiuser")
    ),
    "wrong user of the database": Refusal(
        "database", {"user": "aiusr"}, ('role "aiusr" does not exist', "recovery_stack.database.user")
    ),
    "container without psql": Refusal(
        "database", {"container": "{prefix}-aiproxysrv-1"}, ("no psql", "recovery_stack.database.container")
    ),
    "wrong interpreter": Refusal("app", {"python": "python9"}, ("python9", "app.python")),
    "wrong working directory": Refusal("app", {"workdir": "/appp"}, ("/appp", "app.workdir")),
    "wrong ini file": Refusal("app", {"alembic_config": "alembik.ini"}, ("alembik.ini", "alembic_config")),
}
#: What can be wrong in containers only; the others are shown on the host replica in every `make test`.
ONLY_HERE = {"missing container of the application", "wrong compose service", "container without psql"}


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(refusal, id=name, marks=[] if name in ONLY_HERE else pytest.mark.thorough)
        for name, refusal in REFUSALS.items()
    ],
)
def test_refused_before_anything_is_touched(made: Production, tmp_path: Path, refusal: Refusal) -> None:
    prefix = made.replica.prefix
    site = Site(made, tmp_path, made.variables())
    part = key(site.variables["recovery_stack"], refusal.where)
    for name, value in refusal.change.items():
        if value is None:
            del part[name]
        else:
            part[name] = value.format(prefix=prefix)

    refuses(site, *(words.format(prefix=prefix) for words in refusal.words))


def refuses(site: Site, *words: str) -> None:
    """A run ends with 2, says these words and what to do next, and changes nothing."""
    before = touched(site)
    run = site.recover()
    assert run.code == 2, run.text
    said = " ".join(run.text.split())
    for word in words:
        assert word in said, f"not said: {word}\n{run.text}"
    assert touched(site) == before
    assert MARKER not in run.text


def touched(site: Site) -> dict[str, Any]:
    """What a run could have done, as far as it can be seen in a moment."""
    replica = site.production.replica
    assert not site.target.exists()
    assert not site.controller.exists()
    return {**engine(replica), **written(replica)}


def test_refused_when_the_engine_cannot_be_reached(site: Site) -> None:
    site.environment["DOCKER_HOST"] = f"unix://{site.directory}/no-engine.sock"
    refuses(site, "The Docker Engine does not answer", "docker info")


def test_refused_when_the_docker_command_is_not_there(site: Site) -> None:
    site.variables["recovery_stack"]["docker_cli"] = "/nowhere/docker"
    refuses(site, "/nowhere/docker", "docker_cli")


def test_refused_when_the_databases_container_is_stopped(site: Site) -> None:
    container = site.production.replica.container("postgres")
    container.stop(timeout=30)
    try:
        run = site.recover()
        assert run.code == 2, run.text
        said = " ".join(run.text.split())
        assert f"The database's container {container.name} is not running" in said
        assert f"docker start {container.name}" in said
        container.reload()
        assert container.status == "exited"
        assert not site.target.exists()
    finally:
        container.start()
        site.production.wait_for_database()
