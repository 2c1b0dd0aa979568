#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Make sure that nobody else works on a database, and write down who does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_lock
short_description: Make sure that one run at a time works on a database
description:
  - Takes an advisory lock in the maintenance database, which a small process on the target (the keeper) holds as long
    as the run is alive. A second run is refused at once, whatever controller it comes from, and is told who the first
    one is.
  - Makes O(run_directory) with the run's record, its audit, and the page for emergencies (C(BREAK-GLASS.txt)).
  - The keeper ends the outage if the run dies in it. It opens the database that has the application's name, which is
    the migrated one once the names have been exchanged, and starts the services.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database, stack.services]
options:
  state:
    description: V(present) takes the lock, V(absent) gives it back.
    type: str
    choices: [present, absent]
    default: present
  stack:
    description: What the stack is called.
    type: str
    default: prod
  operator:
    description: Who runs it, for others to read.
    type: str
    default: ""
  controller:
    description: Where it is run from, for others to read.
    type: str
    default: ""
  grace:
    description: Seconds for which the lock is kept when no process of the run is alive on the target.
    type: int
    default: 90
  outcome:
    description: How the run has ended, for its record; with O(state=absent).
    type: str
    choices: [done, failed]
    default: done
attributes:
  check_mode:
    support: full
    description: Says whether somebody has the lock; nobody gets it, and nothing is written.
  diff_mode:
    support: none
    description: A lock has no form of before.
  idempotent:
    support: full
    description: A run that has the lock is not given it again.
"""

EXAMPLES = r"""
- name: Make sure that nobody else is at work
  recovery_lock:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    services: [{name: api, runtime: docker, container: mac_ki_service-aiproxysrv-1}]
    run_id: 20251021T031500Z-7f3a1c
    run_directory: /var/lib/alembic-recovery/prod/runs/20251021T031500Z-7f3a1c
"""

RETURN = r"""
holder:
  description: Who has the lock now, or had it before with O(state=absent); null if nobody does.
  returned: always
  type: dict
  sample: {run_id: 20251021T031500Z-7f3a1c, operator: deploy, controller: laptop, stage: locked}
names:
  description: The names that databases of this run have, by their kind.
  returned: always
  type: dict
  sample: {new: aiproxy_new_20251021t031500z_7f3a1c, old: aiproxy_old_20251021t031500z_7f3a1c}
kept:
  description: Whether a run keeps its lock, because the application is down and could not be brought back. Its keeper
    runs the commands of the page for emergencies, once no process of the run has been alive for O(grace) seconds.
  returned: always
  type: bool
  sample: false
page:
  description: The page for emergencies on the target.
  returned: always
  type: str
  sample: /var/lib/alembic-recovery/prod/runs/20251021T031500Z-7f3a1c/BREAK-GLASS.txt
"""

import os
import shutil
import time
import typing as t

from ansible.module_utils.alembic_recovery import arguments, emergency, lock, naming, record, sql
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "services": arguments.SERVICES,
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "stack": {"type": "str", "default": "prod"},
    "operator": {"type": "str", "default": ""},
    "controller": {"type": "str", "default": ""},
    "grace": {"type": "int", "default": 90},
    "outcome": {"type": "str", "choices": ["done", "failed"], "default": "done"},
}
# How long the one who was first may take until it can be seen who it is.
_SEEN_S = 3.0


def refused(who: lock.Holder | None) -> StackError:
    """The exception for a lock that somebody else has."""
    return StackError(
        f"Somebody else is at work on this database: {who or 'a run that cannot be seen'}. Nothing was touched. Let it "
        "end, and look with playbooks/status.yml; a run that is dead loses its lock within two minutes.",
        holder=who.as_result() if who else None,
    )


def first_facts(places: arguments.Places, params: t.Mapping[str, t.Any], live_oid: int) -> dict[str, t.Any]:
    """What a record begins with: who and what, and the commands that bring the application back by hand."""
    services = places.services()
    policies = {service.name: policy for service in services if (policy := service.policy()) is not None}
    login = places.admin_login(params["database"]["maintenance_db"])
    psql = emergency.maintenance_psql(places, params["database"])
    name = params["database"]["name"]
    return {
        **{word: params[word] for word in ("run_id", "stack", "operator", "controller")},
        "database": name,
        "live_oid": live_oid,
        "policies": policies,
        "new": naming.database(name, "new", params["run_id"]),
        "needs_password": bool(login.password),
        "commands": emergency.all_commands(psql, name, params["run_id"], services, policies),
    }


def take(places: arguments.Places, params: t.Mapping[str, t.Any]) -> lock.Holder:
    """Take the lock, make the run's directory, and prove over a new connection that the lock is ours.

    :raises RecoveryError: somebody else has it, or it could not be taken.
    """
    name, directory, run_id = params["database"]["name"], params["run_directory"], params["run_id"]
    maintenance = places.maintenance()
    login = places.admin_login(params["database"]["maintenance_db"])
    oid = maintenance.ask(f"select oid::bigint as oid from pg_database where datname = {sql.literal(name)}")
    record.Record.start(directory, **first_facts(places, params, oid[0]["oid"] if oid else 0))
    who = {word: params[word] for word in ("run_id", "operator", "controller")}
    environment = {"PGAPPNAME": lock.session_name(run_id), "PGCONNECT_TIMEOUT": "10", **login.secrets()}
    psql = emergency.maintenance_psql(places, params["database"], "--no-password")
    try:
        with record.presence(directory):
            held = lock.start_keeper(directory, psql, environment, {**who, "database": name}, grace=params["grace"])
    except BaseException:
        shutil.rmtree(directory)
        raise
    deadline = time.monotonic() + _SEEN_S
    seen = lock.holder(maintenance, name)
    while seen is None and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = lock.holder(maintenance, name)
    if held and seen is not None and seen.run_id == run_id:
        return seen
    said = lock.log_tail(directory)
    # It has changed nothing but this.
    shutil.rmtree(directory)
    if seen is None:
        raise RecoveryError(f"The lock could not be taken, and nobody has it: {said}")
    raise refused(seen)


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look who has the lock, and unless in check mode take it or give it back; the task's result."""
    params = module.params
    places = arguments.Places(params)
    name, directory, run_id = params["database"]["name"], params["run_directory"], params["run_id"]
    if not directory:
        raise StackError("recovery_lock needs run_directory: where the run writes down how far it has come.")
    maintenance = places.maintenance()
    seen = lock.holder(maintenance, name)
    ours = seen is not None and seen.run_id == run_id
    result = {
        "page": os.path.join(directory, record.PAGE),
        "holder": seen.as_result() if seen else None,
        "names": {kind: naming.database(name, kind, run_id) for kind in naming.KINDS},
        "kept": False,
    }
    if params["state"] == "absent":
        changed = ours or bool(lock.keeper_pids(directory))
        if changed and not module.check_mode:
            run = record.Record.read(directory)
            if run.stage in record.FENCED | record.SWAPPED:
                # Whatever the run says of itself: the application is down, and was not brought back. The keeper tries
                # it, once the run is silent.
                return {**result, "changed": False, "kept": True}
            run.note(params["outcome"])
            lock.end_keeper(directory, maintenance, name, run_id)
        return {"changed": changed, **result}
    if seen is not None and not ours:
        raise refused(seen)
    if ours or module.check_mode:
        return {"changed": not ours, **result}
    return {"changed": True, **result, "holder": take(places, params).as_result()}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
