#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Look whether a database can be copied and renamed in its server, who is in it, and what runs have left beside it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_swap_check
short_description: Look whether a PostgreSQL database can be copied and swapped in its server
description:
  - Asks the database O(database.maintenance_db) only, so it also works while the database itself is closed, broken or
    missing.
  - Names what hinders a copy (M(pg_clone)) or a rename, who is connected, and the databases that runs have left.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.database]
seealso:
  - module: pg_clone
"""

EXAMPLES = r"""
- name: Look whether the database can be swapped
  pg_swap_check:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
  register: swap
"""

RETURN = r"""
exists:
  description: Whether there is such a database.
  returned: always
  type: bool
  sample: true
oid:
  description: Its object id; none if it is not there.
  returned: always
  type: int
  sample: 16384
allow_connections:
  description: Whether anybody can connect to it at all; none if it is not there.
  returned: always
  type: bool
  sample: true
size_bytes:
  description: Its size; none if it is not there, or the role may not know.
  returned: always
  type: int
  sample: 8143651
clone_possible:
  description: Whether a copy of it can be made once nobody is connected to it.
  returned: always
  type: bool
  sample: true
rename_possible:
  description: Whether it can be renamed once nobody is connected to it.
  returned: always
  type: bool
  sample: true
reasons:
  description: Why one of both is not possible, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["Logical replication slots hang on aiproxy: cdc."]
unknown:
  description: What could not be told, one sentence each; it is no reason against anything.
  returned: always
  type: list
  elements: str
  sample: ["The free space is unknown: the server is on db.example.com."]
free_bytes:
  description: The free space where the server keeps the database's data, if it is known.
  returned: always
  type: int
  sample: 85899345920
needed_bytes:
  description: The space that a copy needs, if it is known.
  returned: always
  type: int
  sample: 75252515
sessions:
  description: Who is connected to it now.
  returned: always
  type: list
  elements: dict
  sample:
    - {pid: 71, user: aiuser, application: api, address: 172.18.0.5, state: idle, since_seconds: 12,
       query_start: "2025-10-21 03:14:48.1+00"}
leftovers:
  description: The databases of ours beside it, by their names.
  returned: always
  type: list
  elements: dict
  sample: [{name: aiproxy_old_20251021t031500z_7f3a, kind: old, oid: 16999, size_bytes: 8143651, open: false}]
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, neighbours, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {**arguments.COMMON, "database": arguments.DATABASE}


def execute(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Look; the task's result."""
    database = params["database"]
    seen = neighbours.look(arguments.Places(params), database["name"], database["maintenance_db"])
    found = seen.database or {}
    return {
        "exists": seen.database is not None,
        "oid": found.get("oid"),
        "allow_connections": found.get("allow_connections"),
        "size_bytes": found.get("size_bytes"),
        "clone_possible": not seen.for_clone,
        "rename_possible": not seen.for_rename,
        "reasons": seen.reasons,
        "unknown": seen.unknown,
        "free_bytes": seen.free_bytes,
        "needed_bytes": seen.needed_bytes,
        "sessions": seen.sessions,
        "leftovers": seen.leftovers,
    }


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module.params)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
