#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Copy a database within its server, file by file and with all that hangs on its entry, or drop such a copy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_clone
short_description: Copy a PostgreSQL database within its server, or drop such a copy
description:
  - Makes a copy with C(CREATE DATABASE … TEMPLATE), file by file where the server knows strategies (2 seconds for 2
    GB, without WAL for the data), and gives it what a copy does not get by itself. That is grants, settings of the
    database
    and of roles in it, comment, labels, and connection limit. Then both entries are compared.
  - Nothing is made while anybody is connected to the database, or where something hangs on it that a copy cannot have
    (prepared transactions, logical replication slots, subscriptions), or where there is no room.
  - If the copy cannot be made whole, it is dropped. PostgreSQL itself leaves no database behind where it is
    interrupted in C(CREATE DATABASE); where only this module is killed, PostgreSQL goes on, and a copy without the
    grants and settings may be left, which the next call names.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  clone:
    description: The name of the copy, which must say that it is one of ours (kinds C(new), C(scratch), C(before) and
      C(restored)), such as C(aiproxy_new_20251021t031500z_7f3a). Nothing else can be made or dropped.
    type: str
    required: true
  source:
    description: What is copied; O(database.name) if it is not given, else a copy of it (of the same kinds).
    type: str
  state:
    description: V(present) makes the copy, V(absent) ends all sessions in it and drops it.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    description: Everything is checked, nothing is made or dropped. Who is in it is not looked at; it would be closed by
      then.
  diff_mode:
    support: none
    description: A database has no form of before.
  idempotent:
    support: partial
    description: With O(state=present), a database of that name is an error, for nothing proves that it is a whole copy
      of what there is now. O(state=absent) is idempotent.
seealso:
  - module: pg_swap_check
"""

EXAMPLES = r"""
- name: Copy the database
  pg_clone:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    clone: aiproxy_new_20251021t031500z_7f3a
  register: clone

- name: Drop the copy
  pg_clone:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    clone: aiproxy_new_20251021t031500z_7f3a
    state: absent
"""

RETURN = r"""
clone:
  description: The name of the copy.
  returned: success
  type: str
  sample: aiproxy_new_20251021t031500z_7f3a
oid:
  description: Its object id; none in check mode before it is made, and where there is no copy.
  returned: success
  type: int
  sample: 16999
source_oid:
  description: The object id of the database that was copied.
  returned: with O(state=present)
  type: int
  sample: 16384
size_bytes:
  description: The size of the copy; in check mode, that of the database.
  returned: with O(state=present)
  type: int
  sample: 8143651
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 0.412
impossible:
  description: Why no copy can be made, one sentence each.
  returned: when that is so
  type: list
  elements: str
  sample: ["Logical replication slots hang on aiproxy: cdc."]
sessions:
  description: Who is connected, as M(pg_swap_check) says it.
  returned: when that is why no copy is made
  type: list
  elements: dict
  sample: [{pid: 71, user: aiuser, application: api}]
"""

import time
import typing as t

from ansible.module_utils.alembic_recovery import arguments, fence, naming, neighbours, postgres, properties, record
from ansible.module_utils.alembic_recovery.errors import DatabaseError, RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "clone": {"type": "str", "required": True},
    "source": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def check_name(source: str, clone: str) -> None:
    """:raises StackError: the name does not say that it is a copy of ours."""
    if clone == source or naming.kind_of(source, clone) not in neighbours.DISPOSABLE:
        kinds = ", ".join(neighbours.DISPOSABLE)
        raise StackError(
            f"{clone!r} is not the name of a copy of {source} (NAME_KIND_RUN, with one of the kinds {kinds}): it is "
            "neither made nor dropped."
        )


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Check everything, and unless in check mode make or drop the copy; the task's result."""
    params = module.params
    check_name(params["database"]["name"], params["clone"])
    if params["state"] == "absent":
        return absent(module)
    return present(module)


def absent(module: AnsibleModule) -> dict[str, t.Any]:
    """Drop the copy, if there is one."""
    name, started = module.params["clone"], time.monotonic()
    maintenance = arguments.Places(module.params).maintenance()
    found = neighbours.databases(maintenance, name)
    if found and not module.check_mode:
        neighbours.drop(maintenance, name)
    oid = found[0]["oid"] if found else None
    return {"changed": bool(found), "clone": name, "oid": oid, "seconds": round(time.monotonic() - started, 3)}


def present(module: AnsibleModule) -> dict[str, t.Any]:
    """Make the copy."""
    params, started = module.params, time.monotonic()
    name, clone = params["source"] or params["database"]["name"], params["clone"]
    if params["source"]:
        check_name(params["database"]["name"], name)
    places = arguments.Places(params)
    maintenance = places.maintenance()
    neighbours.check_new_name(maintenance, clone)
    seen = neighbours.look(places, name, params["database"]["maintenance_db"])
    deadline = time.monotonic() + fence.PASSING_S
    while seen.sessions and not (seen.for_clone or module.check_mode) and time.monotonic() < deadline:
        time.sleep(0.2)
        seen = neighbours.look(places, name, params["database"]["maintenance_db"])
    if seen.for_clone or seen.database is None:
        raise StackError(
            f"No copy of {name} can be made: {' '.join(seen.for_clone)} Nothing was changed.", impossible=seen.for_clone
        )
    if seen.sessions and not module.check_mode:
        raise StackError(
            f"No copy of {name} can be made while somebody is connected to it: "
            f"{neighbours.shown_sessions(seen.sessions)}. Stop the services and close the database first. Nothing was "
            "changed.",
            sessions=seen.sessions,
        )
    for sentence in seen.unknown:
        module.warn(sentence)
    oid, size = None, seen.database["size_bytes"]
    if not module.check_mode:
        record.within_fence(params["run_directory"], "cloning")
        oid, size = make(maintenance, name, clone, seen.server["server_version_num"])
        record.within_fence(params["run_directory"], "cloned", new_oid=oid)
    return {
        "changed": True,
        "clone": clone,
        "oid": oid,
        "source_oid": seen.database["oid"],
        "size_bytes": size,
        "seconds": round(time.monotonic() - started, 3),
    }


def make(maintenance: postgres.Database, name: str, clone: str, server_version_num: int) -> tuple[int, int]:
    """Make the copy, and prove that it is one; its object id and size.

    :raises DatabaseError: that failed; there is no copy then.
    """
    source = properties.read(maintenance, name)
    assert source is not None
    statement = properties.create_statement(
        source, clone, source["owner"], server_version_num=server_version_num, template=name, strategy="file_copy"
    )
    maintenance.act([statement])
    with neighbours.whole_or_dropped(maintenance, clone):
        maintenance.act(properties.statements(source, clone), at_once=True)
        copied = properties.read(maintenance, clone)
        problems = ["It is gone."] if copied is None else properties.differences(source, copied)
        if problems:
            raise DatabaseError(f"The entry of {clone} is not that of {name}: {' '.join(problems)}")
    (row,) = neighbours.databases(maintenance, clone)
    return int(row["oid"]), int(row["size_bytes"])


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
