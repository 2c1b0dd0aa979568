#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Bring what a run has left to a good end."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_settle
short_description: Bring what a run has left to a good end
description:
  - Ends the processes, containers and sessions of a run; gives the application's database its name back and opens it;
    starts the services that do not run, with their restart policies as they were; drops clones and copies that nobody
    uses; removes a backup that was not finished. Only what M(run_status) has found and named.
  - Where the names of the databases have been exchanged already, the migrated database stays, and the services are
    started on it.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database, stack.services]
options:
  directory:
    description: Where the directories of the stack's runs are on the target.
    type: path
    required: true
  settle:
    description: The name of the run whose remains these are; without it, the newest one that has not ended.
    type: str
  backup_directory:
    description: Where its backup would be.
    type: path
attributes:
  check_mode:
    support: full
    description: Says what would be done; nothing is.
  diff_mode:
    support: none
    description: The plan is in RV(todo).
  idempotent:
    support: full
    description: Where nothing is left, nothing is done.
seealso:
  - module: run_status
"""

EXAMPLES = r"""
- name: Take back what the run that was cut off has left
  run_settle:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    services: [{name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}]
    directory: /var/lib/alembic-recovery/prod/runs
    settle: 20251021T031500Z-7f3a1c
"""

RETURN = r"""
action:
  description: What became of it, as RV(run_status#module:action).
  returned: always
  type: str
  sample: take_back
sentence:
  description: Why.
  returned: always
  type: str
  sample: "Run 20251021T031500Z-7f3a1c, started by deploy, was cut off in the stage cloning."
todo:
  description: What was done, in order; in check mode, what would be.
  returned: always
  type: list
  elements: str
  sample: [open aiproxy, start the services that do not run]
started:
  description: The services that were started.
  returned: always
  type: list
  elements: str
  sample: [api, worker]
problems:
  description: Why services did not start, one sentence each; they may not have run before either.
  returned: always
  type: list
  elements: str
  sample: []
"""

import os
import typing as t

from ansible.module_utils.alembic_recovery import aftermath, arguments, fence, lock, neighbours, record, settle, swap
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "services": arguments.SERVICES,
    "directory": {"type": "path", "required": True},
    "settle": {"type": "str"},
    "backup_directory": {"type": "path"},
}


class Settling:
    """The deeds of one settling, in their order."""

    def __init__(self, places: arguments.Places, params: t.Mapping[str, t.Any], run: record.Record | None) -> None:
        self._places = places
        self._params = params
        self._run = run
        self._maintenance = places.maintenance()
        self._name = params["database"]["name"]

    def carry_out(self, found: aftermath.Aftermath) -> tuple[list[str], list[str]]:
        """Do it, and write down that it is done; the services that were started, and why others were not.

        :raises RecoveryError: a step failed; the same can be tried again.
        """
        started: tuple[list[str], list[str]] = ([], [])
        if found.action in ("take_back", "finish"):
            settle.bring_back(self._maintenance, self._name, found.aside)
            self._places.database().identity()
            policies = self._run.facts.get("policies", {}) if self._run else {}
            started = settle.start_all(self._places.services(), policies)
        # Nobody waits for these: the application is up again before they go, and also where one of them cannot go.
        for name in found.disposable:
            neighbours.drop(self._maintenance, name)
        if self._run is not None and self._run.stage not in record.ENDED:
            run_id = str(self._run.facts["run_id"])
            settle.remove_unfinished_backup(self._params["backup_directory"], self._name, run_id)
            live = fence.entries(self._maintenance, self._name).get(self._name)
            swapped = swap.completed(self._run.facts, live["oid"] if live else None)
            if found.action == "finish" and swapped:
                self._run.note("swapped", **swapped)
            self._run.note("started" if found.action == "finish" else "taken_back")
        return started

    def end_what_is_alive(self) -> None:
        """End the processes, containers and sessions of the run, and its keeper.

        :raises RecoveryError: one of them does not end.
        """
        if self._run is None:
            return
        run_id = str(self._run.facts["run_id"])
        settle.end_processes(self._run.directory)
        described = [self._params["database"], *self._params["services"]]
        if any(place["runtime"] == "docker" for place in described):
            self._places.docker.remove_left(self._places.docker.left_by_runs().get(run_id, {}))
        settle.end_sessions(self._maintenance, run_id)
        if run_id != self._params["run_id"]:
            lock.end_keeper(self._run.directory, self._maintenance, self._name, run_id)


def decide(
    places: arguments.Places, params: t.Mapping[str, t.Any], name: str
) -> tuple[record.Record | None, aftermath.Aftermath]:
    """The run whose remains are settled (`name`, else the one that was cut off), and what has to become of them.

    :raises StackError: somebody is at work, or a person has to look.
    """
    # Our own run, in a rescue: it asks for itself, so it must not be left out.
    asking = "" if name == params["run_id"] else params["run_id"]
    seen = settle.look(places, {**params, "run_id": asking}, params["directory"])
    name = name or (str(seen.run["run_id"]) if seen.run else "")
    run = record.Record.read(os.path.join(params["directory"], name)) if name else None
    if run is not None:
        seen = aftermath.dataclasses.replace(seen, run=run.facts)
    mine = (params["run_id"], params["settle"] or "")
    found = aftermath.decide(seen, run_id=seen.holder_id if seen.holder_id in mine else params["run_id"])
    if found.action in ("wait", "refuse"):
        raise StackError(found.sentence, action=found.action)
    return run, found


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, decide, and unless in check mode do it; the task's result."""
    params = module.params
    places = arguments.Places(params)
    settle.wait_for_server(places)
    run, found = decide(places, params, params["settle"] or "")
    result = {"action": found.action, "sentence": found.sentence, "todo": list(found.todo)}
    result.update(started=[], problems=[])
    if run is not None and str(run.facts["run_id"]) == params["run_id"] and not found.todo:
        # Our own run has not been cut off: it is here.
        result["action"] = "nothing"
    changed = result["action"] != "nothing"
    if changed and not module.check_mode:
        Settling(places, params, run).end_what_is_alive()
        # Until it was ended, it may have gone on.
        run, now = decide(places, params, str(run.facts["run_id"]) if run else "")
        if now.action != found.action:
            result.update(action=now.action, sentence=now.sentence, todo=list(now.todo))
        result["started"], result["problems"] = Settling(places, params, run).carry_out(now)
        if not fence.entries(places.maintenance(), params["database"]["name"]):
            raise RecoveryError(f"{params['database']['name']} was brought back, and is not there.")
    return {"changed": changed, **result}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
