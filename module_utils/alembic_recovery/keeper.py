"""The keeper: a small process on the target that holds a run's lock, and ends the outage if the run is dead.

This file is written into the run's directory and started with the target's own Python (`lock.py`), so it needs nothing
but the standard library, Python 3.8 and psql. It outlives the tasks of the run and its controller, and ends by itself:

- It holds an advisory lock in the maintenance database as long as a process of the run is alive, or was within the
  last `grace` seconds. The lock goes with its session; where the server can, it ends a session that says nothing.
- If the run is dead while the application is down, it runs the commands of the page for emergencies: it opens the
  database that has the application's name, and starts the services.

It is given one JSON object on standard input: `directory`, `psql` (argument list, with the connection's options),
`environment` (for psql), `lock` (two numbers), `who` (for others to read), `grace` (seconds), and the stages in which
the application is down or nothing is left to do (`fenced`, `swapped`, `ended`). It answers one JSON line: whether it
holds the lock.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import typing as t

_PING_S = 5.0
_LOOK_S = 1.0
_END = "--end--"
_ENDING = "keeper.ending.json"
_IDLE = (
    "select set_config('idle_session_timeout', '%s', false) where current_setting('server_version_num')::int >= 140000"
)


class Session:
    """A psql that stays connected; what it holds, it holds as long as it lives."""

    def __init__(self, argv: t.Sequence[str], environment: t.Mapping[str, str]) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._psql = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            env={**os.environ, **environment},
            encoding="utf-8",
            errors="replace",
        )
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, query: str, timeout: float = 15.0) -> list[str] | None:
        """The lines of an answer; None: no answer, the session is of no use any more."""
        assert self._psql.stdin is not None
        try:
            self._psql.stdin.write("%s;\n\\echo %s\n" % (query, _END))
            self._psql.stdin.flush()
        except (OSError, ValueError):
            return None
        lines: list[str] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                return None
            if line is None:
                return None
            if line == _END:
                return lines
            lines.append(line)

    def close(self) -> None:
        """End it, and with it the lock."""
        for step in (self._psql.stdin.close if self._psql.stdin else int, self._psql.terminate):
            try:
                step()
            except (OSError, ValueError):
                pass
        try:
            self._psql.wait(10)
        except subprocess.TimeoutExpired:
            self._psql.kill()

    def _read(self) -> None:
        assert self._psql.stdout is not None
        for line in self._psql.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


class Keeper:
    """One lock of one run."""

    def __init__(self, task: t.Mapping[str, t.Any]) -> None:
        self._task = task
        self._directory = task["directory"]
        self._session: Session | None = None
        self._pinged = 0.0
        self._shown: t.Any = None
        self._ended = False

    def acquire(self) -> bool:
        """Connect and take the lock, if nobody has it."""
        self._session = Session(self._task["psql"], self._task["environment"])
        # PostgreSQL 14 and later end the session of a keeper that was killed, whatever became of its psql.
        self._session.ask(_IDLE % "30s")
        answer = self._session.ask(
            "select pg_try_advisory_lock(%d, %d) /* %s */" % (*self._task["lock"], self._who(self._record()))
        )
        if answer == ["t"]:
            return True
        self._session.close()
        return False

    def keep(self) -> None:
        """Hold the lock until the run has ended, or is dead; then see to the outage."""
        while not self._ended:
            time.sleep(_LOOK_S)
            record = self._record()
            if record.get("stage") in self._task["ended"]:
                # The module that has written this ends us; if it was killed before, the grace does.
                if not self._run_is_alive():
                    break
            elif not self._run_is_alive() and self._end_outage(record):
                break
            if not self._ping(record):
                self._write("LOCK_LOST", {"at": _now()})
                self._say("Somebody else has the lock: nothing is kept any more.")
                return
        if self._session is not None:
            self._session.close()

    def stop(self, *_unused: t.Any) -> None:
        """End at the next look (SIGTERM)."""
        self._ended = True

    # -- is the run alive? -----------------------------------------------------------------------------------------

    def _run_is_alive(self) -> bool:
        place = os.path.join(self._directory, "alive")
        try:
            names = os.listdir(place)
            last = os.stat(place).st_mtime
        except OSError:
            return False
        if any(_is_alive(place, name) for name in names):
            return True
        # The clock may have been set: a time in the future does not keep a lock for ever.
        return abs(time.time() - last) < float(self._task["grace"])

    # -- the lock --------------------------------------------------------------------------------------------------

    def _ping(self, record: t.Mapping[str, t.Any]) -> bool:
        """Show how far the run is, and keep the session from being idle; False: somebody else has the lock."""
        now = time.monotonic()
        if record.get("stage") == self._shown and now - self._pinged < _PING_S:
            return True
        self._shown, self._pinged = record.get("stage"), now
        if self._session is not None and self._session.ask("select 1 /* %s */" % self._who(record)) is not None:
            return True
        self._say("The session is gone (was the server restarted?). Taking the lock again.")
        if self._session is not None:
            self._session.close()
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and not self._ended:
            if self.acquire():
                return True
            if self._somebody_else_has_it():
                return False
            time.sleep(2.0)
        # No server: nobody else can have the lock either. The next look tries again.
        return True

    def _somebody_else_has_it(self) -> bool:
        session = Session(self._task["psql"], self._task["environment"])
        # A session of ours that is gone for us may not be gone for the server yet: that is nobody else.
        answer = session.ask(
            "select count(*) from pg_locks l where locktype = 'advisory' and granted and objsubid = 2 "
            "and classid::bigint = %d and objid::bigint = %d and not exists (select from pg_stat_activity a "
            "where a.pid = l.pid and a.application_name = current_setting('application_name'))"
            % tuple(part % 2**32 for part in self._task["lock"])
        )
        session.close()
        return answer is not None and answer != ["0"]

    def _who(self, record: t.Mapping[str, t.Any]) -> str:
        text = json.dumps({**self._task["who"], "stage": record.get("stage", "locked")}, sort_keys=True)
        # A comment must not end early, and a backslash must not reach psql.
        return text.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")

    # -- the outage ------------------------------------------------------------------------------------------------

    def _end_outage(self, record: t.Mapping[str, t.Any]) -> bool:
        """Run the commands of the page for emergencies, if the application is down; False: the run is alive after all.

        A run signs in first and then looks whether it is taken for dead; here it is the other way round. So they never
        both go on.
        """
        stage = record.get("stage")
        if stage not in self._task["fenced"] and stage not in self._task["swapped"]:
            self._say("The run is dead in the stage %s." % stage)
            return True
        # First of all: a run that wakes up now finds this, and does nothing more.
        self._write(_ENDING, {"at": _now(), "stage": stage})
        if self._run_is_alive():
            self._remove(_ENDING)
            return False
        self._say("The run is dead in the stage %s." % stage)
        if self._session is not None:
            # Starting services may take longer, and until that is done nobody else shall be at work.
            self._session.ask(_IDLE % "0")
        # What it noted until then counts: it may have given the database another name in between.
        record = self._record() or record
        swapped = self._is_swapped(record)
        commands = record.get("commands") or {}
        if swapped is None:
            self._say("The database could not be asked for its names. Opening is tried all the same.")
        self._end_sessions(record)
        # Also after the swap: whoever goes back from it closes the database once more.
        done = [self._run(argv) for argv in commands.get("open", [])]
        if self._is_ours(record):
            done += [self._run(argv) for argv in commands.get("start", [])]
        else:
            self._say("Somebody has made another database of that name: the services are not started on it.")
        self._write("keeper.json", {"at": _now(), "stage": stage, "swapped": swapped, "commands": done})
        return True

    def _is_swapped(self, record: t.Mapping[str, t.Any]) -> bool | None:
        """Whether the migrated database has the application's name; names are exchanged in one transaction."""
        oid = self._live_oid(record)
        return None if oid is None else bool(oid) and record.get("live_oid") not in (None, oid)

    def _is_ours(self, record: t.Mapping[str, t.Any]) -> bool:
        """Whether the run knows what has the application's name now; also where that cannot be told."""
        done = (record.get("swap") or {}).get("done") or {}
        known = {record.get("live_oid"), record.get("new_oid"), done.get("new_oid")} - {None, 0}
        oid = self._live_oid(record)
        return not oid or not known or oid in known

    def _live_oid(self, record: t.Mapping[str, t.Any]) -> int | None:
        """The object id of what has the application's name, 0 if nothing has; None: the server does not answer."""
        for _attempt in range(20):
            session = Session(self._task["psql"], self._task["environment"])
            answer = session.ask("select oid from pg_database where datname = %s" % _literal(record["database"]))
            session.close()
            if answer is not None:
                return int(answer[0]) if answer else 0
            time.sleep(3.0)
        return None

    def _end_sessions(self, record: t.Mapping[str, t.Any]) -> None:
        """End what the dead run has left at work in the server: it must not go on under our hands."""
        session = Session(self._task["psql"], self._task["environment"])
        session.ask(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like %s "
            "and pid <> pg_backend_pid() and application_name not like '%%:lock'"
            % _literal("alembic-recovery:%s:%%" % record["run_id"])
        )
        session.close()

    def _run(self, argv: t.Sequence[str]) -> dict[str, t.Any]:
        try:
            done = subprocess.run(
                list(argv),
                env={**os.environ, **self._task["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=180,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"argv": list(argv), "rc": None, "said": str(error)[:500]}
        self._say("%s ended with %d." % (" ".join(argv), done.returncode))
        return {"argv": list(argv), "rc": done.returncode, "said": done.stdout[-500:]}

    # -- files -----------------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, t.Any]:
        try:
            with open(os.path.join(self._directory, "record.json"), encoding="utf-8") as file:
                found: dict[str, t.Any] = json.load(file)
                return found
        except (OSError, ValueError):
            return {}

    def _write(self, name: str, facts: t.Mapping[str, t.Any]) -> None:
        """Write it down; a disk that is full is no reason to leave the application down."""
        try:
            self._write_file(name, facts)
        except OSError as error:
            self._say("%s cannot be written: %s" % (name, error))

    def _remove(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self._directory, name))
        except OSError as error:
            self._say("%s cannot be removed: %s" % (name, error))

    def _write_file(self, name: str, facts: t.Mapping[str, t.Any]) -> None:
        path = os.path.join(self._directory, name)
        partial = path + ".partial"
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        owner = os.stat(self._directory)
        if os.geteuid() == 0:
            os.chown(partial, owner.st_uid, owner.st_gid)
        os.replace(partial, path)

    @staticmethod
    def _say(text: str) -> None:
        try:
            sys.stderr.write("%s %s\n" % (_now(), text))
            sys.stderr.flush()
        except OSError:
            pass


def _is_alive(place: str, name: str) -> bool:
    """Whether a process that has signed in (record.presence) is still the same and there."""
    try:
        with open(os.path.join(place, name), encoding="utf-8") as file:
            started = file.read()
        with open("/proc/%d/stat" % int(name), encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rpartition(")")[2].split()
        return state != "Z" and str(rest[18]) == started
    except ValueError:
        return False
    except OSError:
        if os.path.isdir("/proc/self"):
            return False
    try:
        os.kill(int(name), 0)
    except OSError:
        return False
    return True


def _literal(value: str) -> str:
    return " E'%s'" % value.replace("\\", "\\\\").replace("'", "''")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def main() -> int:
    """Take the lock, say so, and keep it; the exit code."""
    task = json.load(sys.stdin)
    keeper = Keeper(task)
    signal.signal(signal.SIGTERM, keeper.stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    held = keeper.acquire()
    sys.stdout.write(json.dumps({"held": held, "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    # Whoever has started us waits for the end of this stream.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not held:
        return 1
    keeper.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
