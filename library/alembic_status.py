#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Compare a PostgreSQL database with the Alembic revisions that its application's code expects."""

from __future__ import annotations

DOCUMENTATION = r"""
module: alembic_status
short_description: Compare a database with the Alembic revisions its code expects
description:
  - Runs the application's own Alembic, with its unmodified C(env.py), in the application's own Python, in a read-only
    session, and reads version table and catalog over a connection of its own.
  - Returns exactly one named verdict with its evidence, the next command, and what will not be done. A database or
    code
    that cannot be read is a verdict too (V(UNREADABLE)), not a failed task.
  - If the application's container is not running, or restarts in a loop, its code is read in a one-off container
    made from
    its image and configuration, which is removed afterwards.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.application, stack.database]
options:
  expected_current:
    description: The revision that the plan believes to be in the database. A different one is a refusal.
    type: str
  expected_head:
    description: The revision that the code must have as a head. A different one is a refusal.
    type: str
  relations:
    description:
      - What must be there once the database is at head, as C(table), C(table.column), C(schema.table) or
        C(schema.table.column).
    type: list
    elements: str
    default: []
  limit:
    description: The name to put into the commands that are proposed.
    type: str
    default: prod
  timeout:
    description: Seconds that the application may be silent.
    type: int
    default: 120
seealso:
  - module: alembic_migrate
"""

EXAMPLES = r"""
- name: Compare database and code
  alembic_status:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    application: {runtime: docker, container: mac_ki_service-aiproxysrv-1, workdir: /app}
    expected_head: d4641a241b98
    relations: [song_sketches, songs.sketch_id]
  register: status

- name: Stop unless the database is where the code expects it
  ansible.builtin.assert:
    that: status.verdict == 'AT_HEAD'
    fail_msg: "{{ status.summary }} Next: {{ status.next_step }}"
"""

RETURN = r"""
verdict:
  description: The one name for the state.
  returned: always
  type: str
  sample: BEHIND
summary:
  description: The verdict in one sentence, with the revisions seen and expected.
  returned: always
  type: str
  sample: "The database is at 0f864573b58a, the code expects d4641a241b98: 2 revisions are missing."
next_step:
  description: What to run or do next.
  returned: always
  type: str
  sample: ansible-playbook recover.yml -l prod
will_not:
  description: What will not be done in this state.
  returned: always
  type: str
  sample: No revision is skipped, and nothing is stamped.
recoverable:
  description: Whether C(recover.yml) can do something about it, or has nothing to do.
  returned: always
  type: bool
  sample: true
findings:
  description: What else was seen; severity is V(info), V(warning) or V(refusal).
  returned: always
  type: list
  elements: dict
  sample: [{name: commits_itself, severity: warning, text: "Revision 234ea0f4b6c3 calls commit() itself: …"}]
refusals:
  description: The texts of those findings with which a recovery does not go on.
  returned: always
  type: list
  elements: str
  sample: []
current:
  description: The rows of the version table.
  returned: always
  type: list
  elements: str
  sample: [0f864573b58a]
heads:
  description: The code's heads.
  returned: always
  type: list
  elements: str
  sample: [d4641a241b98]
missing:
  description: The revisions to apply, in order.
  returned: always
  type: list
  elements: dict
  sample: [{revision: d4641a241b98, message: add_song_sketches_table, file: d4641a241b98_add_song_sketches_table.py}]
version_table:
  description: The version table, with its schema where C(env.py) sets one.
  returned: always
  type: str
  sample: alembic_version
revision_count:
  description: How many revisions the code has.
  returned: always
  type: int
  sample: 4
missing_relations:
  description: Those of O(relations) that the database does not have.
  returned: always
  type: list
  elements: str
  sample: [song_sketches, songs.sketch_id]
database:
  description: Which database of which server was read; empty if it could not be.
  returned: always
  type: dict
  sample: {name: aiproxy, oid: 16384, server_version: "15.18", system_identifier: "7410987613213532659"}
application:
  description: The versions in the application's environment; empty if it could not be started.
  returned: always
  type: dict
  sample: {python: 3.11.2, alembic: 1.20.1, sqlalchemy: 2.0.44, workdir: /app}
images:
  description: Image ids by container.
  returned: always
  type: dict
  sample: {mac_ki_service-aiproxysrv-1: "sha256:2c5f…"}
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, status
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.verdict import Wishes
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "application": arguments.APPLICATION,
    "database": arguments.DATABASE,
    "expected_current": {"type": "str"},
    "expected_head": {"type": "str"},
    "relations": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "str", "default": "prod"},
    "timeout": {"type": "int", "default": 120},
}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    params = module.params
    places = arguments.Places(params)
    try:
        seen = status.look(
            places.application(),
            places.database,
            params["application"],
            Wishes(params["expected_current"], params["expected_head"]),
            params["relations"],
            timeout=params["timeout"],
        )
        result = seen.as_result(params["limit"])
        arguments.refuse_masked(module, [result[key] for key in ("version_table", "current", "heads", "missing")])
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
