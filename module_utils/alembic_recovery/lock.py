"""One run at a time on a database: an advisory lock in another database of the same server, and who has it.

Advisory locks are per database, and a session inside the application's own would be in the way of its renaming: so the
lock is in the maintenance database. The keeper's session holds it (`keeper.py`), never a migration's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
import typing as t
import zlib

from ansible.module_utils.alembic_recovery import files, keeper, postgres, process, record
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError

# The first half of the key is the same for all our locks; the second is made of the database's name, which stays when
# its object id changes with a swap.
_CLASS = 0x616C7265  # "alre"
_START_S = 30.0
# One look of a keeper with a slow server takes half of it.
_END_S = 60.0
# A keeper that ends an outage is not disturbed: it opens the database, and starts the services.
_OUTAGE_S = 600.0
# Imported, because Ansible sends only what a module imports.
_SOURCE = f"{keeper.__name__.rpartition('.')[2]}.py"
_LOG = "keeper.log"

_HOLDER = """
select a.pid, a.application_name as application, a.usename::text as "user", host(a.client_addr) as address,
       a.backend_start::text as since, a.query
from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 2
      and l.classid::bigint = {0} and l.objid::bigint = {1}
      and l.database = (select oid from pg_database where datname = current_database())
"""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has the lock: the session, and what its run says of itself (empty where that may not be seen)."""

    pid: int
    application: str
    since: str
    run_id: str
    operator: str
    controller: str
    stage: str

    def as_result(self) -> dict[str, t.Any]:
        """The JSON form for a task's result."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"run {self.run_id or self.application}, started by {self.operator or 'somebody'} from "
            f"{self.controller or 'somewhere'}, at work since {self.since}, now in the stage "
            f"{self.stage or 'that it does not show'}"
        )


def key(database: str) -> tuple[int, int]:
    """The two numbers of the lock of a database, as PostgreSQL takes them (signed, 32 bits)."""
    number = zlib.crc32(database.encode())
    return _CLASS, number - (1 << 32) if number >= 1 << 31 else number


def holder(maintenance: postgres.Database, database: str) -> Holder | None:
    """Who has the lock of a database, asked over a new connection; ``None``: nobody.

    :raises DatabaseError: the maintenance database could not be asked.
    """
    numbers = [part % 2**32 for part in key(database)]
    rows = maintenance.ask(_HOLDER.format(*numbers))
    return parse_holder(rows[0]) if rows else None


def parse_holder(row: t.Mapping[str, t.Any]) -> Holder:
    """A holder from a row of pg_stat_activity; its last query carries what its run says of itself."""
    found = re.search(r"/\* (\{.*\}) \*/", row["query"] or "")
    said: dict[str, t.Any] = {}
    if found:
        try:
            said = json.loads(found[1])
        except ValueError:
            said = {}
    named = re.match(r"alembic-recovery:(.+):lock$", row["application"] or "")
    return Holder(
        row["pid"],
        row["application"] or "",
        row["since"],
        str(said.get("run_id") or (named[1] if named else "")),
        str(said.get("operator") or row["user"] or ""),
        str(said.get("controller") or row["address"] or ""),
        str(said.get("stage") or ""),
    )


def session_name(run_id: str) -> str:
    """The name of the keeper's session in pg_stat_activity."""
    return f"alembic-recovery:{run_id}:lock"[:63]


def start_keeper(
    directory: str, psql: t.Sequence[str], environment: t.Mapping[str, str], who: t.Mapping[str, str], *, grace: int
) -> bool:
    """Start the keeper of a run, and return whether it has the lock.

    :param directory: the run's directory, with its record.
    :param psql: the command line of a psql in the maintenance database.
    :param environment: for psql: the password, and the name of the session.
    :param who: what others may read of the run: `run_id`, `operator`, `controller`, `database`.
    :param grace: seconds that the lock is kept after the run's last process.
    :raises RecoveryError: it did not answer.
    """
    source = pkgutil.get_data("ansible.module_utils.alembic_recovery", _SOURCE)
    assert source is not None
    path = os.path.join(directory, _SOURCE)
    if not os.path.exists(path):
        with files.open_private(path) as file:
            file.write(source.decode())
    task = {
        "directory": directory,
        "psql": list(psql),
        "environment": dict(environment),
        "lock": list(key(str(who["database"]))),
        "who": dict(who),
        "grace": grace,
        "fenced": sorted(record.FENCED),
        "swapped": sorted(record.SWAPPED),
        "ended": sorted(record.ENDED),
    }
    log = os.open(os.path.join(directory, _LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.fchown(log, *files.login_owner())
    try:
        # It must outlive this process and its session; so unlike all other children it is not told to end with us.
        child = subprocess.Popen(
            [sys.executable, "-I", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=process.environment(),
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log)
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(task).encode())
        child.stdin.close()
        answer = json.loads(child.stdout.readline() or b"null")
        child.stdout.close()
    except (OSError, ValueError) as error:
        raise _silent(directory) from error
    if not isinstance(answer, dict):
        raise _silent(directory)
    if answer["held"]:
        keeper_facts = {"pid": answer["pid"], "started": record.started(answer["pid"])}
        record.Record.read(directory).note(keeper=keeper_facts)
    return bool(answer["held"])


def _silent(directory: str) -> RecoveryError:
    return RecoveryError(f"The keeper of the lock did not start: {log_tail(directory)} Look into {directory}/{_LOG}.")


def log_tail(directory: str) -> str:
    """The last lines that the keeper wrote."""
    try:
        with open(os.path.join(directory, _LOG), encoding="utf-8", errors="replace") as file:
            return " / ".join(file.read().splitlines()[-4:]) or "it said nothing."
    except OSError:
        return "it said nothing."


def keeper_pids(directory: str) -> list[int]:
    """The process ids of the keepers of a run that are alive on this host."""
    path = os.path.join(directory, _SOURCE)
    return _pids_from_proc(path) if os.path.isdir("/proc/self") else pids_from_ps(path)


def pids_from_ps(path: str) -> list[int]:
    """The processes whose last word is a path, where there is no /proc (macOS)."""
    lines = process.run(["ps", "-A", "-ww", "-o", "pid=,args="], timeout=30.0).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if line.endswith(f" {path}")]


def _pids_from_proc(path: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if path.encode() in words:
            found.append(int(name))
    return found


def end_keeper(directory: str, maintenance: postgres.Database, database: str, run_id: str) -> None:
    """End the keeper of a run, and wait until its lock is gone.

    :raises StackError: it is still there.
    """
    for pid in keeper_pids(directory):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    began = time.monotonic()
    while True:
        seen = holder(maintenance, database)
        if seen is not None and seen.application != session_name(run_id):
            seen = None
        pids = keeper_pids(directory)
        if seen is None and not pids:
            return
        if time.monotonic() - began > (_OUTAGE_S if ends_outage(directory) else _END_S):
            by_hand = f"select pg_terminate_backend({seen.pid})" if seen else f"kill {' '.join(map(str, pids))}"
            raise StackError(
                f"The {'lock' if seen else 'keeper'} of run {run_id} is still there{f': {seen}' if seen else ''}. It "
                f"goes within two minutes; or end it by hand: {by_hand}"
            )
        time.sleep(0.2)


def ends_outage(directory: str) -> bool:
    """Whether the keeper of a run has begun to end an outage, and has not done it yet."""
    begun, done = (os.path.exists(os.path.join(directory, name)) for name in (record.ENDING, record.OUTCOME))
    return begun and not done


def keeps(run: record.Record) -> Holder | None:
    """Who would have the lock if its session had not gone, as with a restart of the server; ``None``: it has ended."""
    pids = keeper_pids(run.directory)
    if not pids:
        return None
    run_id = str(run.facts["run_id"])
    return Holder(
        pids[0],
        session_name(run_id),
        str(run.facts["stages"][0]["at"]),
        run_id,
        str(run.facts.get("operator") or ""),
        str(run.facts.get("controller") or ""),
        run.stage,
    )
