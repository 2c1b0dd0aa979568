#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Compare the values of SQL queries with what they should be, or with what they were before."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sql_check
short_description: Compare the values of SQL queries with what they should be, or were before
description:
  - Asks each query for one value, over a new connection, in a read-only transaction.
  - With O(phase=before), only measures those that are to be compared with V(before). With O(phase=after), compares.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.database]
options:
  queries:
    description: The assertions. The same words as C(recovery_stack.expect.queries).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What to call it; each its own.
        type: str
        required: true
      sql:
        description: One query with one value, without a semicolon.
        type: str
        required: true
      at_least:
        description: The least acceptable value, or V(before).
        type: raw
      at_most:
        description: The greatest acceptable value, or V(before).
        type: raw
      equals:
        description: The only acceptable value, or V(before).
        type: raw
  phase:
    description: Whether to measure before, or to compare after.
    type: str
    choices: [before, after]
    default: after
  before:
    description: The RV(measured) of the phase before.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Compare the data with what it was
  sql_check:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    queries:
      - {name: songs, sql: "select count(*) from songs", at_least: before}
    before: {songs: 10000}
"""

RETURN = r"""
measured:
  description: The values that were measured, by name; queries that failed have none.
  returned: always
  type: dict
  sample: {songs: 10000}
problems:
  description:
    - The assertions that do not hold, each in one sentence. With O(phase=before), the queries that have no value.
  returned: always
  type: list
  elements: str
  sample: ["songs: the query gives 9999, expected at least 10000."]
not_compared:
  description: The names of those to be compared with V(before) for which O(before) has no value.
  returned: always
  type: list
  elements: str
  sample: []
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, assertions, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "queries": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "sql": {"type": "str", "required": True},
            "at_least": {"type": "raw"},
            "at_most": {"type": "raw"},
            "equals": {"type": "raw"},
        },
        "required_one_of": [("at_least", "at_most", "equals")],
    },
    "phase": {"type": "str", "choices": ["before", "after"], "default": "after"},
    "before": {"type": "dict", "default": {}},
}


def execute(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Measure, and compare where that is asked for; the task's result."""
    assertions.check_names(params["queries"])
    queries = assertions.due(params["queries"], params["phase"])
    if not queries:
        return {"measured": {}, "problems": [], "not_compared": []}
    measured = assertions.measure(arguments.Places(params).database(), queries)
    values = {name: found["value"] for name, found in measured.items() if "value" in found}
    if params["phase"] == "before":
        # Found now, not when the migration is done and there is nothing to compare with.
        problems = [f"{name}: {found['error']}" for name, found in measured.items() if "error" in found]
    else:
        compared = [assertions.compare(query, measured[query["name"]], params["before"]) for query in queries]
        problems = [problem for problem in compared if problem]
    return {
        "measured": values,
        "problems": problems,
        "not_compared": assertions.uncompared(queries, params["before"]) if params["phase"] == "after" else [],
    }


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module.params)
        arguments.refuse_masked(module, result["measured"])
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    if result["problems"]:
        module.fail_json(msg=" ".join(result["problems"]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
