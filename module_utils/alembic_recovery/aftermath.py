"""What a run that was cut off has left, and what has to become of it: pure, without a look at anything else.

What a run wrote down is a hint; the names and object ids of the databases, and who is alive, decide.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import naming, record

#: What has to become of it, the most urgent first. `refuse` needs a person; `unknown`: the server could not be asked.
ACTIONS = ("unknown", "wait", "refuse", "take_back", "finish", "tidy", "nothing")

# What is of no use once its run is dead. A database from before a swap is no leftover: it is the way back.
_DISPOSABLE = frozenset({"new", "restored", "scratch", "before"})

_STAYED = "was to be migrated in place: revisions that may have been applied until then have stayed"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was found.

    `run` is the record of the run whose deeds count (`which`), `others` the names of the others that have not ended,
    `holder` who has the lock (as a sentence), `holder_id` the name of its run, `databases` the databases of the server
    by name, with `oid` and `open`, `alive` the processes of all these runs, `containers` the names of containers,
    networks and volumes by their run, `keeper` what the keeper of `run` has done.
    """

    database: str
    run: t.Mapping[str, t.Any] | None
    databases: t.Mapping[str, t.Mapping[str, t.Any]]
    others: t.Sequence[str] = ()
    holder: str = ""
    holder_id: str = ""
    alive: t.Sequence[int] = ()
    containers: t.Mapping[str, t.Sequence[str]] = dataclasses.field(default_factory=dict)
    keeper: t.Mapping[str, t.Any] | None = None


@dataclasses.dataclass(frozen=True)
class Aftermath:
    """One action, one sentence that says why, and what would be done, in order, in plain words."""

    action: str
    sentence: str
    todo: t.Sequence[str] = ()
    disposable: t.Sequence[str] = ()
    aside: str | None = None


def which(stages: t.Sequence[str]) -> int:
    """Which of the runs that have not ended is the one whose deeds count.

    A run that came as far as the outage stays the one, also where the run that was to take it back was cut off as well.

    :param stages: how far each has come, the newest first; at least one.
    :returns: its place in `stages`.
    """
    deep = (place for place, stage in enumerate(stages) if stage in record.FENCED | record.SWAPPED)
    return next(deep, 0)


def decide(seen: Evidence, *, run_id: str, end_run: str = "") -> Aftermath:
    """What has to become of what is there.

    :param run_id: the run that asks; what is its own is none of its business.
    :param end_run: the run that is to be ended although it may be alive, named by a person.
    """
    # Whoever has no record here cannot be ended from here.
    named = {end_run} & {*([str(seen.run["run_id"])] if seen.run else []), *seen.others}
    if seen.holder and seen.holder_id not in {run_id, *named} - {""}:
        way = f"To end it: -e recovery_end_run={seen.holder_id or 'RUN'}"
        if seen.holder_id and seen.holder_id == end_run:
            way = f"Run {end_run} has no record here: end it where it was started."
        return Aftermath(
            "wait",
            f"Somebody else is at work on {seen.database}: {seen.holder}. Let it end: a run that is dead loses its "
            f"lock within two minutes. {way}",
        )
    found = _left(seen)
    if found.action not in ("take_back", "finish", "tidy"):
        return found
    others = f" Others that have not ended: {', '.join(f'run {run}' for run in seen.others)}." if seen.others else ""
    ending = [f"end run {seen.holder_id}"] if seen.holder and seen.holder_id != run_id else []
    return dataclasses.replace(found, sentence=f"{found.sentence}{others}", todo=[*ending, *found.todo])


def _left(seen: Evidence) -> Aftermath:
    disposable = sorted(name for name in seen.databases if naming.kind_of(seen.database, name) in _DISPOSABLE)
    asides = [name for name in seen.databases if naming.kind_of(seen.database, name) == "aside"]
    live = seen.databases.get(seen.database)
    if live is None:
        return _without_live(seen, asides, disposable)
    if asides:
        return Aftermath(
            "refuse",
            f"There are {seen.database} and {', '.join(asides)}, which is what {seen.database} was called while it was "
            "worked on: somebody has made another. Look into both, and rename by hand.",
        )
    return _with_live(seen, live, disposable)


def _without_live(seen: Evidence, asides: t.Sequence[str], disposable: t.Sequence[str]) -> Aftermath:
    if len(asides) == 1:
        migrated = seen.run is not None and _was_swapped(seen.run, seen.databases[asides[0]])
        return Aftermath(
            "finish" if migrated else "take_back",
            f"{_named(seen)} was cut off while {seen.database} had the name {asides[0]}"
            f"{', and had become the migrated database before' if migrated else ''}.",
            _todo(seen, [f"rename {asides[0]} to {seen.database}, and open it"], disposable),
            disposable,
            asides[0],
        )
    names = ", ".join([*asides, *(n for n in seen.databases if naming.kind_of(seen.database, n))])
    if not names and seen.run is None:
        # Most likely the name is wrong: whoever connects to it says so, and what to correct.
        return Aftermath("nothing", f"There is no database {seen.database}, and no trace of a run on it.")
    return Aftermath(
        "refuse",
        f"There is no database {seen.database}, and no trace of one run that says where it is. There are: "
        f"{names or 'none whose name says that it is ours'}. Look into them, and rename the right one by hand.",
    )


def _with_live(seen: Evidence, live: t.Mapping[str, t.Any], disposable: t.Sequence[str]) -> Aftermath:
    stage = str(seen.run["stage"]) if seen.run else ""
    if stage in record.FENCED | record.SWAPPED and seen.run is not None:
        in_place, opening = bool(seen.run.get("in_place")), [] if live["open"] else [f"open {seen.database}"]
        # In place, the name comes back with the last exchange; before, nothing has it.
        if stage not in record.FENCED or _was_swapped(seen.run, live) or (in_place and stage == "swapping"):
            return Aftermath(
                "finish",
                f"{_named(seen)} was cut off after {seen.database} had become the migrated database, before the "
                f"services were up{_kept(seen)}.",
                _todo(seen, opening, disposable),
                disposable,
            )
        return Aftermath(
            "take_back",
            f"{_named(seen)} was cut off in the stage {stage}: {seen.database} is the one from before, "
            f"{'open' if live['open'] else 'closed'}, and {_STAYED if in_place else 'nothing was changed in it'}"
            f"{_kept(seen)}.",
            _todo(seen, opening, disposable),
            disposable,
        )
    if not live["open"]:
        return Aftermath(
            "refuse",
            f"{seen.database} is closed (it allows no connections), and no run says that it has closed it. If nobody "
            f"needs that: alter database {seen.database} with allow_connections true",
        )
    if stage in record.ENDED and seen.holder:
        return Aftermath(
            "tidy",
            f"{_named(seen)} has come to the stage {stage}, and still has the lock.",
            _todo(seen, [], disposable, services=False),
            disposable,
        )
    if seen.run is not None or disposable or seen.containers:
        return Aftermath(
            "tidy",
            f"{_named(seen)} was cut off{f' in the stage {stage}' if stage else ''}. The application was not touched.",
            _todo(seen, [], disposable, services=False),
            disposable,
        )
    return Aftermath("nothing", "No run was cut off.")


def _was_swapped(run: t.Mapping[str, t.Any], live: t.Mapping[str, t.Any]) -> bool:
    return bool(run.get("live_oid")) and live["oid"] != run["live_oid"]


def _named(seen: Evidence) -> str:
    if seen.run is None:
        return "An earlier run"
    return f"Run {seen.run['run_id']}, started by {seen.run.get('operator') or 'somebody'},"


def _kept(seen: Evidence) -> str:
    return "; its keeper has ended the outage since" if seen.keeper else ""


def _todo(seen: Evidence, opening: t.Sequence[str], disposable: t.Sequence[str], *, services: bool = True) -> list[str]:
    """All that is done, in order: nobody waits for what is dropped at the end."""
    whose = "these runs" if seen.others else "the run"
    todo = [f"end the processes {', '.join(map(str, seen.alive))} of {whose}"] if seen.alive else []
    todo += [f"remove {', '.join(names)} of run {run}" for run, names in sorted(seen.containers.items())]
    todo += [*opening, *(["start the services that do not run"] if services else [])]
    return [*todo, *(f"drop {name}" for name in disposable)]
