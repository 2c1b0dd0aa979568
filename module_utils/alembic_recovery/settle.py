"""Bringing what a run has left to a good end: looking at it (the decision is `aftermath.py`'s), and the deeds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import typing as t

from ansible.module_utils.alembic_recovery import (
    aftermath,
    arguments,
    docker_cli,
    dump,
    fence,
    lock,
    postgres,
    record,
    services,
    sql,
)
from ansible.module_utils.alembic_recovery.errors import RecoveryError

_NAMES = "select datname as name from pg_database"
_END_S = 15.0
_SERVER_S = 60.0
_FREE_S = 5.0
# What PostgreSQL and libpq say of a server that is being started or stopped, or was not there for a moment.
_COMING_UP = re.compile(
    r"starting up|not yet accepting|in recovery mode|shutting down|closed the connection unexpectedly|"
    r"[Cc]onnection refused|No such file or directory"
)


def look(
    places: arguments.Places,
    params: t.Mapping[str, t.Any],
    directory: str,
    *,
    for_itself: bool = False,
    end_run: str = "",
) -> aftermath.Evidence:
    """Everything that runs that were cut off may have left, as evidence.

    :param directory: where the directories of the stack's runs are.
    :param for_itself: the run that asks does so in its rescue: of all runs, it is the only one that counts.
    :param end_run: the run that is to be ended although it may be alive, named by a person: it counts as long as it has
        the lock, also where its record says that it has ended.
    :raises RecoveryError: the server could not be asked.
    """
    name = params["database"]["name"]
    maintenance = places.maintenance()
    who = lock.holder(maintenance, name)
    names = [row["name"] for row in maintenance.ask(_NAMES)]
    databases = fence.entries(maintenance, *names)
    known = record.runs(directory)
    unfinished = [
        run
        for run in known
        if run.stage not in record.ENDED
        and run.facts.get("database") == name
        and (run.facts["run_id"] == params["run_id"]) == for_itself
    ]
    if end_run and who and who.run_id == end_run:
        unfinished += [run for run in known if run.facts["run_id"] == end_run and run not in unfinished]
    run = unfinished[aftermath.which([run.stage for run in unfinished])] if unfinished else None
    # A server that was restarted has ended the lock's session: its keeper takes it again, or ends the outage.
    who = who or next(filter(None, map(lock.keeps, unfinished)), None)
    return aftermath.Evidence(
        database=name,
        run=run.facts if run else None,
        databases=databases,
        holder=str(who) if who else "",
        holder_id=who.run_id if who else "",
        others=[str(other.facts["run_id"]) for other in unfinished if other is not run],
        # In a rescue this process itself is one of the run's.
        alive=[pid for one in unfinished for pid in record.processes(one.directory) if pid != os.getpid()],
        containers=_containers(places, abandoned(known, params, [str(one.facts["run_id"]) for one in unfinished])),
        keeper=keeper_outcome(run.directory) if run else None,
    )


def abandoned(known: t.Sequence[record.Record], params: t.Mapping[str, t.Any], settled: t.Collection[str]) -> set[str]:
    """The runs on this database whose things in the Engine nobody needs any more.

    A run that has given its lock back may still look at something, and one on another database has another lock.

    :param settled: the runs that are settled, alive or not.
    """
    ended = {
        str(run.facts["run_id"])
        for run in known
        if run.facts.get("database") == params["database"]["name"] and not record.processes(run.directory)
    }
    return (ended - {params["run_id"]}) | set(settled)


def _containers(places: arguments.Places, runs: t.Container[str]) -> dict[str, list[str]]:
    """What runs have left in the Engine, of those that nobody needs any more."""
    if not places.use_docker:
        return {}
    found = places.docker.left_by_runs()
    return {run: sorted({name for names in found[run].values() for name in names}) for run in found if run in runs}


def remove_left(docker: docker_cli.DockerCli, runs: t.Container[str]) -> None:
    """Remove what runs have left in the Engine, also what it was just making for a client that was killed.

    :param runs: those that are settled: what does not go within five seconds is left to the next run.
    :raises RecoveryError: the Engine does not answer.
    """
    deadline = time.monotonic() + _FREE_S
    while True:
        left = [things for run, things in docker.left_by_runs().items() if run in runs]
        if not left or time.monotonic() > deadline:
            return
        for things in left:
            docker.remove_left(things)
        time.sleep(0.2)


def keeper_outcome(directory: str) -> dict[str, t.Any] | None:
    """What the keeper of a dead run has done about the outage, if it had to."""
    try:
        with open(os.path.join(directory, record.OUTCOME), encoding="utf-8") as file:
            return t.cast("dict[str, t.Any]", json.load(file))
    except (OSError, ValueError):
        return None


def end_processes(directory: str) -> list[int]:
    """End the processes of a run, but this one; those that there were.

    :raises RecoveryError: one of them does not end.
    """
    pids = [pid for pid in record.processes(directory) if pid != os.getpid()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in record.processes(directory):
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + _END_S
        while set(record.processes(directory)) - {os.getpid()}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return pids
    raise RecoveryError(f"Processes of the run do not end: {record.processes(directory)}. End them by hand, with kill.")


def end_sessions(maintenance: postgres.Database, run_id: str) -> None:
    """End the sessions of a run in the server, but the lock's; prove that they are gone.

    :raises RecoveryError: one is still there.
    """
    which = (
        f"from pg_stat_activity where pid <> pg_backend_pid() and application_name like "
        f"{sql.literal(f'alembic-recovery:{run_id}:%')} and application_name not like '%:lock'"
    )
    deadline = time.monotonic() + _END_S
    while maintenance.ask(f"select pid {which}"):
        if time.monotonic() > deadline:
            raise RecoveryError(f"Sessions of run {run_id} do not end. Look into pg_stat_activity.")
        maintenance.act([], returning=f"select pg_terminate_backend(pid) as done {which}")
        time.sleep(0.2)


def wait_for_server(places: arguments.Places) -> None:
    """Wait while the server comes up again: it may be its crash that has ended the run.

    :raises RecoveryError: it does not answer, for another reason or within a minute.
    """
    deadline = time.monotonic() + _SERVER_S
    while True:
        try:
            places.maintenance().ask("select 1 as here")
            return
        except RecoveryError as error:
            if not _COMING_UP.search(error.message) or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def bring_back(maintenance: postgres.Database, name: str, aside: str | None) -> None:
    """Give a database that was put aside its name back, and open it.

    :raises RecoveryError: it was refused.
    """
    if aside:
        fence.close(maintenance, aside)
        fence.empty(maintenance, aside)
        statements = [f"alter database {sql.identifier(aside)} rename to {sql.identifier(name)}"]
        statements.append(f"alter database {sql.identifier(name)} with allow_connections true")
        maintenance.act(statements, at_once=True)
    else:
        fence.reopen(maintenance, name)


def start_all(all_services: t.Sequence[services.Service], policies: t.Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Start the services that do not run, in order, with what starts them again by itself as it was.

    One that does not come up is no reason to leave the others down: the application may have been like that before.

    :returns: the names of those that were started, and why others were not, one sentence each.
    """
    started: list[str] = []
    problems: list[str] = []
    for service in all_services:
        try:
            policy = policies.get(service.name)
            if policy is not None and service.policy() != policy:
                service.set_policy(policy)
            if not service.state().running:
                service.start()
                started.append(service.name)
        except RecoveryError as error:
            problems.append(f"{service.name} did not start: {error.message}")
    return started, problems


def remove_unfinished_backup(directory: str | None, database: str, run_id: str) -> list[str]:
    """Remove the files of a backup that has no manifest: without it, there is no backup."""
    if directory is None:
        return []
    names = dump.names(directory, database, run_id)
    if os.path.exists(names.manifest):
        return []
    removed = []
    for path in (f"{names.dump}.partial", names.dump, names.globals, f"{names.manifest}.partial"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            removed.append(path)
    return removed
