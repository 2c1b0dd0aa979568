#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Write the rows of a PostgreSQL database that were written since a transaction to a file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_export
short_description: Write the rows that were written to a PostgreSQL database since a transaction to a file
description:
  - Writes the rows that M(pg_written) counts to a file on the target, one line of JSON for each, so that nothing is
    lost by going back to a database from before. They are streamed, however many there are, and in one snapshot.
  - The file holds data of the application. Only its owner can read it, and no part of it is in the task's result.
  - It has its name only when it is whole and on the disk; on any failure nothing is left behind.
  - A line can be put back with C(insert into songs select * from jsonb_populate_record(null::songs, '…')), where the
    text is the C(row) of the line.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  since_xid:
    description: The number of the transaction, as C(pg_current_xact_id()) gives it; that of the swap is in the record
      of the run.
    type: str
    required: true
  path:
    description: The file, which must not be there yet. Its directory is made with mode C(0700) if it is not there, and
      must not be open to others.
    type: path
    required: true
  version_table:
    description: Alembic's version table, as C(table) or C(schema.table); it is left out.
    type: str
    default: alembic_version
attributes:
  check_mode:
    support: full
    description: The rows are counted, nothing is written.
  diff_mode:
    support: none
    description: The rows are not shown.
  idempotent:
    support: none
    description: Rows are written all the time; a file that is there already is refused, and left as it is.
seealso:
  - module: pg_written
"""

EXAMPLES = r"""
- name: Keep what was written since the swap
  pg_export:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    since_xid: "81723"
    path: /var/backups/alembic-recovery/prod/backups/aiproxy_20251021T031500Z-7f3a.written.jsonl
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
  sample: /var/backups/alembic-recovery/prod/backups/aiproxy_20251021T031500Z-7f3a.written.jsonl
tables:
  description: The number of rows by table; those without such rows are left out.
  returned: always
  type: dict
  sample: {public.songs: 3}
rows:
  description: The number of rows.
  returned: always
  type: int
  sample: 3
sha256:
  description: The SHA-256 of the file.
  returned: when it was written
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
size_bytes:
  description: The size of the file.
  returned: when it was written
  type: int
  sample: 812
"""

import contextlib
import os
import typing as t

from ansible.module_utils.alembic_recovery import arguments, catalog, files, record, written
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "since_xid": {"type": "str", "required": True},
    "path": {"type": "path", "required": True},
    "version_table": {"type": "str", "default": "alembic_version"},
}


def check_path(path: str) -> None:
    """:raises StackError: nothing can be written there, or something is there already."""
    if not os.path.isabs(path):
        raise StackError(f"{path} does not begin at the root. Give the whole path of the file.")
    if os.path.lexists(path):
        raise StackError(
            f"{path} is there already: what was written since has been exported before. Nothing is overwritten. "
            "Compare its date with the time of the swap; give another path to export again."
        )
    problem = files.privacy_problem(os.path.dirname(path))
    if problem:
        raise StackError(problem)


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Count or write the rows; the task's result."""
    params = module.params
    check_path(params["path"])
    arguments.refuse_masked(module, params["path"])
    database = arguments.Places(params).database()
    with database.snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
        low, _ambiguous = written.begin(snapshot, params["since_xid"])
        if module.check_mode:
            found = written.count(snapshot, low, None, params["version_table"])
            tables = {table.table: table.written for table in found if table.written}
        else:
            tables = _write(params["path"], lambda write: written.export(snapshot, low, params["version_table"], write))
    result = {"path": params["path"], "tables": tables, "rows": sum(tables.values())}
    if not module.check_mode:
        result.update(sha256=files.sha256(params["path"]), size_bytes=os.path.getsize(params["path"]))
    arguments.refuse_masked(module, result)
    return result


def _write(path: str, export: t.Callable[[t.Callable[[str], t.Any]], dict[str, int]]) -> dict[str, int]:
    partial = f"{path}.partial"
    files.private_directory(os.path.dirname(path))
    # What a killed run has left: nobody else writes in here.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    try:
        with files.open_private(partial) as file:
            counts = export(file.write)
        files.settle(partial, path)
    except OSError as error:
        raise StackError(f"{path} cannot be written: {error.strerror}. Nothing was left; give another path.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    return counts


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
