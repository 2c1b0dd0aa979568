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
    description:
      - The name of the run whose remains these are; without it, the one that M(run_status) names.
      - In any other than the rescue of that run itself, what has not ended now decides, the run that came as far as
        the outage first. What the others have left is tidied with it.
    type: str
  end_run:
    description: The name of a run that is to be ended although it may be alive.
    type: str
    default: ''
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

import contextlib
import dataclasses
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
    "end_run": {"type": "str", "default": ""},
    "backup_directory": {"type": "path"},
}


class Settling:
    """The deeds of one settling, in their order; `runs`: first the one whose deeds count."""

    def __init__(
        self, places: arguments.Places, params: t.Mapping[str, t.Any], runs: t.Sequence[record.Record]
    ) -> None:
        self._places = places
        self._params = params
        self._run = runs[0] if runs else None
        self._all = runs
        self._names = [str(run.facts["run_id"]) for run in runs]
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
        for run in self._all:
            if run.stage not in record.ENDED:
                run_id = str(run.facts["run_id"])
                settle.remove_unfinished_backup(self._params["backup_directory"], self._name, run_id)
                if run is self._run:
                    self._write_down(run, found.action)
                else:
                    # One that was refused the lock takes its record with it.
                    with contextlib.suppress(StackError):
                        self._write_down(run, "tidy")
        if self._places.use_docker:
            # What earlier runs have left there is in nobody's way.
            known = record.runs(self._params["directory"])
            with contextlib.suppress(RecoveryError):
                settle.remove_left(self._places.docker, settle.abandoned(known, self._params, self._names))
        return started

    def _write_down(self, run: record.Record, action: str) -> None:
        live = fence.entries(self._maintenance, self._name).get(self._name)
        swapped = swap.completed(run.facts, live["oid"] if live else None) if action != "take_back" else {}
        if swapped:
            run.note("swapped", **swapped)
        run.note("started" if swapped or action == "finish" else "taken_back")

    def end_what_is_alive(self) -> None:
        """End the processes, containers and sessions of the runs, and their keepers.

        :raises RecoveryError: one of them does not end.
        """
        for run in self._all:
            settle.end_processes(run.directory)
        if self._places.use_docker and self._names:
            settle.remove_left(self._places.docker, self._names)
        for run in self._all:
            run_id = str(run.facts["run_id"])
            settle.end_sessions(self._maintenance, run_id)
            if run_id != self._params["run_id"]:
                lock.end_keeper(run.directory, self._maintenance, self._name, run_id)


def decide(
    places: arguments.Places, params: t.Mapping[str, t.Any], name: str
) -> tuple[list[record.Record], aftermath.Aftermath]:
    """The runs whose remains are settled, first the one whose deeds count, and what becomes of them.

    What has not ended now decides: since somebody looked last, a run may have gone on, and another one may be at work.

    :param name: the run that is settled where all have ended; empty: none is.
    :raises StackError: somebody is at work, or a person has to look.
    """
    seen = settle.look(
        places,
        params,
        params["directory"],
        # Our own run, in a rescue, asks for itself.
        for_itself=params["settle"] == params["run_id"],
        end_run=params["end_run"],
    )
    names = [str(seen.run["run_id"]), *seen.others] if seen.run else [name] if name else []
    runs = [record.Record.read(os.path.join(params["directory"], one)) for one in names[:1]]
    for one in names[1:]:
        # One that was refused the lock takes its record with it.
        with contextlib.suppress(StackError):
            runs.append(record.Record.read(os.path.join(params["directory"], one)))
    if runs:
        seen = dataclasses.replace(seen, run=runs[0].facts)
    end_run = seen.holder_id if seen.holder_id in (params["settle"], params["end_run"]) else ""
    found = aftermath.decide(seen, run_id=params["run_id"], end_run=end_run)
    if found.action in ("wait", "refuse"):
        raise StackError(found.sentence, action=found.action)
    return runs, found


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, decide, and unless in check mode do it; the task's result."""
    params = module.params
    places = arguments.Places(params)
    settle.wait_for_server(places)
    rescue = params["settle"] == params["run_id"]
    known = {str(run.facts["run_id"]) for run in record.runs(params["directory"])}
    if params["settle"] and not rescue and params["settle"] not in known:
        raise StackError(
            f"There is no run {params['settle']} in {params['directory']}. Look for its name with playbooks/status.yml."
        )
    runs, found = decide(places, params, params["run_id"] if rescue else "")
    name = str(runs[0].facts["run_id"]) if runs else ""
    result = {"action": found.action, "sentence": found.sentence, "todo": list(found.todo)}
    result.update(started=[], problems=[])
    if rescue and not found.todo:
        # Our own run has not been cut off: it is here.
        result["action"] = "nothing"
    changed = result["action"] != "nothing"
    if changed and not module.check_mode:
        Settling(places, params, runs).end_what_is_alive()
        # Until they were ended, they may have gone on.
        runs, now = decide(places, params, name)
        if now.action != found.action:
            result.update(action=now.action, sentence=now.sentence)
        result["todo"] = list(dict.fromkeys([*found.todo, *now.todo]))
        result["started"], result["problems"] = Settling(places, params, runs).carry_out(now)
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
