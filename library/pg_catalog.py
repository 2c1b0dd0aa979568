#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Read what a PostgreSQL database is made of, with a fingerprint and exact row counts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_catalog
short_description: Read what a PostgreSQL database is made of
description:
  - Reads schemas, relations, columns, constraints, indexes with their validity, sequences, enums, functions,
    triggers,
    policies, extensions and privileges, in one snapshot, over a new connection, in a read-only transaction.
  - Nothing in it depends on object ids or on C(search_path), so a database and its restored copy have the same
    fingerprint.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.database]
options:
  relations:
    description: What to look for, as C(table), C(table.column), C(schema.table) or C(schema.table.column).
    type: list
    elements: str
    default: []
  row_counts:
    description: Whether to count the rows of every table, exactly.
    type: bool
    default: true
  row_counts_before:
    description: RV(row_counts) from before, to find tables that have lost rows.
    type: dict
    default: {}
  version_table:
    description: Alembic's version table, as C(table) or C(schema.table); it may have fewer rows than before.
    type: str
    default: alembic_version
  content:
    description: Whether to make a checksum of each column of each table. This reads everything.
    type: bool
    default: false
  made_anew:
    description: RV(alembic_repair#module:removed) of M(alembic_repair), to see whether what was removed is there again
      as it was.
    type: dict
    default: {}
  structure:
    description: Whether to return the catalog's rows, not only what is computed from them.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Read the catalog
  pg_catalog:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    relations: [song_sketches, songs.sketch_id]
  register: catalog
"""

RETURN = r"""
fingerprint:
  description: The SHA-256 of the structure.
  returned: always
  type: str
  sample: 1624f3ee783eb26f8c780308fc28b0129525ae170f3f731a1f7c660c37321f26
missing_relations:
  description: Those of O(relations) that are not there.
  returned: always
  type: list
  elements: str
  sample: [song_sketches]
invalid_indexes:
  description: Indexes that a failed C(CREATE INDEX CONCURRENTLY) has left.
  returned: always
  type: list
  elements: str
  sample: []
lost_rows:
  description: Tables with fewer rows than O(row_counts_before) says, one sentence each.
  returned: when O(row_counts) is set
  type: list
  elements: str
  sample: ["public.songs has 9999 rows, there were 10000."]
not_made_anew:
  description: What of O(made_anew) is not there, or is made otherwise, one sentence for each object.
  returned: when O(made_anew) is given
  type: list
  elements: str
  sample: ["columns: public.songs.sketch_id is made otherwise: type was 'integer', is 'uuid'."]
sequence_values:
  description: The last value of each sequence; none where it has not been used.
  returned: always
  type: dict
  sample: {public.songs_id_seq: 10000}
properties:
  description: What hangs on the database's own entry (owner, encoding, locale, limits, grants, settings, comment).
  returned: always
  type: dict
  sample: {owner: aiuser, encoding: UTF8, connection_limit: -1}
large_objects:
  description: The number of large objects.
  returned: always
  type: int
  sample: 0
row_counts:
  description: The exact number of rows of each table and materialized view.
  returned: when O(row_counts) is set
  type: dict
  sample: {public.songs: 10000}
content:
  description: A checksum of each column of each table.
  returned: when O(content) is set
  type: dict
  sample: {public.songs: {id: "-81729/10000"}}
structure:
  description: The catalog's rows by part.
  returned: when O(structure) is set
  type: dict
  sample: {extensions: [{name: plpgsql, version: "1.0"}]}
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, catalog, record, repair_proof
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "relations": {"type": "list", "elements": "str", "default": []},
    "row_counts": {"type": "bool", "default": True},
    "row_counts_before": {"type": "dict", "default": {}},
    "version_table": {"type": "str", "default": "alembic_version"},
    "content": {"type": "bool", "default": False},
    "made_anew": {"type": "dict", "default": {}},
    "structure": {"type": "bool", "default": False},
}


def execute(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Read, and compute what is asked for; the task's result."""
    database = arguments.Places(params).database()
    seen = catalog.read_all(database, counts=params["row_counts"], content=params["content"])
    structure = seen.pop("structure")
    result = {
        "properties": seen.pop("database"),
        **seen,
        "missing_relations": catalog.missing_relations(structure, params["relations"]),
        "invalid_indexes": catalog.invalid_indexes(structure),
    }
    if params["row_counts"]:
        before = params["row_counts_before"]
        result["lost_rows"] = catalog.lost_rows(before, seen["row_counts"], params["version_table"])
    if params["made_anew"]:
        removed = params["made_anew"]
        result["not_made_anew"] = repair_proof.not_made_anew(removed["structure"], removed["columns"], structure)
    if params["structure"]:
        result["structure"] = structure
    return result


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
