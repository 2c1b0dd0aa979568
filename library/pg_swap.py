#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Exchange PostgreSQL databases by their names, in one transaction."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_swap
short_description: Exchange PostgreSQL databases by their names, in one transaction
description:
  - The database of the application's name gets the name O(keep_as) and stays closed; the one called O(replacement)
    gets the application's name and is opened. Either all names change or none.
  - With O(keep_as) alone, the application's database is put aside and opened under that name, to be worked on where no
    client finds it. With O(replacement) alone, it gets its name back.
  - The application's database must be closed (M(pg_fence)), and nobody may be in either of them. With O(aside), it was
    put aside before, is open under that name, and is closed with the exchange.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  replacement:
    description: The database that is to have the application's name (O(database.name)).
    type: str
  keep_as:
    description: The name under which the one that has it now is kept.
    type: str
  live_oid:
    description: The object id of the database that has the application's name now, as it was looked at; with O(aside),
      of the one that is put aside.
    type: int
  aside_for:
    description: What the database is put aside for, for the run's record. V(migration), it is migrated itself;
      V(counting), what was written to it is counted and saved where no client can go on writing.
    type: str
    choices: [migration, counting]
  aside:
    description: The name under which what was in use has been put aside. It gets the name O(keep_as), and is closed.
    type: str
  row_counts:
    description: How many rows the tables of O(replacement) have, for the run's record; what is written later is counted
      from there.
    type: dict
  behind:
    description: The run that is gone back behind with this, for this run's record.
    type: str
attributes:
  check_mode:
    support: full
    description: Checks the names and object ids; nothing is renamed. That the database is open does not matter; it
      would be closed by then.
  diff_mode:
    support: full
    description: The names and object ids before and after.
  idempotent:
    support: full
    description: Names that are as they should be are left alone; O(live_oid) tells.
seealso:
  - module: pg_fence
  - module: pg_clone
"""

EXAMPLES = r"""
- name: Let the application use the migrated clone
  pg_swap:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    replacement: aiproxy_new_20251021t031500z_7f3a1c
    keep_as: aiproxy_old_20251021t031500z_7f3a1c
    live_oid: 16384
"""

RETURN = r"""
renamed:
  description: What was renamed, in order; in check mode, what would be.
  returned: always
  type: list
  elements: dict
  sample: [{from: aiproxy, to: aiproxy_old_20251021t031500z_7f3a1c}]
xid:
  description: The id of the transaction that renamed them; what is written afterwards has a later one.
  returned: when something was renamed
  type: str
  sample: "73419"
oids:
  description: The object ids of the databases that are there afterwards, by name.
  returned: always
  type: dict
  sample: {aiproxy: 16999, aiproxy_old_20251021t031500z_7f3a1c: 16384}
"""

import typing as t

from ansible.module_utils.alembic_recovery import arguments, emergency, fence, naming, record, swap
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "replacement": {"type": "str"},
    "keep_as": {"type": "str"},
    "live_oid": {"type": "int"},
    "aside_for": {"type": "str", "choices": ["migration", "counting"]},
    "aside": {"type": "str"},
    "row_counts": {"type": "dict"},
    "behind": {"type": "str"},
}


def begin(places: arguments.Places, params: t.Mapping[str, t.Any], wish: swap.Wish) -> None:
    """Write down what is about to be renamed, and how that is undone by hand."""
    aside_for = params["aside_for"]
    facts: dict[str, t.Any] = {"live": wish.live, "swap": {"keep_as": wish.keep_as, "replacement": wish.replacement}}
    if params["run_directory"] and (aside_for or params["behind"]):
        psql = emergency.maintenance_psql(places, params["database"])
        commands = dict(record.Record.read(params["run_directory"]).facts["commands"])
        if aside_for:
            commands["open"] = emergency.open_commands(psql, wish.live, wish.keep_as)
            facts.update(aside=wish.keep_as, **({"in_place": True} if aside_for == "migration" else {}))
        elif wish.keep_as:
            free = next(name for name in names_to_keep(params) if name != wish.keep_as)
            commands["swap_back"] = emergency.swap_back_commands(psql, wish.live, wish.keep_as, free)
        facts.update(commands=commands, **({"behind": params["behind"]} if params["behind"] else {}))
    stages = {"migration": "migrating", "counting": "fenced"}
    record.begin(params["run_directory"], stages.get(aside_for, "swapping"), **facts)


def no_longer_aside(places: arguments.Places, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """For the record, once what was put aside is kept: how the database is opened by hand then."""
    if not (params["run_directory"] and params["aside"]):
        return {}
    commands = dict(record.Record.read(params["run_directory"]).facts["commands"])
    opening = emergency.open_commands(
        emergency.maintenance_psql(places, params["database"]), params["database"]["name"], None
    )
    return {"aside": None, "commands": {**commands, "open": opening}}


def names_to_keep(params: t.Mapping[str, t.Any]) -> list[str]:
    """The names under which a run keeps what was in use before."""
    return [naming.database(params["database"]["name"], kind, params["run_id"]) for kind in sorted(naming.KEPT)]


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look at the names, and unless in check mode exchange them; the task's result."""
    params = module.params
    places = arguments.Places(params)
    maintenance, live = places.maintenance(), params["database"]["name"]
    wish = swap.Wish(live, params["keep_as"], params["replacement"], params["live_oid"], params["aside"])
    names = [name for name in (live, wish.keep_as, wish.replacement, wish.aside) if name]
    directory = params["run_directory"]
    if not module.check_mode:
        record.require_lock(directory)
    before = fence.entries(maintenance, *names)
    todo = swap.plan(wish, before, will_be_closed=module.check_mode)
    result: dict[str, t.Any] = {"renamed": [{"from": old, "to": new} for old, new in todo.renames]}
    after = {name: entry["oid"] for name, entry in before.items()}
    for old, new in todo.renames:
        after[new] = after.pop(old)
    if todo.renames and not module.check_mode:
        begin(places, params, wish)
        done = {"old": wish.keep_as, "new_oid": after.get(live), "row_counts": params["row_counts"] or {}}
        afterwards = no_longer_aside(places, params)
        intent = {"keep_as": wish.keep_as, "replacement": wish.replacement}

        def before_commit(xid: str) -> None:
            record.require_lock(directory)
            # Killed after the commit, nobody would know any more when it was.
            if wish.replacement:
                record.add(directory, swap={**intent, "done": {**done, "swap_xid": xid}})

        result["xid"] = swap.carry_out(maintenance, todo, before_commit)
        if wish.replacement and directory:
            # Whether the run has its lock still does not matter any more: it is done.
            record.Record.read(directory).note("swapped", **done, **afterwards, swap_xid=result["xid"])
        seen = {name: entry["oid"] for name, entry in fence.entries(maintenance, *names).items()}
        if seen != after:
            raise RecoveryError(f"The names were exchanged, but a new connection reads {seen}, expected {after}.")
    listed = {name: entry["oid"] for name, entry in before.items()}
    result["diff"] = {"before": shown(listed), "after": shown(after)}
    return {"changed": bool(todo.renames), **result, "oids": after}


def shown(oids: t.Mapping[str, int]) -> str:
    """Names and object ids for people, one a line."""
    return "".join(f"{name} (oid {oid})\n" for name, oid in sorted(oids.items()))


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_one_of=[("replacement", "keep_as")],
        required_by={"aside": ("replacement", "keep_as", "live_oid"), "aside_for": ("keep_as",)},
        supports_check_mode=True,
    )
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
