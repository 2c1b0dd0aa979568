#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Restore a PostgreSQL dump that somebody else has made into a new database."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_restore_foreign
short_description: Restore a PostgreSQL dump that somebody else has made into a new database
description:
  - Recognises the dump by its content, never by its name. Custom, directory and tar format, and plain SQL, as they are
    or compressed with gzip or zstd.
  - Refuses, with the reason, a dump that a terminal has mangled, that has messages in it, that was cut off, that is
    from a newer server, that works on more than one new database, or that has commands for C(psql) itself.
  - Restores into a new database of the encoding and locale of O(database.name), owned by O(database.user), as that
    role. Archives with C(pg_restore --exit-on-error --no-owner), so everything belongs to that role whoever owned it;
    C(CREATE EXTENSION) succeeds where that role may do it. Plain SQL with the server's own C(psql), in one transaction
    that ends at the first error; its own owners and grants are executed, so their roles must exist.
  - In Docker, both run in a one-off container of the server container's image, in its network, to which the file's
    directory is given read-only.
  - The number of rows of each table, and the version rows, are compared with what the file says; those of an archive
    are read by C(pg_restore) before anything is made. On any failure the new database is dropped.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  path:
    description: The file, or the directory of a dump in directory format, on the target. The login user must be able to
      read it.
    type: path
    required: true
  into:
    description: The name of the new database.
    type: str
    required: true
  plain_sql:
    description:
      - What to do with plain SQL, which is a program and can do whatever O(database.user) may do in the server. Where
        that role is a superuser, as it is in the official image, that is everything.
      - V(refuse) does not execute it. V(execute) does, after the same look at it as for all files.
    type: str
    choices: [refuse, execute]
    default: refuse
  privileges:
    description: Whether the grants of an archive are executed. Their roles must exist.
    type: bool
    default: false
  version_table:
    description: Alembic's version table, as C(table) or C(schema.table).
    type: str
    default: alembic_version
  work_directory:
    description: Where a compressed file is unpacked, and removed again; made with mode C(0700) if it is not there.
      Needed for compressed files only. What a killed run has left there is removed by the next of the same O(run_id).
    type: path
  timeout:
    description: Seconds that the restore may take.
    type: int
    default: 21600
attributes:
  check_mode:
    support: full
    description: The file is read through and everything is checked, nothing is made. What is in an archive that is
      compressed once more is not known then, for it would have to be unpacked.
  diff_mode:
    support: none
    description: A new database has no form of before.
  idempotent:
    support: none
    description: It is restored into a new database only; one that is there already is refused, and left as it is.
seealso:
  - module: pg_backup
"""

EXAMPLES = r"""
- name: Restore the dump of a colleague
  pg_restore_foreign:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    path: /home/operator/backup_2025-10-20.sql.gz
    into: aiproxy_restored_20251021t031500z_7f3a
    plain_sql: execute
    work_directory: /var/backups/alembic-recovery/prod/work
"""

RETURN = r"""
into:
  description: The name of the new database.
  returned: always
  type: str
  sample: aiproxy_restored_20251021t031500z_7f3a
kind:
  description: What the file is, V(custom), V(directory), V(tar) or V(plain).
  returned: success
  type: str
  sample: plain
compression:
  description: How it is compressed, V(gzip), V(zstd), or empty.
  returned: success
  type: str
  sample: gzip
dumped_from:
  description: The version of the server that it is from, as it says.
  returned: success
  type: str
  sample: "15.14"
dumped_by:
  description: The version of the pg_dump that has made it, as it says.
  returned: success
  type: str
  sample: "15.14"
rows:
  description: The number of rows of each table in the file, null where it is not known in check mode.
  returned: success
  type: dict
  sample: {public.songs: 120}
total_rows:
  description: Their sum.
  returned: success
  type: int
  sample: 120
uncounted:
  description: Tables whose number of rows could not be told from the file, and was not compared.
  returned: success
  type: list
  elements: str
  sample: []
revisions:
  description: The version rows in it, null without a version table.
  returned: success
  type: list
  elements: str
  sample: [0f864573b58a]
sha256:
  description: The SHA-256 of the file; of a directory, that of the list of its files' names and sums.
  returned: success
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
seconds:
  description: How long the restore took, the comparison included.
  returned: when it was restored
  type: float
  sample: 3.2
problems:
  description: Why the file must not be restored, one sentence for each reason.
  returned: when it is refused for what is in it
  type: list
  elements: str
  sample: []
"""

import os
import time
import typing as t

from ansible.module_utils.alembic_recovery import arguments, foreign_dump, foreign_restore, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "path": {"type": "path", "required": True},
    "into": {"type": "str", "required": True},
    "plain_sql": {"type": "str", "choices": ["refuse", "execute"], "default": "refuse"},
    "privileges": {"type": "bool", "default": False},
    "version_table": {"type": "str", "default": "alembic_version"},
    "work_directory": {"type": "path"},
    "timeout": {"type": "int", "default": 21600},
}


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look at everything, and unless in check mode restore; the task's result."""
    params = module.params
    if not os.path.isabs(params["path"]):
        raise StackError(f"{params['path']} does not begin at the root. Give the whole path of the file.")
    arguments.refuse_masked(module, [params["into"], params["path"]])
    with foreign_restore.ForeignRestore(params) as restore:
        restore.look(write=not module.check_mode)
        found = restore.found
        known = found.kind == "plain" or not (found.compression and module.check_mode)
        result: dict[str, t.Any] = {
            "into": params["into"],
            "kind": found.kind,
            "compression": found.compression,
            "dumped_from": found.dumped_from,
            "dumped_by": found.dumped_by,
            "rows": found.rows if known else None,
            "total_rows": sum(found.rows.values()) if known else None,
            "uncounted": found.uncounted,
            "revisions": found.revisions,
            "sha256": foreign_dump.sha256(params["path"]),
        }
        arguments.refuse_masked(module, [result["rows"], result["revisions"]])
        if not module.check_mode:
            started = time.monotonic()
            restore.restore()
            result["seconds"] = round(time.monotonic() - started, 3)
    return {"changed": True, **result}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
