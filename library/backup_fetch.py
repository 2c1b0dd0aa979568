#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Copy the files of a backup to the controller. The work is done by action_plugins/backup_fetch.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_fetch
short_description: Copy the files of a backup to the controller, in constant memory
description:
  - Copies with the connection's own file transfer (sftp with ssh), so the login user must be able to read the files;
    with M(pg_backup) they belong to that user, also where C(become) is used.
  - Each file comes under a temporary name, with mode C(0600), is compared with its SHA-256, flushed, and then
    renamed. A transfer that fails is tried three times.
version_added: 0.1.0
author: The alembic-recovery authors
options:
  files:
    description:
      - The RV(pg_backup#module:files) of M(pg_backup), in this order; the manifest last.
      - With an empty list nothing is copied; a O(directory) that could not take them is refused all the same.
    type: list
    elements: dict
    required: true
  directory:
    description: Where to put them on the controller; made with mode C(0700). It must not be open to others.
    type: path
    required: true
  run_directory:
    description: The directory of the run on the target, where a sign of life is left while nothing else runs there.
    type: path
attributes:
  check_mode:
    support: full
    description: Says what would be copied, and refuses a O(directory) as a real run does.
  diff_mode:
    support: none
    description: There is no form of before.
  idempotent:
    support: full
    description: A file that is there with the right SHA-256 is not copied again.
"""

EXAMPLES = r"""
- name: Copy the backup off the server
  backup_fetch:
    files: "{{ backup.files }}"
    directory: ~/alembic-recovery/backups/prod
"""

RETURN = r"""
files:
  description: The paths on the controller.
  returned: always
  type: list
  elements: str
  sample: [/home/anna/alembic-recovery/backups/prod/aiproxy_20251021T031500Z-7f3a.dump]
copied:
  description: Those that were (in check mode, would be) copied.
  returned: always
  type: list
  elements: str
  sample: [/home/anna/alembic-recovery/backups/prod/aiproxy_20251021T031500Z-7f3a.dump]
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Fail: on the controller, the action plugin of the same name does the work."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True},
            "directory": {"type": "path", "required": True},
            "run_directory": {"type": "path"},
        },
        supports_check_mode=True,
    )
    module.fail_json(
        msg="backup_fetch is an action plugin: action_plugins/ must be beside the playbook, or be in ansible.cfg."
    )


if __name__ == "__main__":
    main()
