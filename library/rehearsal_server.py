#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Make a throwaway PostgreSQL server like the one in production, in a network of its own, or remove it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rehearsal_server
short_description: Make a throwaway PostgreSQL server for a rehearsal, or remove it
description:
  - Makes a container of the very image that the database's container runs, with production's roles (without their
    passwords), encoding, locale, and those of its settings that decide how migrations run. There are no databases in
    it but PostgreSQL's own; M(pg_restore) makes one.
  - It is in an internal network of its own, without ports, and without a way out. In it, it has all names that the
    database's container has in its networks, so an application in there finds it where it expects its database. It
    trusts everybody in that network, and nobody else, not even the host.
  - It can do nothing but be a database (no capabilities, no root, a read-only file system, a limit of processes), and
    writes nothing but its volume. It does not survive a crash, and need not.
  - Container, network and volume have the name C(alembic-recovery-RUN_ID-rehearsal), and labels.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database, stack.application]
options:
  application:
    description: The application that is to find it in place of its database, where there is one. Then it is refused
      beforehand where the application in a network of its own would not find it. The same words as
      C(recovery_stack.app); only its container is looked at.
    required: false
  state:
    description: V(present) makes it and waits until it answers, V(absent) removes container, network and volume.
    type: str
    choices: [present, absent]
    default: present
  leftovers:
    description: With O(state=absent), whether to remove what rehearsals of other runs have left for the same database's
      container, too.
    type: bool
    default: false
  timeout:
    description: Seconds until it must answer.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Production's server is looked at, and what there is of an earlier call. Nothing is made or removed.
  diff_mode:
    support: none
    description: A server has no form of before.
  idempotent:
    support: full
    description: A server of the same O(run_id) that runs is left as it is; one that is only half there is made again.
seealso:
  - module: pg_restore
"""

EXAMPLES = r"""
- name: Make a server for the rehearsal
  rehearsal_server:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    application: {runtime: docker, container: mac_ki_service-aiproxysrv-1, workdir: /app}
    run_id: 20251021T031500Z-7f3a
  register: rehearsal

- name: Restore the backup into it
  pg_restore:
    database: "{{ rehearsal.database }}"
    manifest: /var/backups/alembic-recovery/prod/aiproxy_20251021T031500Z-7f3a.manifest.json
    into: aiproxy
    other_cluster: true
    run_id: 20251021T031500Z-7f3a

- name: Remove it, and what killed runs have left
  rehearsal_server:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    run_id: 20251021T031500Z-7f3a
    state: absent
    leftovers: true
"""

RETURN = r"""
container:
  description: The name of the container, of its network and of its volume.
  returned: success
  type: str
  sample: alembic-recovery-20251021T031500Z-7f3a-rehearsal
network:
  description: The network in which it can be reached, for C(application.network).
  returned: with O(state=present)
  type: str
  sample: alembic-recovery-20251021T031500Z-7f3a-rehearsal
aliases:
  description: Its names in that network.
  returned: with O(state=present)
  type: list
  elements: str
  sample: [mac_ki_service-postgres-1, postgres]
image_id:
  description: The image, which is that of the database's container.
  returned: with O(state=present)
  type: str
  sample: sha256:5f2c1e…
database:
  description: The option C(database) of the other modules for this server.
  returned: with O(state=present)
  type: dict
  sample: {runtime: docker, container: alembic-recovery-1-rehearsal, name: aiproxy, user: aiuser,
    maintenance_db: postgres, admin_user: postgres}
version:
  description: Its version, which is that of the database's server.
  returned: with O(state=present)
  type: str
  sample: "15.14"
roles:
  description: How many roles it has.
  returned: with O(state=present)
  type: int
  sample: 3
removed:
  description: What was removed (in check mode, what would be).
  returned: success
  type: list
  elements: str
  sample: [container alembic-recovery-1-rehearsal, network alembic-recovery-1-rehearsal]
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 3.1
"""

import time
import typing as t

from ansible.module_utils.alembic_recovery import arguments, isolation, record, rehearsal
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "application": {**arguments.APPLICATION, "required": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "leftovers": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 120},
}


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, and unless in check mode make or remove the server; the task's result."""
    params, started = module.params, time.monotonic()
    database = params["database"]
    if database["runtime"] != "docker":
        raise StackError(
            "A throwaway server is made of the image of the database's container; this database has runtime: host. "
            "Rehearse with a database beside it."
        )
    places = arguments.Places(params)
    server = rehearsal.Rehearsal(places.docker, params["run_id"], places.container(database))
    act = absent if params["state"] == "absent" else present
    result = act(module, places, server)
    return {**result, "container": server.name, "seconds": round(time.monotonic() - started, 3)}


def absent(module: AnsibleModule, _places: arguments.Places, server: rehearsal.Rehearsal) -> dict[str, t.Any]:
    """Remove it."""
    things = server.there()
    if module.params["leftovers"]:
        things = sorted({*things, *server.left_behind()})  # containers before networks before volumes
    if not module.check_mode:
        server.remove(things)
    return {"changed": bool(things), "removed": things}


def application(places: arguments.Places, place: dict[str, t.Any] | None) -> isolation.Inspected | None:
    """What Docker knows of the application's container, where one is given."""
    if place is None:
        return None
    if place["runtime"] != "docker":
        raise StackError(
            "The application has runtime: host, and a process of this host is in no Docker network: it would not find "
            "a throwaway server. Rehearse beside the database instead."
        )
    return places.docker.inspect(places.container(place))


def present(module: AnsibleModule, places: arguments.Places, server: rehearsal.Rehearsal) -> dict[str, t.Any]:
    """Make it."""
    database = module.params["database"]
    runtime = places.database_runtime()
    assert isinstance(runtime, DockerRuntime)
    app = application(places, module.params["application"])
    isolation.check(runtime.seen, app)
    original = rehearsal.look(runtime, places.maintenance(), app)
    whole = server.whole(original)
    remains = [] if whole else server.there()
    if not whole and not module.check_mode:
        server.remove(remains)
        server.make(original, module.params["timeout"])
    return {
        "changed": not whole,
        "network": server.name,
        "aliases": original.aliases,
        "image_id": original.image_id,
        "version": original.version,
        "roles": original.role_count,
        "removed": remains,
        "database": {
            "runtime": "docker",
            "container": server.name,
            "name": database["name"],
            "user": database["user"],
            "maintenance_db": "postgres",
            "admin_user": original.superuser,
        },
    }


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
