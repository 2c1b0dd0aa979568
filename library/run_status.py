#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Look for a run that was cut off, and for what it has left."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_status
short_description: Look for a run that was cut off, and for what it has left
description:
  - Reads the records of the stack's runs, who has the lock, the names of the databases, and what runs have left in the
    Docker Engine; says in one sentence what has to become of it. Asks only the maintenance database, so it also works
    while the application's own is closed.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.database, stack.services]
options:
  directory:
    description: Where the directories of the stack's runs are on the target.
    type: path
    required: true
  end_run:
    description: The run that is to be ended although it may be alive.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Look for a run that was cut off
  run_status:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    services: [{name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}]
    directory: /var/lib/alembic-recovery/prod/runs
"""

RETURN = r"""
action:
  description:
    - V(nothing) was left. V(wait), somebody else is at work. V(take_back), the database has to be opened and the
      services have to be started. V(finish), the services have to be started on the migrated database. V(tidy), only
      remains are there. V(refuse), a person has to look. V(unknown), the server could not be asked.
  returned: always
  type: str
  sample: take_back
sentence:
  description: Why.
  returned: always
  type: str
  sample: "Run 20251021T031500Z-7f3a1c, started by deploy, was cut off in the stage cloning."
todo:
  description: What would be done, in order.
  returned: always
  type: list
  elements: str
  sample: [open aiproxy, start the services that do not run]
run_id:
  description: The name of the run that was cut off; empty if there is none.
  returned: always
  type: str
  sample: 20251021T031500Z-7f3a1c
run_directory:
  description: Its directory; empty if there is none.
  returned: always
  type: str
  sample: /var/lib/alembic-recovery/prod/runs/20251021T031500Z-7f3a1c
reachable:
  description: Whether the application's database is there and open.
  returned: always
  type: bool
  sample: false
kept:
  description: The databases that earlier runs have kept, with which going back is a matter of seconds.
  returned: always
  type: list
  elements: str
  sample: [aiproxy_old_20251019t031500z_1a2b3c]
"""

import os
import typing as t

from ansible.module_utils.alembic_recovery import aftermath, arguments, naming, settle
from ansible.module_utils.alembic_recovery.errors import DatabaseError, RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "services": arguments.SERVICES,
    "directory": {"type": "path", "required": True},
    "end_run": {"type": "str", "default": ""},
}


def execute(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Look, and decide; the task's result."""
    name = params["database"]["name"]
    try:
        seen = settle.look(arguments.Places(params), params, params["directory"], end_run=params["end_run"])
    except DatabaseError as error:
        # Whoever looks at the database itself says that, too, with the verdict.
        nothing: dict[str, t.Any] = {"todo": [], "run_id": "", "run_directory": "", "reachable": False, "kept": []}
        return {"action": "unknown", "sentence": error.message, **nothing}
    found = aftermath.decide(seen, run_id=params["run_id"], end_run=params["end_run"])
    run_id = str(seen.run["run_id"]) if seen.run else ""
    return {
        "action": found.action,
        "sentence": found.sentence,
        "todo": list(found.todo),
        "run_id": run_id,
        "run_directory": os.path.join(params["directory"], run_id) if run_id else "",
        "reachable": bool(seen.databases.get(name, {}).get("open")),
        "kept": sorted(other for other in seen.databases if naming.kind_of(name, other) in naming.KEPT),
    }


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        result = execute(module.params)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
