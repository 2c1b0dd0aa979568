#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Show a plan and go on only if it is confirmed by name. The work is done by action_plugins/confirm.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: confirm
short_description: Show a plan and go on only if it is confirmed by name
description:
  - Shows the plan, then goes on only if V(expected) was given in a variable, or is typed at the terminal.
  - M(ansible.builtin.pause) cannot be this gate, as it goes on where there is no terminal, and waits for
    ever under AWX. This module refuses without a terminal, and never asks in continuous integration, AWX or
    ansible-runner.
  - It runs on the controller and contacts no host.
version_added: 0.1.0
author: The alembic-recovery authors
options:
  expected:
    description: The words that confirm the plan, as C(database@stack). They must not be empty.
    type: str
    required: true
  given:
    description:
      - What the user gave in a variable, a string, several of them with commas between, or a list. Empty if
        nothing was given.
      - Words that do not contain O(expected) are a refusal, also at a terminal.
    type: raw
  plan:
    description: Lines to show before the question.
    type: list
    elements: str
    default: []
  seconds:
    description: How long to wait for an answer at the terminal. No answer is a refusal.
    type: int
    default: 600
attributes:
  check_mode:
    support: full
    description: The plan is shown, and nobody is asked.
  diff_mode:
    support: none
    description: Nothing changes.
  idempotent:
    support: full
    description: Nothing changes.
notes:
  - Ansible hands the question to its main process since ansible-core 2.19.
"""

EXAMPLES = r"""
- name: Show the plan and have it confirmed
  confirm:
    expected: aiproxy@prod
    given: "{{ recovery_confirm | default('') }}"
    plan:
      - back up aiproxy (2.1 GB) to the controller
      - upgrade 0f864573b58a -> 234ea0f4b6c3
      - upgrade 234ea0f4b6c3 -> d4641a241b98
      - restart api, worker
"""

RETURN = r"""
confirmed:
  description: Whether the plan was confirmed. In check mode it is not, and the task succeeds.
  returned: always
  type: bool
  sample: true
confirmed_by:
  description: C(variable), C(terminal), or C(check mode); empty after a refusal.
  returned: always
  type: str
  sample: variable
expected:
  description: The words that were expected.
  returned: always
  type: str
  sample: aiproxy@prod
plan:
  description: The lines that were shown.
  returned: always
  type: list
  elements: str
  sample: [back up aiproxy, "upgrade 0f864573b58a -> 234ea0f4b6c3"]
msg:
  description: What was given, what was expected, and what to add to the command.
  returned: always
  type: str
  sample: >-
    The plan is not confirmed, and there is no terminal to ask at. Nothing has been touched. To confirm the
    plan above, run the same command again with: -e recovery_confirm=aiproxy@prod
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Fail: this file is only documentation, and reached only if the action plugin was not found."""
    module = AnsibleModule(
        argument_spec={
            "expected": {"type": "str", "required": True},
            "given": {"type": "raw"},
            "plan": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    module.fail_json(
        msg="The action plugin 'confirm' was not found, so nobody can be asked. It was expected in "
        "action_plugins/ beside recover.yml, or where ansible.cfg names it. "
        "Run in the checkout: ansible-playbook recover.yml -l prod"
    )


if __name__ == "__main__":
    main()
