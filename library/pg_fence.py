#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Close a PostgreSQL database to everybody, or open it again; proved from outside."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_fence
short_description: Close a PostgreSQL database to everybody, or open it again
description:
  - Closes it with C(ALLOW_CONNECTIONS false), which keeps superusers out as well, waits for the sessions of services
    that have been stopped, ends those that are left, and proves from another database that nobody is in it.
  - Sessions that nobody described are named. Unless O(unknown_clients=end), the database is opened again and the task
    fails. In check mode, one that is gone within a second is none of them, such as that of a health check.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database, stack.services]
options:
  state:
    description: V(closed) lets nobody in, V(open) everybody.
    type: str
    choices: [closed, open]
    required: true
  addresses:
    description: The addresses of the services, as RV(addresses) had them in check mode, before they were stopped.
      Without it, who is still there after O(patience) is none of the services.
    type: list
    elements: str
  known_clients:
    description: Who may be ended, too, as regular expressions for C(APPLICATION_NAME/ROLE).
    type: list
    elements: str
    default: []
  unknown_clients:
    description: What becomes of clients that nobody described.
    type: str
    choices: [refuse, end]
    default: refuse
  patience:
    description: Seconds for the sessions of stopped services to go.
    type: int
    default: 10
attributes:
  check_mode:
    support: full
    description: Looks for clients that nobody described, and fails as it would; nothing is closed.
  diff_mode:
    support: full
    description: Whether it is open.
  idempotent:
    support: full
    description: A database that is closed and empty, or open, is left alone.
"""

EXAMPLES = r"""
- name: Let nobody in
  pg_fence:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    services: [{name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}]
    state: closed
    known_clients: [metabase/reporting]
"""

RETURN = r"""
oid:
  description: The database's object id.
  returned: always
  type: int
  sample: 16384
addresses:
  description: The addresses of the services that run; null where one of them has none, and everybody may be one.
  returned: always
  type: list
  elements: str
  sample: [172.18.0.4, 172.18.0.5]
ended:
  description: The sessions that were ended, those of stopped services among them; in check mode, those that are there.
  returned: when state is closed
  type: list
  elements: str
  sample: ["process 812 (aiuser, celery, from 172.18.0.5, idle, for 812 s)"]
"""

import re
import typing as t

from ansible.module_utils.alembic_recovery import arguments, fence, postgres, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "services": arguments.SERVICES,
    "state": {"type": "str", "choices": ["closed", "open"], "required": True},
    "addresses": {"type": "list", "elements": "str"},
    "known_clients": {"type": "list", "elements": "str", "default": []},
    "unknown_clients": {"type": "str", "choices": ["refuse", "end"], "default": "refuse"},
    "patience": {"type": "int", "default": 10},
}


def close(module: AnsibleModule, maintenance: postgres.Database, known: fence.Known) -> dict[str, t.Any]:
    """Close it and prove it; the task's result without the database's entry.

    :raises RecoveryError: there are clients that nobody described, or somebody does not go.
    """
    params, name = module.params, module.params["database"]["name"]
    seen = fence.sessions(maintenance, name)
    is_open = fence.entries(maintenance, name)[name]["open"]
    if module.check_mode or not (is_open or seen):
        unknown = fence.strangers_who_stay(maintenance, name, known) if params["unknown_clients"] == "refuse" else []
        if unknown:
            raise fence.refusal(unknown, name)
        return {"changed": is_open or bool(seen), "ended": [str(session) for session in seen]}
    record.begin(params["run_directory"], "fencing")
    fence.close(maintenance, name)
    try:
        unknown = fence.wait_for_leaving(maintenance, name, known, params["patience"])
        if unknown and params["unknown_clients"] == "refuse":
            raise fence.refusal(unknown, name)
        ended = [str(session) for session in fence.sessions(maintenance, name)]
        fence.empty(maintenance, name)
        if fence.entries(maintenance, name)[name]["open"]:
            raise RecoveryError(f"{name} was closed, and is open: somebody else opens it.")
    except RecoveryError:
        fence.reopen(maintenance, name)
        raise
    record.begin(params["run_directory"], "fenced", ended=len(ended))
    return {"changed": True, "ended": ended}


def open_again(module: AnsibleModule, places: arguments.Places, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Open it, and prove it with a new connection; the task's result without the database's entry."""
    if not entry["open"] and not module.check_mode:
        fence.reopen(places.maintenance(), entry["name"])
    if not module.check_mode:
        places.database().identity()
    return {"changed": not entry["open"]}


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, and unless in check mode close or open; the task's result."""
    params = module.params
    for pattern in params["known_clients"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise StackError(f"recovery_known_clients: {pattern!r} is no regular expression: {error}.") from error
    places = arguments.Places(params)
    maintenance, name = places.maintenance(), params["database"]["name"]
    entry = fence.entries(maintenance, name).get(name)
    if entry is None:
        raise StackError(f"There is no database {name}. Correct recovery_stack.database.name.")
    addresses = params["addresses"]
    if addresses is None and module.check_mode:
        addresses = fence.addresses(places.services())
    if params["state"] == "closed":
        result = close(module, maintenance, fence.Known(addresses, params["known_clients"]))
    else:
        result = open_again(module, places, entry)
    states = {True: "open\n", False: "closed\n"}
    result["diff"] = {"before": states[entry["open"]], "after": states[params["state"] == "open"]}
    return {"oid": entry["oid"], "addresses": addresses, **result}


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
