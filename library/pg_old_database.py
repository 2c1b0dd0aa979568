#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""List the databases that runs have kept, and drop one of them by its exact name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_old_database
short_description: List the databases that runs have kept, and drop one of them by its exact name
description:
  - Runs keep what the application used before a swap, closed, because it is the way back that takes seconds. They are
    never dropped by themselves. This lists them with age and size, and drops the one that O(name) names.
  - A name that does not say that it was kept by a run on O(database.name) is refused, whatever database it is.
  - It is dropped whoever is connected to it. It is refused where something hangs on it that would go with it without a
    word, such as a logical replication slot.
version_added: 0.2.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  state:
    description: V(listed) only looks; V(absent) drops O(name).
    type: str
    choices: [listed, absent]
    default: listed
  name:
    description: The exact name of the database to drop.
    type: str
  keep_days:
    description: Those that are older are listed as due. Nothing is dropped because it is.
    type: int
    default: 7
attributes:
  check_mode:
    support: full
    description: Everything is checked, nothing is dropped.
  diff_mode:
    support: none
    description: A database has no form of before.
  idempotent:
    support: full
    description: A database that is not there is not dropped.
seealso:
  - module: pg_clone
  - module: pg_swap
"""

EXAMPLES = r"""
- name: List what runs have kept
  pg_old_database:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}

- name: Drop one that is no longer needed
  pg_old_database:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    state: absent
    name: aiproxy_old_20251021t031500z_7f3a1c
"""

RETURN = r"""
databases:
  description: The databases that runs have kept, the oldest first, as they were before anything was dropped.
  returned: success
  type: list
  elements: dict
  sample:
    - name: aiproxy_old_20251021t031500z_7f3a1c
      kind: old
      what: what the application used before a swap
      oid: 16384
      kept_at: '2025-10-21T03:15:00+00:00'
      days: 8.2
      due: true
      open: false
      size_bytes: 8143651
      hanging: []
dropped:
  description: The database that was dropped, in check mode that would be; empty if there is none.
  returned: success
  type: str
  sample: aiproxy_old_20251021t031500z_7f3a1c
"""

import datetime
import re
import typing as t

from ansible.module_utils.alembic_recovery import arguments, naming, neighbours, postgres, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "state": {"type": "str", "choices": ["listed", "absent"], "default": "listed"},
    "name": {"type": "str"},
    "keep_days": {"type": "int", "default": 7},
}


def check_name(database: str, name: str) -> None:
    """:raises StackError: the name does not say that a run on the database has kept it."""
    if name == database or naming.kind_of(database, name) not in naming.KEPT:
        kinds = " or ".join(sorted(naming.KEPT))
        raise StackError(
            f"{name!r} is not the name of a database that a run on {database} has kept (NAME_KIND_RUN, with the kind "
            f"{kinds}): it is not dropped. See what is kept: playbooks/old_databases.yml"
        )


def kept_at(name: str) -> datetime.datetime | None:
    """When the run began that has kept it, as its name says; ``None``: there is no such moment."""
    found = re.search(r"_(\d{8}t\d{6}z)_[a-z0-9_]*$", name)
    try:
        return datetime.datetime.strptime(found[1] + "+0000" if found else "", "%Y%m%dt%H%M%Sz%z")
    except ValueError:
        return None


def described(row: t.Mapping[str, t.Any], database: str, now: datetime.datetime, keep_days: int) -> dict[str, t.Any]:
    """One of the list."""
    kind, since = str(naming.kind_of(database, row["name"])), kept_at(row["name"])
    days = round((now - since).total_seconds() / 86400, 1) if since else None
    return {
        "name": row["name"],
        "kind": kind,
        "what": naming.KINDS[kind],
        "oid": row["oid"],
        "kept_at": since.isoformat() if since else None,
        "days": days,
        "due": days is not None and days > keep_days,
        "open": row["allow_connections"],
        "size_bytes": row["size_bytes"],
        "hanging": neighbours.hanging_on(row),
    }


def listed(maintenance: postgres.Database, database: str, keep_days: int) -> list[dict[str, t.Any]]:
    """The databases that runs on `database` have kept, the oldest first."""
    rows = neighbours.databases(maintenance, database, leftovers=True)
    ours = [row for row in rows if naming.kind_of(database, row["name"]) in naming.KEPT]
    now = datetime.datetime.now(datetime.timezone.utc)
    found = [described(row, database, now, keep_days) for row in ours]
    return sorted(found, key=lambda item: (item["kept_at"] or "", item["name"]))


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, and unless in check mode drop what is named; the task's result."""
    params = module.params
    database, name = params["database"]["name"], params["name"]
    if params["state"] == "absent":
        check_name(database, name)
    maintenance = arguments.Places(params).maintenance()
    found = listed(maintenance, database, params["keep_days"])
    arguments.refuse_masked(module, [item["name"] for item in found])
    result = {"databases": found, "dropped": ""}
    one = next((item for item in found if item["name"] == name), None)
    if params["state"] == "listed" or one is None:
        return {"changed": False, **result}
    if one["hanging"]:
        raise StackError(f"{name} is not dropped. {' '.join(one['hanging'])}", **result)
    if not module.check_mode:
        neighbours.drop(maintenance, name)
        if neighbours.databases(maintenance, name):
            raise RecoveryError(f"{name} was dropped, and is there.")
    return {"changed": True, **result, "dropped": name}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS, required_if=[("state", "absent", ("name",))], supports_check_mode=True
    )
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
