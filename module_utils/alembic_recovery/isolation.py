"""Whether an application in a network of its own would find a throwaway server as it finds its database's, and how.

It looks for its database by a name. In another network a throwaway server can have that name; it cannot have an address
of this host, or be in the application's own container.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.alembic_recovery.errors import StackError

Inspected = t.Mapping[str, t.Any]

# Docker's default network, in which containers find each other by `--link` alone.
_DEFAULT = "bridge"
_INSTEAD = "Rehearse beside the database instead."


def aliases(seen: Inspected, application: Inspected | None = None) -> list[str]:
    """The names under which others know a container: its own, those in its networks, and an application's; not its id.

    :param seen: `docker inspect` of it.
    :param application: `docker inspect` of the application's container, which may have links to it.
    """
    labels = seen["Config"].get("Labels") or {}
    names = [_name(seen), labels.get("com.docker.compose.service")]
    for network in _networks(seen).values():
        names += [*(network.get("Aliases") or []), *(network.get("DNSNames") or [])]
    names += _linked(seen, application) if application else []
    return sorted({name for name in names if name and not seen["Id"].startswith(name)})


def check(database: Inspected, application: Inspected | None) -> None:
    """Look whether a throwaway server can take the place of a database's container.

    :param database: `docker inspect` of it.
    :param application: the same of the application's container, where it is known.
    :raises StackError: it cannot.
    """
    mode = _without_names(database)
    if mode:
        raise StackError(
            f"The database's container {_name(database)} has {mode}: it has no name in a Docker network, under which "
            f"the application could find a throwaway server in its place. {_INSTEAD}"
        )
    if application is None:
        return
    who, mode = _name(application), _without_names(application)
    if mode:
        raise StackError(
            f"The application's container {who} has {mode}, so it does not find its database by a name in a Docker "
            f"network. In a network of its own it would not find a throwaway server. {_INSTEAD}"
        )
    if not _linked(database, application) and not (_named(database) & _named(application)):
        raise StackError(
            f"The application's container {who} ({_described(application)}) does not share a network in which "
            f"containers have names with the database's, {_name(database)} ({_described(database)}), so it finds its "
            f"database by an address. In a network of its own it would not find a throwaway server. {_INSTEAD}"
        )


def _name(seen: Inspected) -> str:
    return str(seen["Name"]).lstrip("/")


def _networks(seen: Inspected) -> t.Mapping[str, t.Mapping[str, t.Any]]:
    return (seen.get("NetworkSettings") or {}).get("Networks") or {}


def _named(seen: Inspected) -> set[str]:
    return set(_networks(seen)) - {_DEFAULT}


def _described(seen: Inspected) -> str:
    return f"in {', '.join(sorted(_networks(seen)))}" if _networks(seen) else "in no network"


def _without_names(seen: Inspected) -> str:
    """In words, the network mode of a container that is in no network of its own; empty where it is in one."""
    mode = str(seen["HostConfig"].get("NetworkMode") or "")
    if mode in ("host", "none"):
        return f"network mode {mode}"
    return "the network of another container" if mode.startswith("container:") else ""


def _linked(database: Inspected, application: Inspected) -> list[str]:
    """The names that the application's container has for the database's by links."""
    pairs = [pair.partition(":") for pair in application["HostConfig"].get("Links") or []]
    for network in _networks(application).values():
        pairs += [pair.partition(":") for pair in network.get("Links") or []]
    # In the default network they are written as paths: `/shop-db-1:/shop-api-1/db`.
    found = [(target.lstrip("/"), alias.rpartition("/")[2]) for target, _colon, alias in pairs]
    return [alias or target for target, alias in found if target and target in (_name(database), database["Id"])]
