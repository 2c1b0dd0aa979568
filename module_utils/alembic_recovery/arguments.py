"""The options that modules share: their specifications, and what is opened from their values.

The same words as in `recovery_stack` of the inventory, so that a role passes a part of the stack as it stands.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t
from urllib.parse import unquote, urlsplit

from ansible.module_utils.alembic_recovery import postgres, service_managers
from ansible.module_utils.alembic_recovery.docker_cli import DockerCli
from ansible.module_utils.alembic_recovery.errors import StackError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, HostRuntime, Runtime
from ansible.module_utils.alembic_recovery.services import Service

_PLACE: dict[str, t.Any] = {
    "runtime": {"type": "str", "choices": ["docker", "host"], "required": True},
    "container": {"type": "str"},
    "compose_project": {"type": "str"},
    "compose_service": {"type": "str"},
}
_PLACE_RULES: dict[str, t.Any] = {
    "required_if": [("runtime", "docker", ("container", "compose_service"), True)],
    "required_together": [("compose_project", "compose_service")],
    "mutually_exclusive": [("container", "compose_service")],
}

DATABASE: dict[str, t.Any] = {
    "type": "dict",
    "required": True,
    "options": {
        **_PLACE,
        "name": {"type": "str", "required": True, "aliases": ["login_db"]},
        "user": {"type": "str", "required": True, "aliases": ["login_user"]},
        "password": {"type": "str", "no_log": True, "aliases": ["login_password"]},
        "host": {"type": "str", "aliases": ["login_host"]},
        "port": {"type": "int", "aliases": ["login_port"]},
        "unix_socket": {"type": "path", "aliases": ["login_unix_socket"]},
        "bin_dir": {"type": "path"},
        "maintenance_db": {"type": "str", "default": "postgres"},
        "admin_user": {"type": "str"},
        "admin_password": {"type": "str", "no_log": True},
    },
    **_PLACE_RULES,
}

APPLICATION: dict[str, t.Any] = {
    "type": "dict",
    "required": True,
    "options": {
        **_PLACE,
        "workdir": {"type": "path"},
        "python": {"type": "str", "default": "python3"},
        "alembic_config": {"type": "str", "default": "alembic.ini"},
        "alembic_section": {"type": "str", "default": "alembic"},
        "alembic_options": {"type": "dict", "no_log": True},
        "script_location": {"type": "str"},
        "x_arguments": {"type": "list", "elements": "str", "no_log": True},
        "heads": {"type": "list", "elements": "str"},
        "prepare": {"type": "str"},
        "system_user": {"type": "str"},
        "environment": {"type": "dict", "no_log": True},
        "environment_file": {"type": "path"},
        "redirect": {"type": "str"},
        "network": {"type": "str"},
        "image": {"type": "str"},
    },
    **_PLACE_RULES,
}

SERVICES: dict[str, t.Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        **_PLACE,
        "name": {"type": "str", "required": True},
        "manager": {"type": "str", "choices": ["supervisor", "systemd"]},
        "manager_config": {"type": "path"},
        "unit": {"type": "str"},
        "log_files": {"type": "list", "elements": "path", "default": []},
        "stop_timeout": {"type": "int", "default": 30},
    },
    **_PLACE_RULES,
}

#: Options of every module that starts anything.
COMMON: dict[str, t.Any] = {
    "run_id": {"type": "str", "default": "by-hand"},
    "run_directory": {"type": "path"},
    "docker_cli": {"type": "path"},
}


# Names of variables whose values are secrets.
_SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|KEY|DSN|AUTH", re.IGNORECASE)


def choose_secrets(module: t.Any) -> None:
    """Decide what Ansible masks in results: the password, and those of the application's settings that are secrets.

    Ansible masks every value of a `no_log` option wherever its characters stand, be it in the middle of a revision id.
    All settings of the application (variables, options and x arguments of Alembic) are such options, so that they are
    not logged; but one that is "1" is no secret.

    :param module: the running AnsibleModule.
    """
    application = module.params.get("application") or {}
    pairs = [argument.partition("=")[::2] for argument in application.get("x_arguments") or ()]
    settings = [*(application.get("environment") or {}).items(), *(application.get("alembic_options") or {}).items()]
    secrets: set[str] = set()
    for name, value in [*settings, *pairs]:
        text = str(value)
        password = urlsplit(text).password if "://" in text else None
        if password:
            secrets.update({text, password, unquote(password)})
        elif _SECRET_NAME.search(name):
            secrets.add(text)
    database = module.params.get("database") or {}
    passwords = {database[name] for name in ("password", "admin_password") if database.get(name)}
    module.no_log_values.clear()
    module.no_log_values.update(secrets, passwords)
    module.no_log_values.discard("")


def is_masked(module: t.Any, result: t.Any) -> bool:
    """Whether Ansible would mask something in a result, of JSON types.

    :param module: the running AnsibleModule.
    """
    text = json.dumps(result, ensure_ascii=False)
    return any(json.dumps(str(secret), ensure_ascii=False)[1:-1] in text for secret in module.no_log_values)


def refuse_masked(module: t.Any, relied_on: t.Any) -> None:
    """Refuse to go on where Ansible would mask a part of what later tasks rely on.

    :param module: the running AnsibleModule.
    :param relied_on: that part of the result, of JSON types.
    :raises StackError: a secret is a part of it.
    """
    if is_masked(module, relied_on):
        raise StackError(
            "The database's password, or a secret of the application's environment, is also a part of a path, a table "
            "or a value that later steps need. Ansible masks a secret wherever it stands: they would work with a wrong "
            "name. Give the role a longer password that is not a name of something."
        )


class Places:
    """What a module's options name, opened when it is needed."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        """:param params: a module's parameters, checked by Ansible against the specifications above."""
        self._params = params
        self._docker: DockerCli | None = None

    @property
    def docker(self) -> DockerCli:
        """The target's `docker` command.

        :raises DockerError: there is none.
        """
        if self._docker is None:
            self._docker = DockerCli(self._params.get("docker_cli"))
        return self._docker

    @property
    def use_docker(self) -> bool:
        """Whether the database or one of the services is in a container."""
        return any(place["runtime"] == "docker" for place in [self._params["database"], *self._params["services"]])

    def container(self, place: t.Mapping[str, t.Any]) -> str:
        """The name of the container that an option describes.

        :raises DockerError: a Compose service has none, or several.
        """
        if place["container"]:
            return str(place["container"])
        return self.docker.find_service(place["compose_project"], place["compose_service"])

    def application(self) -> Runtime:
        """Where the application's own Python runs.

        :raises RecoveryError: it is not there.
        """
        app = self._params["application"]
        env = {name: str(value) for name, value in (app["environment"] or {}).items()}
        if app["runtime"] == "docker":
            return DockerRuntime(
                self.docker,
                self.container(app),
                run_id=self._params["run_id"],
                workdir=app["workdir"],
                network=app.get("network"),
                image=app.get("image"),
                env=env,
                user=app["system_user"],
            )
        if app.get("image"):
            raise StackError("application.image is for containers: a process of this host has no image.")
        if app.get("network"):
            raise StackError("application.network is for containers: a process of this host is in no Docker network.")
        return HostRuntime(
            workdir=app["workdir"],
            env=env,
            environment_file=app["environment_file"],
            user=app["system_user"],
        )

    def services(self) -> list[Service]:
        """The services in the order of restarting.

        :raises RecoveryError: one of them has nobody who looks after it.
        """
        return [self._service(place) for place in self._params["services"]]

    def _service(self, place: t.Mapping[str, t.Any]) -> Service:
        name, unit, timeout = place["name"], place["unit"] or place["name"], place["stop_timeout"]
        if place["runtime"] == "docker":
            return service_managers.ContainerService(self.docker, name, self.container(place), timeout)
        if place["manager"] == "supervisor":
            return service_managers.SupervisorService(name, unit, place["manager_config"], timeout, place["log_files"])
        if place["manager"] == "systemd":
            return service_managers.SystemdService(name, unit, timeout)
        raise StackError(f"Service {name} has runtime: host and no manager. Set manager: supervisor or systemd.")

    def database_runtime(self) -> Runtime:
        """Where the database's own programs run.

        :raises RecoveryError: it is not there.
        """
        database = self._params["database"]
        if database["runtime"] == "docker":
            return DockerRuntime(self.docker, self.container(database), run_id=self._params["run_id"])
        return HostRuntime()

    def login(self, name: str | None = None) -> postgres.Login:
        """Whom to ask the database as, and where.

        :param name: another database of the same server.
        """
        database = self._params["database"]
        return postgres.Login(
            database=name or database["name"],
            user=database["user"],
            host=database["unix_socket"] or database["host"],
            port=database["port"],
            password=database["password"],
            # A run that was killed leaves sessions in the server: the next one finds and ends them by this name.
            session=f"alembic-recovery:{self._params['run_id']}:work"[:63],
        )

    def admin_login(self, name: str) -> postgres.Login:
        """Who makes, closes, renames and drops databases: the role for that, else the one for everything.

        :param name: the database to be connected to.
        """
        database = self._params["database"]
        login = self.login(name)
        if not database["admin_user"]:
            return login
        return dataclasses.replace(login, user=database["admin_user"], password=database["admin_password"])

    def database(self, name: str | None = None) -> postgres.Database:
        """The database, to be asked.

        :param name: another database of the same server.
        :raises RecoveryError: it is not there.
        """
        return self._open(self.login(name))

    def maintenance(self) -> postgres.Database:
        """The database beside the application's from which databases are made, closed, renamed and dropped.

        :raises RecoveryError: it is not there.
        """
        return self._open(self.admin_login(self._params["database"]["maintenance_db"]))

    def as_admin(self, name: str) -> postgres.Database:
        """A database of the server, to be asked and changed by the role that makes databases.

        :raises RecoveryError: it is not there.
        """
        return self._open(self.admin_login(name))

    def _open(self, login: postgres.Login) -> postgres.Database:
        return postgres.open_database(login, self.database_runtime(), bin_dir=self._params["database"]["bin_dir"])
