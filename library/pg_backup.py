#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Back up a PostgreSQL database: a dump that has been read through, and a manifest of the same moment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_backup
short_description: Back up a PostgreSQL database, with a manifest of the same moment
description:
  - Makes a custom-format dump with the server's own C(pg_dump), compressed with zstd level 1, or with gzip level 1
    where
    that C(pg_dump) has no zstd. Never through a terminal, never through a pipe.
  - In Docker, in a one-off container of the server container's image, in its network. It can write nowhere but into
    O(directory), and ends with this module, whatever happens to it.
  - A manifest is written last, of the same snapshot as the dump, so that both are equal even while others write. It
    has the
    version rows, the exact row counts, the catalog and its fingerprint, hashes, sizes, versions and images.
  - The tables are locked against DDL, not against writes, before the snapshot is taken.
  - The dump is read through to its end, and the tables in it are counted, before it gets its name. On any failure
    nothing is left behind.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.database]
options:
  directory:
    description: Where to put it, on the target; made with mode C(0700) if it is not there. It must not be open to
      others.
    type: path
    required: true
  version_table:
    description: Alembic's version table, as C(table) or C(schema.table).
    type: str
    default: alembic_version
  timeout:
    description: Seconds that the dump may take, and as many for reading it through.
    type: int
    default: 21600
  lock_timeout:
    description: Seconds to wait for a table that somebody has locked.
    type: int
    default: 30
  content:
    description:
      - Whether the manifest gets a checksum of each column of each table, so that a restored copy can be proved to hold
        the same values, not only as many rows.
      - Everything is read once more for it, while C(pg_dump) runs (19 to 43 seconds of one processor for 2 GB).
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Everything is checked (connection, directory, space), nothing is written.
  diff_mode:
    support: none
    description: A backup has no form of before.
  idempotent:
    support: partial
    description: A backup of the same O(run_id) is not made twice; its files are compared with their hashes instead.
seealso:
  - module: pg_backup_prune
"""

EXAMPLES = r"""
- name: Back up the database
  pg_backup:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    directory: /var/backups/alembic-recovery/prod
    run_id: 20251021T031500Z-7f3a
  register: backup
"""

RETURN = r"""
dump:
  description: The path of the dump on the target.
  returned: always
  type: str
  sample: /var/backups/alembic-recovery/prod/aiproxy_20251021T031500Z-7f3a.dump
manifest_file:
  description: The path of the manifest on the target.
  returned: always
  type: str
  sample: /var/backups/alembic-recovery/prod/aiproxy_20251021T031500Z-7f3a.manifest.json
files:
  description: All files of the backup on the target with their SHA-256, the manifest last.
  returned: when there is a backup (not in check mode before it is made)
  type: list
  elements: dict
  sample: [{path: /var/backups/alembic-recovery/prod/aiproxy_1.dump, sha256: 9f86d081…, size_bytes: 812345}]
manifest:
  description: The manifest without the catalog's rows (C(structure)) and the checksums (C(content)), which are only
    in the file.
  returned: when there is a backup (not in check mode before it is made)
  type: dict
  sample: {run_id: 20251021T031500Z-7f3a, revisions: [0f864573b58a], row_counts: {public.songs: 10000}}
needed_bytes:
  description: The space that had to be free.
  returned: always
  type: int
  sample: 76293120
"""

import os
import re
import typing as t

from ansible.module_utils.alembic_recovery import arguments, dump, files, record, workbench
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "database": arguments.DATABASE,
    "directory": {"type": "path", "required": True},
    "version_table": {"type": "str", "default": "alembic_version"},
    "timeout": {"type": "int", "default": 21600},
    "lock_timeout": {"type": "int", "default": 30},
    "content": {"type": "bool", "default": True},
}
_LONG = ("structure", "content")
_FORBIDDEN = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (named to be refused)


def check_names(params: t.Mapping[str, t.Any]) -> None:
    """Refuse what must not become part of a path, or hold a whole database.

    :raises StackError: the run id or the directory is not acceptable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", params["run_id"]):
        raise StackError(f"run_id {params['run_id']!r} has other characters than letters, digits, `_`, `.` and `-`.")
    directory = os.path.realpath(params["directory"])
    if directory != os.path.abspath(params["directory"]) and os.path.islink(params["directory"]):
        raise StackError(f"{params['directory']} is a link; links are not followed. Name the directory itself.")
    if directory in _FORBIDDEN:
        raise StackError(f"{directory} is everybody's: a dump holds the whole database. Set recovery_directory.")
    problem = files.privacy_problem(params["directory"])
    if problem:
        raise StackError(problem)


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Check everything, and unless in check mode make the backup; the task's result."""
    params = module.params
    check_names(params)
    places = arguments.Places(params)
    runtime, database = places.database_runtime(), places.database()
    identity = database.identity()
    names = dump.names(params["directory"], identity["name"], params["run_id"])
    result: dict[str, t.Any] = {
        "dump": names.dump,
        "manifest_file": names.manifest,
        "needed_bytes": dump.needed_bytes(identity["size_bytes"]),
    }
    arguments.refuse_masked(module, list(names))
    if os.path.exists(names.manifest):
        return {"changed": False, **result, **described(names, dump.intact(names.manifest, hashes=True))}
    workbench.check_programs(runtime, params["database"]["bin_dir"])
    dump.check_space(params["directory"], identity["size_bytes"])
    if module.check_mode:
        return {"changed": True, **result}
    files.private_directory(params["directory"])
    record.begin(params["run_directory"], "backing_up")
    with workbench.open_workbench(
        runtime,
        places.login(),
        params["directory"],
        bin_dir=params["database"]["bin_dir"],
        run_id=params["run_id"],
    ) as bench:
        manifest = dump.Backup(
            bench,
            database,
            names,
            run_id=params["run_id"],
            version_table=params["version_table"],
            images=runtime.images,
            timeout=params["timeout"],
            lock_timeout=params["lock_timeout"],
            content=params["content"],
        ).make()
    for warning in manifest["warnings"]:
        module.warn(f"pg_dump said: {warning}")
    result.update(described(names, manifest))
    arguments.refuse_masked(module, [result["files"], manifest["row_counts"]])
    record.begin(params["run_directory"], "backed_up", backup=[file["path"] for file in result["files"]])
    return {"changed": True, **result}


def described(names: dump.Names, manifest: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The files with their hashes, and the manifest without its longest parts."""
    parts = [part for part in (manifest["file"], manifest["globals"]) if part]
    directory = os.path.dirname(names.dump)
    listed = [{**part, "path": os.path.join(directory, part["name"])} for part in parts]
    listed.append(
        {
            "path": names.manifest,
            "name": os.path.basename(names.manifest),
            "size_bytes": os.path.getsize(names.manifest),
            "sha256": files.sha256(names.manifest),
        }
    )
    return {"files": listed, "manifest": {key: value for key, value in manifest.items() if key not in _LONG}}


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
