#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Restore a backup into a new database, and prove that it is what the backup's manifest says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_restore
short_description: Restore a backup of pg_backup into a new PostgreSQL database, and prove it
description:
  - Makes a database from C(template0) like the one that was backed up, restores into it with the server's own
    C(pg_restore) (never C(psql), which executes what is in a dump), gathers statistics, gives it what hangs on the
    other's
    entry, and compares all of it with the manifest. That is structure, row counts, checksums of the content where the
    manifest has them, sequences, version rows, large objects, and properties.
  - Before anything is made, it is refused where the files are not what was written, where the backup is of another
    database, of another or a newer server, where roles or extensions that it needs are missing, and where there is no
    room.
  - Where anything fails or differs, the new database is dropped. Nothing else in the server is touched. If this module
    is killed, the new database may be left; M(pg_clone) with O(pg_clone#module:state=absent) drops it.
  - In Docker, C(pg_restore) runs in a one-off container of the server's image, in its network, that can only read the
    backup.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  manifest:
    description: The manifest of the backup, on the target; its other files are beside it.
    type: path
    required: true
  into:
    description: The name of the new database, which must not be there; one of the kinds C(restored) and C(scratch), as
      M(recovery_lock) gives them. With O(other_cluster), also the name of the database that was backed up, for a
      throwaway server that does not have it.
    type: str
    required: true
  other_database:
    description: Whether it may be a backup of another database than O(database.name).
    type: bool
    default: false
  other_cluster:
    description: Whether it may be a backup from another server, such as for a rehearsal in a server of its own.
      Restoring runs code that superusers have written there.
    type: bool
    default: false
  jobs:
    description: How many processes restore at once; as many as there are processors, and four at the most, if it is not
      given or V(0).
    type: int
  timeout:
    description: Seconds that C(pg_restore) may take.
    type: int
    default: 21600
attributes:
  check_mode:
    support: full
    description: Everything is checked (files, names, versions, roles, room), no database is made.
  diff_mode:
    support: none
    description: A database has no form of before.
  idempotent:
    support: partial
    description: A database of that name is an error, for nothing proves what it is.
seealso:
  - module: pg_backup
  - module: rehearsal_server
"""

EXAMPLES = r"""
- name: Restore the backup beside the database
  pg_restore:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    manifest: /var/backups/alembic-recovery/prod/aiproxy_20251021T031500Z-7f3a.manifest.json
    into: aiproxy_restored_20251021t031500z_7f3a
  register: restored
"""

RETURN = r"""
into:
  description: The name of the new database.
  returned: success
  type: str
  sample: aiproxy_restored_20251021t031500z_7f3a
oid:
  description: Its object id; none in check mode.
  returned: success
  type: int
  sample: 16999
seconds:
  description: How long all of it took.
  returned: success
  type: float
  sample: 74.2
restore_seconds:
  description: How long C(pg_restore) took; none in check mode.
  returned: success
  type: float
  sample: 58.2
size_bytes:
  description: The size of the new database; none in check mode.
  returned: success
  type: int
  sample: 2028994560
created_at:
  description: When the backup was made.
  returned: success
  type: str
  sample: '2025-10-21T03:15:02.123456+00:00'
revisions:
  description: The version rows in the backup; none if it has no version table.
  returned: success
  type: list
  elements: str
  sample: [0f864573b58a]
row_counts:
  description: The rows of each table when the backup was made.
  returned: success
  type: dict
  sample: {public.songs: 10000}
needed_bytes:
  description: The space that had to be free.
  returned: success
  type: int
  sample: 812345678
proved:
  description: What is as the manifest says; in check mode, only C(files).
  returned: success
  type: list
  elements: str
  sample: [files, structure, row_counts, content, sequences, revisions, large_objects, properties]
accepted:
  description: What differs because no dump can give it back, one sentence each.
  returned: success
  type: list
  elements: str
  sample: ["Extension citext is 1.6, it was 1.5: this server installs that."]
compared:
  description: How much was compared; none in check mode.
  returned: success
  type: dict
  sample: {tables: 4, rows: 10421, columns: 31, sequences: 2, extensions: 1, fingerprint: 1624f3ee783eb26f8c7803}
problems:
  description: In what the restored database differed from the manifest, one sentence each. Empty where it was proved.
  returned: when something was compared
  type: list
  elements: str
  sample: []
missing_roles:
  description: The roles that the backup needs and this server does not have.
  returned: when that is why nothing was made
  type: list
  elements: str
  sample: ["app_ro (for public.songs)"]
"""

import os
import time
import typing as t

from ansible.module_utils.alembic_recovery import arguments, neighbours, properties, record, restore, workbench
from ansible.module_utils.alembic_recovery.errors import DatabaseError, RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "manifest": {"type": "path", "required": True},
    "into": {"type": "str", "required": True},
    "other_database": {"type": "bool", "default": False},
    "other_cluster": {"type": "bool", "default": False},
    "jobs": {"type": "int"},
    "timeout": {"type": "int", "default": 21600},
}


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Check everything, and unless in check mode restore and compare; the task's result."""
    params, started = module.params, time.monotonic()
    database, into = params["database"], params["into"]
    manifest = restore.read(params["manifest"])
    places = arguments.Places(params)
    maintenance = places.maintenance()
    neighbours.check_new_name(maintenance, into)
    who = neighbours.server(maintenance)
    neighbours.refuse_making(who)
    restore.check(
        manifest,
        who,
        database["name"],
        other_database=params["other_database"],
        other_cluster=params["other_cluster"],
    )
    restore.check_into(manifest, database["name"], into, other_cluster=params["other_cluster"])
    like = like_what(manifest, properties.read(maintenance, database["name"]))
    versions = restore.check_needs(maintenance, manifest, like)
    size = manifest["database"]["size_bytes"]
    free, why = neighbours.free_bytes(places, maintenance, who, like["tablespace"])
    if free is None:
        module.warn(why)
    restore.check_room(free, who, size)
    workbench.check_programs(places.database_runtime(), database["bin_dir"])
    result: dict[str, t.Any] = {
        "into": into,
        "oid": None,
        "restore_seconds": None,
        "size_bytes": None,
        **{key: manifest[key] for key in ("created_at", "revisions", "row_counts")},
        "needed_bytes": neighbours.room_for_restored(who, size),
        "proved": ["files"],
        "accepted": [],
        "compared": None,
        "problems": [],
    }
    directory = os.path.dirname(params["manifest"])
    with workbench.open_workbench(
        places.database_runtime(),
        places.admin_login(database["maintenance_db"]),
        directory,
        bin_dir=database["bin_dir"],
        run_id=params["run_id"],
        purpose="restore",
        writable=False,
    ) as bench:
        task = restore.Restore(
            bench,
            maintenance,
            manifest,
            os.path.join(directory, manifest["file"]["name"]),
            into=into,
            like=like,
            server_version_num=who["server_version_num"],
        )
        task.check_dump()
        if not module.check_mode:
            record.before_fence(params["run_directory"], "rehearsing")
            result.update(make(task, places, params, manifest, like, versions))
    return {"changed": True, **result, "seconds": round(time.monotonic() - started, 3)}


def like_what(manifest: restore.Manifest, source: properties.Properties | None) -> properties.Properties:
    """The properties of the database that was backed up, or where its manifest does not have them, of the one there.

    :raises StackError: there is neither.
    """
    noted = manifest["database"].get("properties") or {}
    if "provider" in noted:
        return t.cast("properties.Properties", noted)
    if source is None:
        raise StackError(
            f"The manifest does not say what database {manifest['database']['name']} is made like, and it is not there."
        )
    return source


def make(
    task: restore.Restore,
    places: arguments.Places,
    params: t.Mapping[str, t.Any],
    manifest: restore.Manifest,
    like: properties.Properties,
    versions: t.Mapping[str, str],
) -> dict[str, t.Any]:
    """Restore and compare; a part of the task's result.

    :raises RecoveryError: that failed; the new database is gone again.
    """
    into, maintenance = params["into"], places.maintenance()
    task.create()
    with neighbours.whole_or_dropped(maintenance, into):
        task.fill(job_count=restore.jobs(params["jobs"]), timeout=params["timeout"])
        restored = places.as_admin(into)
        task.finish(restored)
        compared = restore.compare(restored, manifest, versions)
        given = properties.read(maintenance, into)
        compared.note("properties", properties.differences(like, given) if given else [f"{into} is gone."])
        if compared.problems or given is None:
            raise DatabaseError(
                f"What was restored is not what the manifest says: {' '.join(compared.problems[:10])}",
                problems=compared.problems,
                accepted=compared.accepted,
            )
    return {
        "oid": given["oid"],
        "restore_seconds": task.restore_seconds,
        "size_bytes": neighbours.databases(maintenance, into)[0]["size_bytes"],
        "proved": ["files", *compared.proved],
        "accepted": compared.accepted,
        "compared": compared.counted,
    }


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
