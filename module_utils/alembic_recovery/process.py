"""Running commands: argument lists, bounded time, bounded memory, and nobody left behind."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import os
import pwd
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

from ansible.module_utils.alembic_recovery.errors import CommandError

# What libpq and its programs would read behind our back: a forgotten PGSERVICE or PGOPTIONS on the target must not
# decide which database is asked, or how (security point S16). How a connection is protected may be set on the target:
# to forget that would make it less safe.
_LIBPQ = re.compile(r"^(PG(?!SSL|GSS|KRB|REQUIRE|CHANNELBINDING)[A-Z]+|PG_COLORS?|PSQLRC|PSQL_[A-Z]+)$")
# In the database's own container these belong to the server: where it listens, and what gets its own users in.
_SERVERS_OWN = ("PGDATA", "PGPORT", "PGPASSWORD")
_KEPT_OF_STDERR = 400  # lines; enough for a traceback, and no way to fill the memory


@dataclasses.dataclass(frozen=True)
class Completed:
    """A command that has ended: its argument list, exit code, output (text), and duration in seconds."""

    argv: t.Sequence[str]
    rc: int
    stdout: str
    stderr: str
    seconds: float


def environment(extra: t.Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child: ours, without libpq's variables, in the C locale, plus `extra`."""
    env = {name: value for name, value in os.environ.items() if not _LIBPQ.match(name)}
    env.update({"LC_ALL": "C", "LANGUAGE": "C"})
    env.update(extra or {})
    return env


@contextlib.contextmanager
def without_libpq_variables() -> t.Iterator[None]:
    """For libpq in this very process: its variables are out of the environment meanwhile."""
    planted = {name: os.environ.pop(name) for name in list(os.environ) if _LIBPQ.match(name)}
    try:
        yield
    finally:
        os.environ.update(planted)


def unsetting(names: t.Iterable[str], given: t.Container[str]) -> list[str]:
    """What to put before one of PostgreSQL's programs in a container, so that it does not see its variables there.

    :param names: the variables of the container's configuration.
    :param given: those that are set for the program on purpose.
    """
    decide = sorted(name for name in names if _LIBPQ.match(name) and name not in _SERVERS_OWN and name not in given)
    return ["env", *(word for name in decide for word in ("-u", name))] if decide else []


def run(
    argv: t.Sequence[str],
    *,
    stdin: str | None = None,
    env: t.Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float | None = 120.0,
    expected: t.Container[int] | None = (0,),
) -> Completed:
    """Run a command to its end.

    :param stdin: text for its standard input; none is an empty input, never a terminal.
    :param env: variables on top of :func:`environment`.
    :param timeout: seconds, then the whole process group is killed.
    :param expected: exit codes that are no error; ``None`` accepts every one.
    :raises CommandError: it could not be started, ran out of time, or ended with another exit code.
    """
    started = time.monotonic()
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (calls prctl(2) and nothing else)
        )
    except OSError as error:
        raise CommandError(f"{argv[0]} could not be started: {error.strerror}.", argv=list(argv)) from error
    try:
        out, err = child.communicate((stdin or "").encode(), timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _kill_group(child)
        child.communicate()
        raise CommandError(
            f"{_shown(argv)} did not end within {timeout:g} s and was killed.", argv=list(argv), timed_out=True
        ) from error
    except BaseException:
        _kill_group(child)
        raise
    done = Completed(
        list(argv),
        child.returncode,
        out.decode("utf-8", "replace"),
        err.decode("utf-8", "replace"),
        time.monotonic() - started,
    )
    if expected is not None and done.rc not in expected:
        raise failure(done)
    return done


def failure(done: Completed) -> CommandError:
    """The exception for a command that has ended with an exit code nobody expected."""
    said = done.stderr.strip() or done.stdout.strip() or "nothing"
    return CommandError(
        f"{_shown(done.argv)} ended with exit code {done.rc}. It said: {said[-2000:]}",
        argv=list(done.argv),
        rc=done.rc,
        stderr=done.stderr[-4000:],
    )


class Conversation:
    """A running process that is spoken with line by line over pipes, never over a terminal.

    Its standard output arrives as lines; the last lines of its standard error are kept in :attr:`said`.
    Use as a context manager: leaving it ends the process group, whatever has happened.
    """

    def __init__(
        self,
        argv: t.Sequence[str],
        *,
        env: t.Mapping[str, str] | None = None,
        cwd: str | None = None,
        identity: pwd.struct_passwd | None = None,
    ) -> None:
        """:param identity: the operating system's user whose process it is to be.

        :raises CommandError: the command could not be started.
        """
        self.argv = list(argv)
        # Read before the fork: the lists of users may be kept by a service that answers over a socket.
        changes = identity is not None and identity.pw_uid != os.geteuid()
        groups = os.getgrouplist(identity.pw_name, identity.pw_gid) if identity is not None else []

        def before_exec() -> None:
            if identity is not None and changes:
                os.setgroups(groups)
                os.setgid(identity.pw_gid)
                os.setuid(identity.pw_uid)
            # Last: the kernel forgets this when a process changes its user.
            _die_with_parent()

        self._stderr: collections.deque[str] = collections.deque(maxlen=_KEPT_OF_STDERR)
        self._lines: queue.Queue[str | None] = queue.Queue(maxsize=1000)
        try:
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(env),
                cwd=cwd,
                start_new_session=True,
                preexec_fn=before_exec,  # noqa: PLW1509 (system calls and nothing else)
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise CommandError(f"{argv[0]} could not be started: {error.strerror}.", argv=self.argv) from error
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._closing.set()
        self.close_stdin()
        if self._child.poll() is None:
            _kill_group(self._child)
        self._child.wait()
        # A grandchild that outlives the group may hold the pipes open: do not wait for it.
        for thread in self._threads:
            thread.join(timeout=2.0)

    @property
    def said(self) -> str:
        """The last lines of its standard error."""
        return "".join(self._stderr)

    def send(self, text: str) -> None:
        """Write to its standard input. A process that has ended already is noticed by the next read."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(text)
            self._child.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass

    def close_stdin(self) -> None:
        """Tell it that nothing more will come."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
        except OSError:
            pass

    def read_line(self, timeout: float | None) -> str | None:
        """Its next line without the line end, or ``None`` when it has closed its standard output.

        :raises CommandError: no line came within `timeout` seconds.
        """
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            raise CommandError(
                f"{_shown(self.argv)} said nothing for {timeout:g} s.", argv=self.argv, timed_out=True
            ) from None

    def wait(self, timeout: float | None = 30.0) -> int:
        """Its exit code, once it has ended.

        :raises CommandError: it did not end within `timeout` seconds; it has been killed.
        """
        try:
            rc = self._child.wait(timeout)
            # What it said last may not have been read yet. A grandchild may hold the pipe open: that is not waited for.
            _reads_stdout, reads_stderr = self._threads
            reads_stderr.join(timeout=5.0)
            return rc
        except subprocess.TimeoutExpired:
            _kill_group(self._child)
            raise CommandError(
                f"{_shown(self.argv)} did not end within {timeout:g} s and was killed.",
                argv=self.argv,
                timed_out=True,
            ) from None

    def _read_stdout(self) -> None:
        assert self._child.stdout is not None
        try:
            for line in self._child.stdout:
                self._put(line.rstrip("\n"))
        finally:
            self._put(None)

    def _put(self, line: str | None) -> None:
        while not self._closing.is_set():
            try:
                self._lines.put(line, timeout=0.5)
                return
            except queue.Full:
                continue

    def _read_stderr(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._stderr.append(line)


class Source:
    """A running process whose standard output is read as bytes, in pieces, from :attr:`stream`.

    Use as a context manager: leaving it ends the process group, whatever has happened.
    """

    def __init__(
        self,
        argv: t.Sequence[str],
        *,
        env: t.Mapping[str, str] | None = None,
        stdin: t.IO[bytes] | None = None,
        timeout: float | None = None,
    ) -> None:
        """:param stdin: an open file for its standard input.

        :param timeout: seconds, then the whole process group is killed, and :attr:`stream` ends.

        :raises CommandError: the command could not be started.
        """
        self.argv = list(argv)
        # A file, so that nobody has to read it meanwhile.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this object)
        try:
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=environment(env),
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (calls prctl(2) and nothing else)
            )
        except OSError as error:
            self._said.close()
            raise CommandError(f"{argv[0]} could not be started: {error.strerror}.", argv=self.argv) from error
        assert self._child.stdout is not None
        self.stream: t.IO[bytes] = self._child.stdout
        self._timed_out = threading.Event()
        self._watch = threading.Timer(timeout or threading.TIMEOUT_MAX, self._end)
        self._watch.daemon = True
        self._watch.start()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._watch.cancel()
        if self._child.poll() is None:
            _kill_group(self._child)
        self.stream.close()
        self._child.wait()
        self._said.close()

    def finish(self, timeout: float = 60.0) -> Completed:
        """How it ended, after its output was read; its standard output is not in there.

        :param timeout: seconds for its end, now that there is no more output.
        :raises CommandError: it did not end in time.
        """
        try:
            rc = self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self._end()
            rc = self._child.wait()
        if self._timed_out.is_set():
            raise CommandError(
                f"{_shown(self.argv)} did not end in time and was killed.", argv=self.argv, timed_out=True
            )
        self._said.seek(0)
        return Completed(self.argv, rc, "", self._said.read(1 << 16).decode("utf-8", "replace"), 0.0)

    def _end(self) -> None:
        self._timed_out.set()
        _kill_group(self._child)


def _die_with_parent() -> None:
    """In a new child: end when we end, even by SIGKILL, so that no orphan goes on dumping or migrating.

    Linux only (prctl(2), PR_SET_PDEATHSIG = 1); elsewhere a killed module may leave its child running.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def _kill_group(child: subprocess.Popen[t.Any]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _shown(argv: t.Sequence[str]) -> str:
    """A command line for a message: the command and its first words; secrets never are in argv."""
    words = list(argv)
    text = " ".join(words[:6])
    return f"{text} …" if len(words) > 6 else text
