#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Stop services, the last of them first, and hold off what would start them again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_stop
short_description: Stop services, the last one first, and hold off what would start them again
description:
  - Stops the services in the reverse of the order in which they are restarted (a worker before its API), each with the
    time that it gets to finish what it is doing, and waits until each of them has ended.
  - A container's restart policy is set to V(no) before it is stopped. With O(run_directory), the policies were written
    down by M(recovery_lock), and M(service_restart) sets them again.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.services]
attributes:
  check_mode:
    support: full
    description: Says which services would be stopped; none is.
  diff_mode:
    support: none
    description: A stop has no form of before.
  idempotent:
    support: full
    description: What does not run and is not started again is left alone.
seealso:
  - module: service_restart
"""

EXAMPLES = r"""
- name: Stop the worker, then the API
  service_stop:
    services:
      - {name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}
      - {name: worker, runtime: docker, container: mac_ki_service-celery-worker-1, stop_timeout: 60}
"""

RETURN = r"""
stopped:
  description: The names of the services that ran, in the order in which they were stopped.
  returned: always
  type: list
  elements: str
  sample: [worker, api]
policies:
  description: What starts them again by itself, as it was before, by their names; those where a stop is respected have
    none.
  returned: always
  type: dict
  sample: {api: unless-stopped, worker: unless-stopped}
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {**arguments.COMMON, "services": arguments.SERVICES}
_OFF = "no"


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look at each service, and unless in check mode stop it; the task's result."""
    params = module.params
    all_services = arguments.Places(params).services()
    result: dict[str, t.Any] = {"policies": {}, "stopped": []}
    seen = [(service, service.state(), service.policy()) for service in reversed(all_services)]
    result["stopped"] = [service.name for service, state, _policy in seen if state.running or state.starting]
    result["policies"] = {service.name: policy for service, _state, policy in seen if policy is not None}
    due = [(service, policy not in (None, _OFF)) for service, _state, policy in seen]
    changed = bool(result["stopped"]) or any(restarts for _service, restarts in due)
    if changed and not module.check_mode:
        record.begin(params["run_directory"], "fencing", stopped=result["stopped"])
        for service, restarts in due:
            if restarts:
                service.set_policy(_OFF)
            # Also one that did not run when it was looked at: it may be between two attempts to start.
            service.stop()
    return {"changed": changed, **result}


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
