#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Count what has been written to a PostgreSQL database since a transaction."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_written
short_description: Count what has been written to a PostgreSQL database since a transaction
description:
  - Counts, for each ordinary table and each leaf partition, the rows that were inserted or updated by the given
    transaction or a later one, in one snapshot, over a new connection, in a read-only transaction.
  - Rows that were deleted are gone. With O(row_counts_before) they are seen where a table has fewer rows than then, and
    counted at least.
  - Materialized views are made from tables, and large objects are not tables; neither is counted.
  - Refused where it cannot be told, because the server has had two thousand million transactions since, or is another
    one. Where the server has had more than four thousand million in its life, a row that was frozen a whole round ago
    may be taken for a new one; RV(exact) says so.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.database]
options:
  since_xid:
    description: The number of the transaction, as C(pg_current_xact_id()) gives it; that of the swap is in the record
      of the run.
    type: str
    required: true
  row_counts_before:
    description: The number of rows of each table at that moment, as RV(pg_catalog#module:row_counts) has them.
    type: dict
  version_table:
    description: Alembic's version table, as C(table) or C(schema.table); it is left out.
    type: str
    default: alembic_version
"""

EXAMPLES = r"""
- name: Count what was written since the swap
  pg_written:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    since_xid: "81723"
    row_counts_before: {public.songs: 120}
"""

RETURN = r"""
tables:
  description:
    - The tables to which something was written, or that have another number of rows than then. C(net) is how many more
      there are than then, null without O(row_counts_before); C(has_key) is whether there is a primary key.
  returned: always
  type: list
  elements: dict
  sample: [{table: public.songs, rows: 123, written: 3, net: 3, has_key: true}]
total_written:
  description: The rows that were written, all tables together.
  returned: always
  type: int
  sample: 3
total_fewer:
  description: The rows that tables have fewer than then, all such tables together; so many were deleted at least.
  returned: always
  type: int
  sample: 0
sentences:
  description: The same for people, one sentence for each table.
  returned: always
  type: list
  elements: str
  sample: ["songs: 3 rows written since, 3 more than then."]
exact:
  description: Whether each row can be told for certain; else there may be fewer than were counted.
  returned: always
  type: bool
  sample: true
"""

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import arguments, catalog, record, written
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "since_xid": {"type": "str", "required": True},
    "row_counts_before": {"type": "dict"},
    "version_table": {"type": "str", "default": "alembic_version"},
}


def execute(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Count; the task's result."""
    database = arguments.Places(params).database()
    with database.snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
        low, ambiguous = written.begin(snapshot, params["since_xid"])
        found = written.count(snapshot, low, params["row_counts_before"], params["version_table"])
    changed = [table for table in found if table.written or table.net]
    return {
        "tables": [dataclasses.asdict(table) for table in changed],
        "total_written": sum(table.written for table in changed),
        "total_fewer": sum(max(-(table.net or 0), 0) for table in changed),
        "sentences": [written.sentence(table) for table in changed],
        "exact": not ambiguous,
    }


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module.params)
        arguments.refuse_masked(module, [result["tables"], result["total_written"], result["total_fewer"]])
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
