#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Remove old backups, by their manifests, and never the newest good ones."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_backup_prune
short_description: Remove old backups, never the newest good ones
description:
  - Looks at the manifests in a directory, not at file names or file times. A backup counts as good if its files are
    there with the sizes that the manifest says. Before anything is removed, the hashes of those that must stay are
    compared.
  - Removes good backups that are older than O(keep_days) and not among the O(keep) newest good ones. What is not
    good, or has no manifest, is left alone.
version_added: 0.1.0
author: The alembic-recovery authors
options:
  directory:
    description: Where the backups are. A directory that is not there holds none.
    type: path
    required: true
  database_name:
    description: The database whose backups are meant.
    type: str
    required: true
  keep:
    description: How many of the newest good backups stay, however old they are; at least 1.
    type: int
    default: 3
  keep_days:
    description: For how many days every backup stays.
    type: int
    default: 7
  run_directory:
    description: The directory of the run on the target, where it signs in while it works; comparing hashes of large
      backups takes its time.
    type: path
attributes:
  check_mode:
    support: full
    description: Says what would be removed.
  diff_mode:
    support: none
    description: RV(removed) says it all.
  idempotent:
    support: full
    description: A second run finds nothing to remove.
seealso:
  - module: pg_backup
"""

EXAMPLES = r"""
- name: Remove old backups
  pg_backup_prune:
    directory: /var/backups/alembic-recovery/prod
    database_name: aiproxy
    keep: 3
    keep_days: 7
"""

RETURN = r"""
removed:
  description: The files that were (in check mode, would be) removed, by the manifests of their backups.
  returned: always
  type: list
  elements: str
  sample: [/var/backups/alembic-recovery/prod/aiproxy_20250901T031500Z-1a2b.manifest.json]
kept:
  description: The manifests of the backups that stay.
  returned: always
  type: list
  elements: str
  sample: [/var/backups/alembic-recovery/prod/aiproxy_20251021T031500Z-7f3a.manifest.json]
problems:
  description: What is wrong with backups that are not good.
  returned: always
  type: list
  elements: str
  sample: []
"""

import datetime
import typing as t

from ansible.module_utils.alembic_recovery import record, retention
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "database_name": {"type": "str", "required": True},
    "keep": {"type": "int", "default": 3},
    "keep_days": {"type": "int", "default": 7},
    "run_directory": {"type": "path"},
}


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Decide, and unless in check mode remove; the task's result."""
    params = module.params
    backups = retention.survey(params["directory"], params["database_name"])
    now = datetime.datetime.now(datetime.timezone.utc)
    keep, keep_days = params["keep"], params["keep_days"]
    going = retention.removable(backups, keep=keep, keep_days=keep_days, now=now)
    if going:
        # Whole files are read only where something depends on it.
        backups = retention.proved(backups, keep=keep)
        going = retention.removable(backups, keep=keep, keep_days=keep_days, now=now)
    if not module.check_mode:
        for kept in going:
            retention.remove(kept)
    return {
        "changed": bool(going),
        "removed": [kept.path for kept in going],
        "kept": [kept.path for kept in backups if kept not in going],
        "problems": [kept.problem for kept in backups if kept.problem],
    }


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except (RecoveryError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
