#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Say which ways back there are, which one is taken, and what it would lose."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollback_plan
short_description: Say which ways back there are, which one is taken, and what it would lose
description:
  - Looks at the record of a run, at the databases by their object ids, at what was written since the names were
    exchanged, at the code, and at the backups; chooses the least invasive way that is proved and loses nothing, or the
    one that O(way) names.
  - The ways are V(nothing), V(open) (the database from before, which a run has closed), V(swap_back) (the one that a
    run keeps), V(downgrade) and V(restore). A way that loses something is taken only where exactly that is accepted.
version_added: 0.2.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.application, stack.database]
options:
  directory:
    description: Where the directories of the stack's runs are on the target.
    type: path
    required: true
  backup_directory:
    description: Where the backups of the stack are on the target.
    type: path
    required: true
  behind:
    description: The run to go back behind; without it, the newest that has changed something and is no rollback.
    type: str
  way:
    description: The way that the operator has named.
    type: str
  accept_written:
    description: How many changes since the swap may be lost, as RV(written) counts them.
    type: int
  accept_loss:
    description: What a downgrade may lose, in the words of RV(ways[].loses).
    type: list
    elements: str
    default: []
  accept_restore:
    description: The run id of the backup that is restored, and with that what was written since may be lost. Of a dump
      from elsewhere, the name of its file.
    type: str
  foreign_backup:
    description: The path of a dump from elsewhere on the target, to be restored instead of a backup of the stack.
    type: path
  code_after:
    description: What of O(application) is different for the code that will run afterwards. O(application) is where the
      code is that has all revisions of the database.
    type: dict
    default: {}
  limit:
    description: The name to put into the commands that are proposed.
    type: str
    default: prod
  timeout:
    description: Seconds that the application may be silent.
    type: int
    default: 120
seealso:
  - module: pg_written
  - module: pg_swap
"""

EXAMPLES = r"""
- name: See which ways back there are
  rollback_plan:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    application: {runtime: docker, container: mac_ki_service-aiproxysrv-1, workdir: /app}
    directory: /var/lib/alembic-recovery/prod/runs
    backup_directory: /var/lib/alembic-recovery/prod/backups
  register: plan
"""

RETURN = r"""
way:
  description: The way that is taken; empty where it is refused.
  returned: success
  type: str
  sample: swap_back
summary:
  description: Why, in one sentence.
  returned: success
  type: str
  sample: "swap_back: The old database is kept as aiproxy_old_20251021t031500z_7f3a1c, closed since the swap."
next_step:
  description: What to run next.
  returned: success
  type: str
  sample: ansible-playbook playbooks/rollback.yml -l prod
ways:
  description: All ways, the least invasive first, each with whether it is possible and proved, why, what it loses, what
    it needs, and what to add to the command to accept that.
  returned: success
  type: list
  elements: dict
  sample:
    - {name: nothing, possible: false, proved: false, why: [Not so.], loses: [], needs: [], accept: ''}
notes:
  description: What could not be found out, one sentence each.
  returned: success
  type: list
  elements: str
  sample: []
behind:
  description: The run that is gone back behind; empty where nobody recorded any.
  returned: success
  type: str
  sample: 20251021T031500Z-7f3a1c
live_oid:
  description: The object id of what has the application's name; none if nothing has.
  returned: success
  type: int
  sample: 16999
old:
  description: The name under which the database from before is kept; empty if it is not.
  returned: success
  type: str
  sample: aiproxy_old_20251021t031500z_7f3a1c
aside:
  description: The name under which the database from before was put aside to be worked on; empty if it was not.
  returned: success
  type: str
  sample: ''
swap_xid:
  description: The transaction of the swap; empty if there was none.
  returned: success
  type: str
  sample: "73419"
swap_row_counts:
  description: The rows of each table when it was swapped in; empty if they are not known.
  returned: success
  type: dict
  sample: {public.songs: 120}
export:
  description: Where the rows that were written since the swap are to be saved.
  returned: success
  type: str
  sample: /var/lib/alembic-recovery/prod/backups/aiproxy_20251021T041500Z-b1c2d3.written.jsonl
written:
  description: What was written since the swap (rows, fewer, total, sentences, and the file for the rows); null where
    that is not known.
  returned: success
  type: dict
  sample: {rows: 3, fewer: 0, total: 3, sentences: ['songs: 3 rows written since, 3 more than then.'], export: ''}
manifest:
  description: The manifest of the backup that is compared with, or restored; empty if there is none.
  returned: success
  type: str
  sample: /var/lib/alembic-recovery/prod/backups/aiproxy_20251021T031500Z-7f3a1c.manifest.json
fingerprint:
  description: The fingerprint of the catalog of before; empty if it is not known.
  returned: success
  type: str
  sample: 1624f3ee783eb26f8c7803
row_counts:
  description: The rows of each table before; empty if they are not known.
  returned: success
  type: dict
  sample: {public.songs: 120}
target:
  description: The version rows that there will be; null where they are not known.
  returned: success
  type: list
  elements: str
  sample: [0f864573b58a]
version_table:
  description: Alembic's version table.
  returned: success
  type: str
  sample: alembic_version
code_is_at_target:
  description: Whether the code that will run afterwards has RV(target) as its heads, so that the application can work.
  returned: success
  type: bool
  sample: false
"""

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import arguments, going_back, record, rollback_evidence
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "application": arguments.APPLICATION,
    "database": arguments.DATABASE,
    "directory": {"type": "path", "required": True},
    "backup_directory": {"type": "path", "required": True},
    "behind": {"type": "str"},
    "way": {"type": "str"},
    "accept_written": {"type": "int"},
    "accept_loss": {"type": "list", "elements": "str", "default": []},
    "accept_restore": {"type": "str"},
    "foreign_backup": {"type": "path"},
    "code_after": {"type": "dict", "default": {}},
    "limit": {"type": "str", "default": "prod"},
    "timeout": {"type": "int", "default": 120},
}


def check_code_after(different: t.Mapping[str, t.Any]) -> None:
    """:raises StackError: it has keys that an application does not have."""
    unknown = sorted(set(different) - set(arguments.APPLICATION["options"]))
    if unknown:
        raise StackError(
            f"rollback_code_after has unknown keys: {', '.join(unknown)}. They are those of the stack's app."
        )


def filled_in(value: t.Any, stack: str) -> t.Any:
    """A result with the limit of the run in its commands; a command may have braces of its own."""
    if isinstance(value, str):
        return value.replace("{stack}", stack)
    if isinstance(value, dict):
        return {key: filled_in(item, stack) for key, item in value.items()}
    return [filled_in(item, stack) for item in value] if isinstance(value, (list, tuple)) else value


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Gather, choose; the task's result."""
    params = module.params
    check_code_after(params["code_after"])
    seen = rollback_evidence.Gathering(arguments.Places(params), params)
    evidence = seen.evidence()
    choice = going_back.choose(evidence, params["way"])
    before = seen.before(choice.way)
    result = {
        "way": choice.way or "",
        "summary": choice.summary,
        "next_step": choice.next_step,
        "ways": [dataclasses.asdict(way) for way in choice.ways],
        "notes": seen.notes,
        "behind": str(seen.run["run_id"]) if seen.run else "",
        "live_oid": seen.live["oid"] if seen.live else None,
        "old": seen.kept.name if seen.kept and not seen.kept.aside else "",
        "aside": seen.kept.name if seen.kept and seen.kept.aside else "",
        "swap_xid": str((seen.run or {}).get("swap_xid") or ""),
        "swap_row_counts": dict((seen.run or {}).get("row_counts") or {}),
        "written": rollback_evidence.as_result(evidence.written),
        "export": seen.export_path(),
        "manifest": before.path,
        "fingerprint": str(before.manifest.get("fingerprint", "")),
        "row_counts": dict(before.manifest.get("row_counts", {})),
        "target": before.manifest.get("revisions"),
        "version_table": seen.code.version_table,
        "code_is_at_target": seen.code_is_at(before.manifest.get("revisions")),
    }
    relied_on = (
        "behind", "old", "written", "swap_row_counts", "export", "manifest", "row_counts", "target", "version_table"
    )  # fmt: skip
    arguments.refuse_masked(module, [result[key] for key in relied_on])
    return t.cast("dict[str, t.Any]", filled_in(result, params["limit"]))


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
