"""The options that modules share: their specifications, and what is opened from their values.

The same words as in `recovery_stack` of the inventory, so that a role passes a part of the stack as it stands.
"""

from __future__ import annotations

import json
import re
import typing as t
from urllib.parse import unquote, urlsplit

from ansible.module_utils.alembic_recovery import postgres
from ansible.module_utils.alembic_recovery import services as service_managers
from ansible.module_utils.alembic_recovery.docker_cli import DockerCli
from ansible.module_utils.alembic_recovery.errors import StackError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, HostRuntime, Runtime

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
        "environment": {"type": "dict", "no_log": True},
        "environment_file": {"type": "path"},
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
    "docker_cli": {"type": "path"},
}


# Names of variables whose values are secrets.
_SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|KEY|DSN|AUTH", re.IGNORECASE)


def choose_secrets(module: t.Any) -> None:
    """Decide what Ansible masks in results: the password, and those of the application's variables that are secrets.

    Ansible masks every value of a `no_log` option wherever its characters stand, be it in the middle of a revision id.
    All variables of the application are such an option, so that they are not logged; but one that is "1" is no secret.

    :param module: the running AnsibleModule.
    """
    environment = (module.params.get("application") or {}).get("environment") or {}
    secrets: set[str] = set()
    for name, value in environment.items():
        text = str(value)
        password = urlsplit(text).password if "://" in text else None
        if password:
            secrets.update({text, password, unquote(password)})
        elif _SECRET_NAME.search(name):
            secrets.add(text)
    password = (module.params.get("database") or {}).get("password")
    module.no_log_values.clear()
    module.no_log_values.update(secrets, {password} if password else ())
    module.no_log_values.discard("")


def refuse_masked(module: t.Any, relied_on: t.Any) -> None:
    """Refuse to go on where Ansible would mask a part of what later tasks rely on.

    :param module: the running AnsibleModule.
    :param relied_on: that part of the result, of JSON types.
    :raises StackError: a secret is a part of it.
    """
    text = json.dumps(relied_on, ensure_ascii=False)
    if any(json.dumps(str(secret), ensure_ascii=False)[1:-1] in text for secret in module.no_log_values):
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
        if app["runtime"] == "docker":
            return DockerRuntime(
                self.docker, self.container(app), run_id=self._params["run_id"], workdir=app["workdir"]
            )
        return HostRuntime(
            workdir=app["workdir"],
            env={name: str(value) for name, value in (app["environment"] or {}).items()},
            environment_file=app["environment_file"],
        )

    def services(self) -> list[service_managers.Service]:
        """The services in the order of restarting.

        :raises RecoveryError: one of them has nobody who looks after it.
        """
        return [self._service(place) for place in self._params["services"]]

    def _service(self, place: t.Mapping[str, t.Any]) -> service_managers.Service:
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

    def login(self) -> postgres.Login:
        """Whom to ask the database as, and where."""
        database = self._params["database"]
        return postgres.Login(
            database=database["name"],
            user=database["user"],
            host=database["unix_socket"] or database["host"],
            port=database["port"],
            password=database["password"],
        )

    def database(self) -> postgres.Database:
        """The database, to be asked.

        :raises RecoveryError: it is not there.
        """
        return postgres.open_database(
            self.login(), self.database_runtime(), bin_dir=self._params["database"]["bin_dir"]
        )
