#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Restart services in order, each up and healthy before the next."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_restart
short_description: Restart services in order, each up and healthy before the next
description:
  - Restarts the services one after the other; those that are not running are started. Waits for each until its health
    check says so or, without one, until it has been up for some seconds. Reads its log since the restart.
  - A service that was started after O(unless_started_since), and has no problem, is left alone.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.services]
options:
  unless_started_since:
    description: A moment in ISO 8601, on the target's clock, such as the end of the migration.
    type: str
  timeout:
    description: Seconds for each service to be up.
    type: int
    default: 120
  log_patterns:
    description: Regular expressions that no line of a log may match; tracebacks and SQL errors if not given.
    type: list
    elements: str
attributes:
  check_mode:
    support: full
    description: Says which services would be restarted.
  diff_mode:
    support: none
    description: RV(restarted) says it all.
  idempotent:
    support: partial
    description: With O(unless_started_since); without it, every run restarts every service.
seealso:
  - module: service_status
"""

EXAMPLES = r"""
- name: Restart what was started before the migration ended
  service_restart:
    services:
      - {name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}
      - {name: worker, runtime: docker, container: mac_ki_service-celery-worker-1}
    unless_started_since: "2025-10-21T03:15:42+00:00"
"""

RETURN = r"""
restarted:
  description: The names of the services that were (in check mode, would be) restarted, in order.
  returned: always
  type: list
  elements: str
  sample: [api, worker]
outage_seconds:
  description: For how long the services were down, if this run has stopped them.
  returned: always
  type: float
  sample: 4.2
services:
  description: How each service is afterwards.
  returned: always
  type: list
  elements: dict
  sample: [{name: api, where: container mac_ki_service-aiproxysrv-1, running: true, health: healthy, problem: ""}]
"""

import datetime
import typing as t

from ansible.module_utils.alembic_recovery import arguments, record, services
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "services": arguments.SERVICES,
    "unless_started_since": {"type": "str"},
    "timeout": {"type": "int", "default": 120},
    "log_patterns": {"type": "list", "elements": "str"},
}


def due(state: services.State, since: datetime.datetime | None) -> bool:
    """Whether a service has to be restarted."""
    if since is None or state.problem or state.started_at is None:
        return True
    return state.started_at < since


def restart(service: services.Service, patterns: t.Sequence[str], timeout: float) -> services.State:
    """Restart one service, wait for it, and read its log.

    :raises RecoveryError: it did not come up, or its log has errors.
    """
    service.restart()
    state = services.wait_until_up(service, timeout)
    found = services.log_problems(service, patterns)
    if found:
        raise RecoveryError(
            f"{service.name} ({service.where}) is up again, but its log since the restart has errors: "
            f"{' / '.join(found[:3])}",
            service=service.name,
            log_problems=found,
        )
    return state


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Decide for each service in order, and unless in check mode restart it; the task's result."""
    params = module.params
    since = parse_moment(params["unless_started_since"])
    patterns = params["log_patterns"] or services.LOG_PATTERNS
    restarted: list[str] = []
    seen: list[dict[str, t.Any]] = []
    policies = begin(module)
    for service in arguments.Places(params).services():
        state = service.state()
        if due(state, since):
            restarted.append(service.name)
            if not module.check_mode:
                if policies.get(service.name):
                    service.set_policy(policies[service.name])
                state = restart(service, patterns, params["timeout"])
        seen.append(state.as_result())
    run = None if module.check_mode else record.begin(params["run_directory"], "started")
    outage = run.seconds_since("fencing") if run else None
    return {"changed": bool(restarted), "restarted": restarted, "services": seen, "outage_seconds": outage}


def begin(module: AnsibleModule) -> dict[str, str]:
    """Write down that the services are being started; what started them again by themselves before the run."""
    directory = None if module.check_mode else module.params["run_directory"]
    run = record.begin(directory, "starting")
    return dict(run.facts.get("policies") or {}) if run else {}


def parse_moment(text: str | None) -> datetime.datetime | None:
    """A moment from ISO 8601; UTC where it has no zone.

    :raises StackError: it is none.
    """
    if not text:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise StackError(
            f"unless_started_since is {text!r}, expected a moment such as 2025-10-21T03:15:42Z."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


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
