"""What a run writes down on the target: how far it has come, what it decided, and which of its processes are alive.

The directory of a run belongs to the lock that made it. What is written there is a hint for people and for the next
run, which looks at the database and the services all the same.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import typing as t

from ansible.module_utils.alembic_recovery import break_glass, files
from ansible.module_utils.alembic_recovery.errors import StackError

RECORD = "record.json"
AUDIT = "audit.jsonl"
PAGE = "BREAK-GLASS.txt"
#: Written by the keeper of a run that it has taken for dead: when it begins to end the outage, and what it has done.
ENDING = "keeper.ending.json"
OUTCOME = "keeper.json"
_ALIVE = "alive"
_FORMAT = 1

#: The stages of a run in order. What can be lost or left behind is decided from these and from what is there.
STAGES: t.Sequence[str] = (
    "locked", "backing_up", "backed_up", "rehearsing",
    "fencing", "fenced", "cloning", "cloned", "migrating", "migrated", "swapping", "swapped",
    "starting", "started", "taken_back", "done", "failed",
)  # fmt: skip
#: While a run is in one of these, the application is down and the database still is the one from before.
FENCED = frozenset({"fencing", "fenced", "cloning", "cloned", "migrating", "migrated", "swapping"})
#: In these, the database is the new one, and the application may still be down.
SWAPPED = frozenset({"swapped", "starting"})
#: A run in one of these left nothing to do.
ENDED = frozenset({"taken_back", "done", "failed", "started"})


class Record:
    """The record of one run: a JSON object that is replaced as a whole, and an audit of what was added and when."""

    def __init__(self, directory: str, facts: dict[str, t.Any]) -> None:
        self.directory = directory
        self.facts = facts

    @classmethod
    def start(cls, directory: str, **facts: t.Any) -> Record:
        """Make the directory of a run and its first record.

        :param facts: `run_id`, `stack`, `database`, `operator`, `controller`, and what else is known.
        :raises StackError: there is such a run already, or the directory cannot be made private.
        """
        files.private_directory(os.path.dirname(directory))
        if os.path.lexists(os.path.join(directory, RECORD)):
            # A run that has taken back what another one left has given its lock back, and takes it anew.
            again = cls.read(directory)
            if again.stage not in ENDED:
                raise StackError(f"{directory} is there already: there is a run of that name. Choose another run id.")
            again.note("locked", **facts)
            return again
        files.private_directory(directory)
        files.private_directory(os.path.join(directory, _ALIVE))
        record = cls(directory, {"format": _FORMAT, "stages": []})
        record.note("locked", **facts)
        return record

    @classmethod
    def read(cls, directory: str) -> Record:
        """The record of a run.

        :raises StackError: there is none, or it cannot be read.
        """
        path = os.path.join(directory, RECORD)
        try:
            with open(path, encoding="utf-8") as file:
                facts = json.load(file)
        except (OSError, ValueError) as error:
            raise StackError(f"{path} cannot be read as the record of a run: {error}.") from error
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise StackError(f"{path} is not the record of a run (format {_FORMAT}).")
        return cls(directory, facts)

    @property
    def stage(self) -> str:
        """How far the run has come; what is written there was written before the deed."""
        return str(self.facts["stage"])

    def note(self, stage: str | None = None, /, **facts: t.Any) -> None:
        """Add facts, and the stage that begins now; on the disk before this returns, with the page for emergencies.

        :raises StackError: it cannot be written.
        """
        at = datetime.datetime.now(datetime.timezone.utc).isoformat()
        self.facts.update(facts)
        if stage is not None:
            assert stage in STAGES, stage
            self.facts["stage"] = stage
            self.facts["stages"] = [*self.facts["stages"], {"stage": stage, "at": at}]
        try:
            with open(os.path.join(self.directory, AUDIT), "a", encoding="utf-8", opener=files.private_opener) as audit:
                audit.write(json.dumps({"at": at, **({"stage": stage} if stage else {}), **facts}) + "\n")
            files.replace_private(os.path.join(self.directory, PAGE), break_glass.page(self.facts, self.directory))
            files.replace_private(
                os.path.join(self.directory, RECORD), json.dumps(self.facts, indent=1, sort_keys=True) + "\n"
            )
        except OSError as error:
            raise StackError(f"The record of the run in {self.directory} cannot be written: {error}.") from error

    def seconds_since(self, stage: str) -> float | None:
        """How long ago a stage began for the first time; ``None`` if the run has not come there."""
        for entry in self.facts["stages"]:
            if entry["stage"] == stage:
                began = datetime.datetime.fromisoformat(entry["at"])
                return round((datetime.datetime.now(datetime.timezone.utc) - began).total_seconds(), 1)
        return None


def begin(directory: str | None, stage: str, /, **facts: t.Any) -> Record | None:
    """Write down that a stage begins, before its first deed; nothing where there is no run.

    :raises StackError: there is no record in `directory`, it cannot be written, or the run has lost its lock.
    """
    if directory is None:
        return None
    require_lock(directory)
    record = Record.read(directory)
    record.note(stage, **facts)
    return record


def require_lock(directory: str | None) -> None:
    """Make sure that a run still has its lock, before what must not be done without it; nothing where there is no run.

    :raises StackError: there is no record in `directory`, or the run has lost its lock, or is taken for dead.
    """
    if directory is None:
        return
    if os.path.exists(os.path.join(directory, ENDING)):
        raise StackError(
            "This run was silent for so long (a controller that slept?) that its keeper has taken it for dead and ends "
            f"the outage. Nothing more is done. What it has done: {directory}/{OUTCOME}"
        )
    keeper = Record.read(directory).facts.get("keeper")
    if keeper and started(keeper["pid"]) != keeper["started"]:
        raise StackError(
            f"The lock of this run is gone: its keeper (process {keeper['pid']}) has ended, so another run may be at "
            f"work. Nothing more is done. Look into {directory}/keeper.log"
        )


def within_fence(directory: str | None, stage: str, /, **facts: t.Any) -> None:
    """The same, but only while the application is kept out: what is done to a copy in a rehearsal is no such stage.

    :raises StackError: there is no record in `directory`, or it cannot be written.
    """
    if directory is not None and Record.read(directory).stage in FENCED:
        begin(directory, stage, **facts)


def before_fence(directory: str | None, stage: str, /, **facts: t.Any) -> None:
    """The same, but only while the application still runs as before.

    :raises StackError: there is no record in `directory`, or it cannot be written.
    """
    if directory is not None and Record.read(directory).stage not in FENCED | SWAPPED | ENDED:
        begin(directory, stage, **facts)


def add(directory: str | None, **facts: t.Any) -> None:
    """Write down what was learnt, whatever the stage is; nothing where there is no run.

    :raises StackError: there is no record in `directory`, or it cannot be written.
    """
    if directory is not None:
        Record.read(directory).note(**facts)


@contextlib.contextmanager
def presence(directory: str | None) -> t.Iterator[None]:
    """Sign in as a process of a run while something is done; nothing where the run has no directory (yet).

    Who keeps the run's lock looks here: as long as one of these processes is alive, the run is.
    """
    place = os.path.join(directory, _ALIVE) if directory else ""
    if not place or not os.path.isdir(place):
        yield
        return
    path = os.path.join(place, str(os.getpid()))
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8", opener=files.private_opener) as file:
        file.write(started(os.getpid()))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        # The run is alive until some time after its last process: between two tasks there is none.
        with contextlib.suppress(OSError):
            os.utime(place)


def processes(directory: str) -> list[int]:
    """The process ids of a run's processes that are alive."""
    place = os.path.join(directory, _ALIVE)
    found = []
    for name in os.listdir(place) if os.path.isdir(place) else []:
        with contextlib.suppress(OSError, ValueError), open(os.path.join(place, name), encoding="utf-8") as file:
            if file.read() == started(int(name)) != "":
                found.append(int(name))
    return sorted(found)


def started(pid: int) -> str:
    """When a process was started, in a form that only compares: a process id is used again. Empty: it is not there."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rpartition(")")[2].split()
    except OSError:
        if os.path.isdir("/proc/self"):
            return ""
        # macOS has no /proc: whether it is there is all that can be told.
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "there"
    return "" if state == "Z" else rest[18]


def runs(directory: str) -> list[Record]:
    """The records of all runs of a stack, the newest first; what cannot be read is left out.

    :param directory: where the directories of runs are.
    """
    found = []
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        with contextlib.suppress(StackError):
            found.append(Record.read(os.path.join(directory, name)))
    return sorted(found, key=lambda record: str(record.facts["stages"][0]["at"]), reverse=True)
