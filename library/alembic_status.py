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
  - Where the database is ahead of the code in a container, up to twelve local images are looked into for the revision.
    From each a container is made without a network, never started, and removed.
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
  compare_models:
    description:
      - Also compare the models with the catalog, as C(alembic check) would with the application's own C(env.py), if the
        database is at head; and hash the revisions that were applied last. In the same process start; nothing is
        written.
    type: bool
    default: false
  baselines:
    description:
      - The directory on the target in which M(alembic_baseline) has recorded what may differ. With it, differences that
        are not recorded are drift (V(DRIFTED)). Without, they are only returned.
    type: path
  limit:
    description: The name to put into the commands that are proposed.
    type: str
    default: prod
  timeout:
    description: Seconds that the application may be silent.
    type: int
    default: 120
seealso:
  - module: alembic_baseline
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
  description:
    - The revisions to apply, in order. C(downgrade) is what its source says of the way back, V(present), V(empty) (it
      does nothing) or V(raises) (it fails, whatever the database is like).
  returned: always
  type: list
  elements: dict
  sample:
    - revision: d4641a241b98
      message: add_song_sketches_table
      file: d4641a241b98_add_song_sketches_table.py
      downgrade: present
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
declared:
  description:
    - What revisions declare, compared with the catalog, without running them. V(partial) are revisions that are not
      applied and partly there, V(lost) are applied ones whose objects are not there, each with the
      objects that are C(there) and C(absent); V(unknown) says by revision why it could not be followed to its end.
  returned: always
  type: dict
  sample:
    partial: [{revision: d4641a241b98, there: [table song_sketches], absent: [column songs.sketch_id], decisive: true}]
    lost: []
    unknown: {234ea0f4b6c3: "it uses the connection (execute)"}
models:
  description:
    - The comparison of models and catalog, for M(alembic_baseline). C(state) is V(compared), V(no_models),
      V(below_head) or V(failed), the last three with a C(reason). C(drift) are those of the C(differences) that the
      baseline (C(recorded_at)) does not have; C(edited) has revisions whose source is another than the recorded one.
      Empty without O(compare_models), or if the code could not be read.
  returned: always
  type: dict
  sample:
    state: compared
    reason:
    fingerprint: 5d41402abc4b2a76b9719d911017c592
    differences: [{side: missing, table: songs, object: index ix_songs_status on songs, detail: status}]
    drift: [{side: missing, table: songs, object: index ix_songs_status on songs, detail: status}]
    recorded_at: "2025-10-21T03:15:00+00:00"
    sources: {d4641a241b98: 7d793037a0760186574b0282f2f435e7}
    edited: {}
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

from ansible.module_utils.alembic_recovery import arguments, record, status
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
    "compare_models": {"type": "bool", "default": False},
    "baselines": {"type": "path"},
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
        with record.presence(params["run_directory"]):
            seen = status.look(
                places.application(),
                places.database,
                params["application"],
                Wishes(params["expected_current"], params["expected_head"]),
                params["relations"],
                timeout=params["timeout"],
                models=params["compare_models"],
                baselines=params["baselines"],
                run_id=params["run_id"],
            )
            result = seen.as_result(params["limit"])
            arguments.refuse_masked(module, [result[key] for key in ("version_table", "current", "heads", "missing")])
            if arguments.is_masked(module, result["models"]):
                # Recorded in part, it would never be the same again.
                result["models"] = {**result["models"], "state": "failed", "reason": "a secret is part of it"}
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
