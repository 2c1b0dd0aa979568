"""The commands that bring an application back by hand, as argument lists: for the page, and for the keeper."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.alembic_recovery import arguments, naming, postgres, sql
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, Runtime
from ansible.module_utils.alembic_recovery.services import Service


def psql_argv(login: postgres.Login, runtime: Runtime, bin_dir: str | None, *options: str) -> list[str]:
    """The command line of a psql beside the server: in its container, or on this host; its password is not in it.

    Where there is one, it is in the environment of whoever runs this (:meth:`Login.secrets`), from where the Docker
    client takes it along by its name; a person whose environment has none is asked.
    """
    words = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", *_plain(login.options()), *options]
    if isinstance(runtime, DockerRuntime):
        secret = login.secrets()
        return [
            *runtime.docker.exec_argv(runtime.container, [*runtime.before_psql(secret), "psql"], env=secret),
            *words,
        ]
    return [postgres.find_program("psql", bin_dir), *words]


def maintenance_psql(places: arguments.Places, database: t.Mapping[str, t.Any], *options: str) -> list[str]:
    """The same in the maintenance database, as whoever may rename and close.

    :param database: the option `database` of a module.
    """
    return psql_argv(
        places.admin_login(database["maintenance_db"]), places.database_runtime(), database["bin_dir"], *options
    )


def _plain(options: t.Sequence[str]) -> list[str]:
    """Connection options as a person would type them, where the name of the database allows it."""
    return [re.sub(r"^--dbname=dbname='([A-Za-z0-9_]+)'$", r"--dbname=\1", option) for option in options]


def open_commands(psql: t.Sequence[str], live: str, aside: str | None) -> list[list[str]]:
    """Open a database that was closed; where it was put aside, first give it its name back.

    :param psql: the command line of a psql in the maintenance database.
    :param aside: the name under which it is worked on in place; it may have its own name all the same.
    """
    name = sql.identifier(live)
    renaming = [[*psql, "-c", f"alter database {sql.identifier(aside)} rename to {name}"]] if aside else []
    return [*renaming, [*psql, "-c", f"alter database {name} with allow_connections true"]]


def swap_back_commands(psql: t.Sequence[str], live: str, old: str, replaced: str) -> list[list[str]]:
    """Exchange the names again: what is in use goes aside as `replaced`, and `old` gets its name."""
    name, both = sql.identifier(live), f"{sql.literal(live)}, {sql.literal(old)}"
    return [
        [
            *psql,
            "-c", f"alter database {name} with allow_connections false",
            "-c", f"select pg_terminate_backend(pid) from pg_stat_activity where datname in ({both})",
        ],
        [
            *psql, "--single-transaction", "--set", "ON_ERROR_STOP=1",
            "-c", f"alter database {name} rename to {sql.identifier(replaced)}",
            "-c", f"alter database {sql.identifier(old)} rename to {name}",
            "-c", f"alter database {name} with allow_connections true",
        ],
    ]  # fmt: skip


def start_commands(services: t.Sequence[Service], policies: t.Mapping[str, str]) -> list[list[str]]:
    """Start the services in order, each with what starts it again by itself as it was.

    :param policies: by the service's name, as :meth:`Service.policy` gave it.
    """
    found: list[list[str]] = []
    for service in services:
        if policies.get(service.name):
            found.append(service.policy_argv(policies[service.name]))
        found.append(service.start_argv())
    return found


def all_commands(
    psql: t.Sequence[str], database: str, run_id: str, services: t.Sequence[Service], policies: t.Mapping[str, str]
) -> dict[str, list[list[str]]]:
    """`open`, `start`, `stop` and `swap_back` for a run that swaps."""
    old, replaced = (naming.database(database, kind, run_id) for kind in ("old", "replaced"))
    return {
        "open": open_commands(psql, database, None),
        "start": start_commands(services, policies),
        "stop": [service.stop_argv() for service in reversed(services)],
        "swap_back": swap_back_commands(psql, database, old, replaced),
    }
