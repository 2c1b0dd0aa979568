#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""See how the services that depend on a database are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_status
short_description: See how the services that depend on a database are
description:
  - Says for each service whether it runs, is healthy, restarts in a loop, and since when it has been running; and on
    request
    what its log says since its start.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks, stack, stack.services]
options:
  logs:
    description: Whether to read the logs since each service's start. Only containers tell where that is.
    type: bool
    default: false
  log_patterns:
    description: Regular expressions that no line of a log may match; tracebacks and SQL errors if not given.
    type: list
    elements: str
seealso:
  - module: service_restart
"""

EXAMPLES = r"""
- name: See how the services are
  service_status:
    services:
      - {name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}
      - {name: worker, runtime: docker, container: mac_ki_service-celery-worker-1}
    logs: true
"""

RETURN = r"""
services:
  description: How each service is.
  returned: always
  type: list
  elements: dict
  sample:
    - {name: api, where: container api, running: true, health: healthy, restarts: 0, problem: "", log_problems: []}
problems:
  description: What is wrong, one sentence each; empty if nothing is.
  returned: always
  type: list
  elements: str
  sample: ["api (container mac_ki_service-aiproxysrv-1) is not running."]
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, record, services
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "services": arguments.SERVICES,
    "logs": {"type": "bool", "default": False},
    "log_patterns": {"type": "list", "elements": "str"},
}


def execute(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Look at each service; the task's result."""
    seen: list[dict[str, t.Any]] = []
    problems: list[str] = []
    patterns = params["log_patterns"] or services.LOG_PATTERNS
    for service in arguments.Places(params).services():
        state = service.state()
        lines = services.log_problems(service, patterns) if params["logs"] else []
        seen.append({**state.as_result(), "log_problems": lines})
        if state.problem:
            problems.append(f"{service.name} ({service.where}) {state.problem}.")
        if lines:
            problems.append(f"{service.name} ({service.where}) has in its log since its start: {lines[0]}")
    return {"services": seen, "problems": problems}


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
