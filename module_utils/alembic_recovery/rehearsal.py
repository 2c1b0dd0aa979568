"""A throwaway PostgreSQL server beside the one in production: the same image, and nobody can reach it or out of it.

A container, a volume and a network of one name. The application's one-off containers join that network, and find it
under the names that production's has; there is nothing else in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import typing as t

from ansible.module_utils.alembic_recovery import isolation, postgres, process, properties, sql
from ansible.module_utils.alembic_recovery.docker_cli import RUN_LABEL, DockerCli, OneOff
from ansible.module_utils.alembic_recovery.errors import DockerError, RecoveryError, StackError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, one_off_name

#: Says whose rehearsal it is: the name of the database's container.
OF_LABEL = "alembic-recovery.of"
# Where the official images (Debian's and Alpine's) and Debian's packages keep data: it belongs to `postgres`, and so
# does a volume that is mounted there for the first time.
_HOME = "/var/lib/postgresql"
_DATA = f"{_HOME}/rehearsal"
# Where psql in the image looks for the server without being told, whoever built it.
_SOCKETS = ("/var/run/postgresql", "/tmp")  # noqa: S108 (in the container, which nobody else is in)
_BOOTSTRAP_OID = 10
# How long the Engine may take to end what a killed client has asked for.
_FREE_S = 10.0
# Comes with the roles, in one transaction: a server without it was not made to the end.
_DONE = "a throwaway server of alembic-recovery"
_IS_DONE = f"""select 1 as done from pg_database
    where datname = 'postgres' and shobj_description(oid, 'pg_database') = {sql.literal(_DONE)}"""
_CONFINED = ("--user", "postgres", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only")

# What decides how the application's migrations run. Not: memory, replication, archiving, and what extensions do by
# themselves (a scheduler must find nothing to do).
_SETTINGS = (
    "shared_preload_libraries", "max_connections", "max_locks_per_transaction", "max_prepared_transactions",
    "max_worker_processes", "port", "TimeZone", "DateStyle", "IntervalStyle", "default_text_search_config",
    "default_transaction_isolation", "search_path", "standard_conforming_strings", "bytea_output",
    "default_tablespace", "default_table_access_method", "default_toast_compression", "lock_timeout",
    "statement_timeout",
)  # fmt: skip

_QUESTIONS = {
    "settings": f"""select name, setting from pg_settings where source <> 'default' and source not in
        ('client', 'session', 'database', 'user', 'database user', 'override', 'environment variable')
        and name in ({", ".join(map(sql.literal, _SETTINGS))})""",
    "bootstrap": f"select rolname as name from pg_roles where oid = {_BOOTSTRAP_OID}",
    "version": "select current_setting('server_version') as version",
    "tablespaces": "select spcname as name from pg_tablespace where spcname !~ '^pg_' order by 1",
    "roles": """select oid::bigint as oid, rolname as name, rolsuper, rolinherit, rolcreaterole, rolcreatedb,
        rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, coalesce(to_jsonb(rolconfig), '[]') as settings
        from pg_roles where rolname !~ '^pg_' order by oid""",
    "everybody": """select coalesce(jsonb_agg(x), '[]') as settings from pg_db_role_setting s, unnest(s.setconfig) x
        where s.setrole = 0 and s.setdatabase = 0""",
    "members": """select r.rolname as role, m.rolname as member, a.admin_option,
        to_jsonb(a)->>'inherit_option' as inherit_option, to_jsonb(a)->>'set_option' as set_option
        from pg_auth_members a join pg_roles r on r.oid = a.roleid join pg_roles m on m.oid = a.member
        where m.rolname !~ '^pg_' order by a.admin_option desc, 1, 2""",
}


@dataclasses.dataclass(frozen=True)
class Original:
    """What the throwaway server is made like."""

    image_id: str
    version: str
    aliases: list[str]
    superuser: str
    template1: dict[str, t.Any]
    settings: dict[str, str]
    roles: list[str]
    role_count: int
    shm_size: int


def look(
    runtime: DockerRuntime, maintenance: postgres.Database, application: isolation.Inspected | None = None
) -> Original:
    """What production's server is.

    :param application: `docker inspect` of the application's container, where it is known.
    :raises RecoveryError: it cannot be asked, or there is something that a throwaway server cannot have.
    """
    seen = maintenance.ask_all(_QUESTIONS)
    if seen["tablespaces"]:
        raise StackError(
            f"The server has tablespaces of its own ({', '.join(row['name'] for row in seen['tablespaces'])}): no "
            "throwaway server can be made like it. Rehearse beside the database instead."
        )
    template1 = properties.read(maintenance, "template1")
    if template1 is None:
        raise StackError("The server has no template1: what it was made with is unknown.")
    return Original(
        image_id=runtime.state.image_id,
        version=seen["version"][0]["version"],
        aliases=isolation.aliases(runtime.seen, application),
        superuser=seen["bootstrap"][0]["name"],
        template1=template1,
        settings={row["name"]: row["setting"] for row in seen["settings"]},
        roles=role_statements(seen),
        role_count=len(seen["roles"]),
        shm_size=int(runtime.seen["HostConfig"].get("ShmSize") or 0),
    )


def role_statements(seen: t.Mapping[str, postgres.Rows]) -> list[str]:
    """The roles of a server without their passwords, their settings and memberships, as SQL."""
    statements = []
    for role in seen["roles"]:
        words = [
            word if role[column] else f"no{word}"
            for column, word in (
                ("rolsuper", "superuser"), ("rolinherit", "inherit"), ("rolcreaterole", "createrole"),
                ("rolcreatedb", "createdb"), ("rolcanlogin", "login"), ("rolreplication", "replication"),
                ("rolbypassrls", "bypassrls"),
            )
        ]  # fmt: skip
        if role["oid"] != _BOOTSTRAP_OID:
            limit = f"connection limit {role['rolconnlimit']}"
            statements.append(f"create role {sql.identifier(role['name'])} {' '.join(words)} {limit}")
    for row in seen["members"]:
        options = [f"admin {'true' if row['admin_option'] else 'false'}"]
        # PostgreSQL 16; before, who is a member has both, and only `with admin option` is known.
        further = [(name, row[f"{name}_option"]) for name in ("inherit", "set")]
        options += [f"{name} {value}" for name, value in further if value is not None]
        grant = f"grant {sql.identifier(row['role'])} to {sql.identifier(row['member'])}"
        if len(options) > 1:
            grant += f" with {', '.join(options)}"
        elif row["admin_option"]:
            grant += " with admin option"
        statements.append(grant)
    for role in seen["roles"]:
        who = f"alter role {sql.identifier(role['name'])}"
        statements += [f"{who} {properties.setting_clause(setting)}" for setting in role["settings"]]
    everybody = seen["everybody"][0]["settings"]
    return [*statements, *(f"alter role all {properties.setting_clause(setting)}" for setting in everybody)]


def initdb_options(template1: properties.Properties, superuser: str) -> list[str]:
    """The options of `initdb` for a server with the encoding and the locale of another one's template1."""
    words = [
        f"--pgdata={_DATA}", f"--username={superuser}", "--auth=trust", "--no-sync",
        f"--encoding={template1['encoding']}", f"--lc-collate={template1['datcollate']}",
        f"--lc-ctype={template1['datctype']}",
    ]  # fmt: skip
    if template1["provider"] == "i":
        words += ["--locale-provider=icu", f"--icu-locale={template1['locale']}"]
        words += [f"--icu-rules={template1['icu_rules']}"] if template1["icu_rules"] else []
    if template1["provider"] == "b":
        words += ["--locale-provider=builtin", f"--builtin-locale={template1['locale']}"]
    return words


def server_options(settings: t.Mapping[str, str]) -> list[str]:
    """The options of `postgres`: production's settings, and none of its care for crashes."""
    own = {
        "listen_addresses": "*",
        "unix_socket_directories": ",".join(_SOCKETS),
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    chosen = {**settings, **own}
    return ["-D", _DATA, *(word for name, value in sorted(chosen.items()) for word in ("-c", f"{name}={value}"))]


class Rehearsal:
    """The container, the volume and the network of one run."""

    def __init__(self, docker: DockerCli, run_id: str, of: str) -> None:
        """:param of: the name of the database's container in production."""
        self.docker = docker
        self.run_id = run_id
        self.of = of
        self.name = one_off_name(run_id, "rehearsal")
        self._labels = ["--label", f"{RUN_LABEL}={run_id}", "--label", f"{OF_LABEL}={of}"]

    def there(self) -> list[str]:
        """What is there of it, as `container NAME`, `network NAME`, `volume NAME`.

        :raises StackError: something of that name is not ours.
        """
        found = []
        for kind, seen in (("container", "{{json .Config.Labels}}"), ("network", None), ("volume", None)):
            done = self._ask(kind, "inspect", "--format", seen or "{{json .Labels}}", self.name, expected=None)
            if done.rc != 0:
                continue
            if (json.loads(done.stdout.splitlines()[0]) or {}).get(RUN_LABEL) != self.run_id:
                raise StackError(f"The {kind} {self.name} is not ours: it does not have the label {RUN_LABEL}.")
            found.append(f"{kind} {self.name}")
        return found

    def left_behind(self) -> list[str]:
        """What rehearsals of any run have left for this database, in the order in which it can be removed."""
        found = []
        for kind, words in (("container", ["--all"]), ("network", []), ("volume", [])):
            column = "{{.Names}}" if kind == "container" else "{{.Name}}"
            label = f"label={OF_LABEL}={self.of}"
            done = self._ask(kind, "ls", *words, "--filter", label, "--format", column)
            names = [name for name in done.stdout.split() if name.startswith("alembic-recovery-")]
            found += [f"{kind} {name}" for name in sorted(names)]
        return found

    def remove(self, things: t.Iterable[str]) -> None:
        """Remove things of ours, as `there` and `left_behind` name them; what is gone already is fine.

        :raises DockerError: one cannot be removed.
        """
        for thing in things:
            kind, _, name = thing.partition(" ")
            if kind == "container":
                self.docker.remove(name)
                continue
            if kind == "network":
                self._leave_network(name)
            deadline = time.monotonic() + _FREE_S
            while True:
                if kind == "volume":
                    # Left by a run that was killed in the moment of its initdb, or that the Engine was just making.
                    self.docker.remove(f"{name}-initdb")
                    self.docker.remove(name)
                done = self._ask(kind, "rm", name, expected=None)
                if "in use" not in done.stderr.lower() or time.monotonic() > deadline:
                    break
                time.sleep(0.5)
            if done.rc != 0 and "no such" not in done.stderr.lower() and "not found" not in done.stderr.lower():
                raise DockerError(f"The {thing} cannot be removed: {done.stderr.strip()}")

    def whole(self, original: Original) -> bool:
        """Whether the server is there, runs, and was made to the end: who makes it may be killed in the middle."""
        if len(self.there()) != 3:
            return False
        seen = self.docker.inspect(self.name)
        if not seen["State"]["Running"] or seen["Image"] != original.image_id:
            return False
        try:
            return bool(self.database(original.superuser).ask(_IS_DONE))
        except RecoveryError:
            return False

    def make(self, original: Original, timeout: float) -> None:
        """Make the server with production's roles, and wait until it answers; on any failure nothing is left.

        :param timeout: seconds until it answers.
        :raises RecoveryError: it could not be made.
        """
        try:
            self._ask("volume", "create", *self._labels, self.name)
            self._initdb(original)
            self._ask("network", "create", "--internal", "--driver", "bridge", *self._labels, self.name)
            self._start(original)
            database = self._wait(original.superuser, timeout)
            # What gives rows would be taken for the answer to the question after it.
            database.act([self._who_may_connect(), "do 'begin perform pg_reload_conf(); end'"])
            database.act([*original.roles, f"comment on database postgres is {sql.literal(_DONE)}"], at_once=True)
        except BaseException:
            with contextlib.suppress(RecoveryError):
                self.remove(self.there())
            raise

    def database(self, superuser: str) -> postgres.Database:
        """Its database `postgres`, asked with psql in the container."""
        runtime = DockerRuntime(self.docker, self.name, run_id=self.run_id)
        return postgres.open_database(postgres.Login("postgres", superuser), runtime)

    def _initdb(self, original: Original) -> None:
        name = f"{self.name}-initdb"
        task = OneOff(
            name=name,
            image=original.image_id,
            argv=["initdb", *initdb_options(original.template1, original.superuser)],
            run_id=self.run_id,
            options=[*_CONFINED, *self._labels[2:], *self._mounts(), "--pids-limit", "64"],
        )
        try:
            with process.Conversation(self.docker.create(task)) as conversation:
                conversation.close_stdin()
                while conversation.read_line(120.0) is not None:
                    pass
                if conversation.wait() != 0:
                    said = " ".join(conversation.said.split())[-1000:]
                    raise DockerError(f"initdb in a container of the database's image failed: {said}")
        finally:
            self.docker.remove(name)

    def _mounts(self) -> list[str]:
        # All that the server writes is in volumes, or in memory. A volume without a name goes with its container, and
        # belongs at first to whom the directory in the image belongs; a tmpfs would belong to root.
        run, temporary = _SOCKETS
        return ["--volume", f"{self.name}:{_HOME}", "--volume", run, "--tmpfs", temporary]

    def _start(self, original: Original) -> None:
        words = [*_CONFINED, *self._labels, *self._mounts(), "--pids-limit", "1024", "--restart", "no"]
        words += ["--no-healthcheck", "--network", self.name]
        for alias in original.aliases:
            words += ["--network-alias", alias]
        words += ["--shm-size", str(original.shm_size)] if original.shm_size else []
        if "port" in original.settings:
            words += ["--env", f"PGPORT={original.settings['port']}"]
        options = server_options(original.settings)
        self._ask(
            "run", "--detach", "--name", self.name, *words, "--entrypoint", "postgres", original.image_id, *options
        )

    def _wait(self, superuser: str, timeout: float) -> postgres.Database:
        deadline = time.monotonic() + timeout
        while True:
            try:
                database = self.database(superuser)
                database.ask("select 1 as one")
                return database
            except RecoveryError as error:
                gone = not self.docker.state(self.name).running
                if gone or time.monotonic() > deadline:
                    done = self._ask("logs", "--tail", "20", self.name, expected=None)
                    said = " ".join(f"{done.stdout} {done.stderr}".split())[-1000:]
                    how = "ended" if gone else f"did not answer within {timeout:g} s"
                    raise DockerError(f"The throwaway server {how}: {error.message} Its log: {said}") from error
                time.sleep(0.2)

    def _who_may_connect(self) -> str:
        """A statement that lets in who is in its network, and nobody else: not even this host, which is its gateway."""
        done = self._ask("network", "inspect", "--format", "{{json .IPAM.Config}}", self.name)
        lines = ["local all all trust", "host all all 127.0.0.1/32 trust", "host all all ::1/128 trust"]
        for part in json.loads(done.stdout) or []:
            if part.get("Gateway"):
                # Newer engines write it with the length of the network.
                address = part["Gateway"].partition("/")[0]
                lines.append(f"host all all {address}/{128 if ':' in address else 32} reject")
        lines.append("host all all samenet trust")
        texts = ", ".join(map(sql.literal, lines))
        return f"copy (select unnest(array[{texts}])) to {sql.literal(f'{_DATA}/pg_hba.conf')}"

    def _leave_network(self, name: str) -> None:
        """What a killed run has left in the network keeps it from being removed."""
        done = self._ask("network", "inspect", "--format", "{{json .Containers}}", name, expected=None)
        for container in json.loads(done.stdout.splitlines()[0]) or {} if done.rc == 0 else {}:
            try:
                labels = (self.docker.inspect(container)["Config"].get("Labels")) or {}
            except DockerError:  # it has gone meanwhile
                continue
            if RUN_LABEL in labels:
                self.docker.remove(container)
            else:
                self._ask("network", "disconnect", "--force", name, container)

    def _ask(self, *words: str, expected: t.Container[int] | None = (0,)) -> process.Completed:
        done = process.run([self.docker.path, *words], timeout=120.0, expected=None)
        if expected is not None and done.rc not in expected:
            raise DockerError(process.failure(done).message, rc=done.rc)
        return done
