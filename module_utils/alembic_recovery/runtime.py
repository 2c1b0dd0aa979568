"""Where a command runs: in a container, in a one-off container made like it, or as a process on the target.

Exec to look, one-off containers to act: a killed `docker exec` leaves its process running in the container, a killed
one-off leaves nothing.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import typing as t

from ansible.module_utils.alembic_recovery import process
from ansible.module_utils.alembic_recovery.docker_cli import DockerCli, container_state, one_off_like
from ansible.module_utils.alembic_recovery.errors import StackError


class Runtime(abc.ABC):
    """A place where the application's or the database's own programs can be started."""

    #: Where this is, for messages: "container X", "a one-off container like X", "this host".
    where: str

    @abc.abstractmethod
    def converse(
        self,
        argv: t.Sequence[str],
        *,
        env: t.Mapping[str, str] | None = None,
        act: bool = False,
        purpose: str = "look",
    ) -> t.ContextManager[process.Conversation]:
        """Start a program and speak with it over pipes.

        :param act: it will change something; it must then be possible to end it for certain.
        :param purpose: one word for the name of a one-off container.
        :raises RecoveryError: it could not be started.
        """

    @property
    def images(self) -> dict[str, str]:
        """Image ids by container name; empty where there are no containers."""
        return {}

    def before_psql(self, given: t.Container[str]) -> list[str]:  # noqa: ARG002
        """What has to stand before one of PostgreSQL's programs, so that variables from elsewhere do not decide.

        :param given: variables that are set for it on purpose.
        """
        return []


class HostRuntime(Runtime):
    """Processes on the target itself: applications under a process supervisor, embedded or packaged PostgreSQL."""

    where = "this host"

    def __init__(
        self,
        *,
        workdir: str | None = None,
        env: t.Mapping[str, str] | None = None,
        environment_file: str | None = None,
    ) -> None:
        """:param environment_file: `NAME=value` lines, as systemd reads them.

        :raises StackError: the working directory or the file cannot be read.
        """
        if workdir and not os.path.isdir(workdir):
            raise StackError(f"The working directory {workdir} is not there. Correct app.workdir in recovery_stack.")
        self._workdir = workdir
        self._env = {**(read_environment_file(environment_file) if environment_file else {}), **(env or {})}

    @contextlib.contextmanager
    def converse(
        self,
        argv: t.Sequence[str],
        *,
        env: t.Mapping[str, str] | None = None,
        act: bool = False,  # noqa: ARG002 (a process of ours ends with us, whatever it does)
        purpose: str = "look",  # noqa: ARG002
    ) -> t.Iterator[process.Conversation]:
        """See :meth:`Runtime.converse`."""
        with process.Conversation(argv, env={**self._env, **(env or {})}, cwd=self._workdir) as conversation:
            yield conversation


class DockerRuntime(Runtime):
    """A container, running or not: in it to look while it is steady, else in a one-off container made like it."""

    def __init__(self, docker: DockerCli, container: str, *, run_id: str, workdir: str | None = None) -> None:
        """:raises DockerError: no such container, or no Engine."""
        self.docker = docker
        self.container = container
        self.seen = docker.inspect(container)
        self.state = container_state(self.seen)
        self._run_id = run_id
        self._workdir = workdir
        self.where = f"container {container}"

    @property
    def images(self) -> dict[str, str]:
        """The image of the container."""
        return {self.container: self.state.image_id}

    def before_psql(self, given: t.Container[str]) -> list[str]:
        """See :meth:`Runtime.before_psql`."""
        return process.unsetting((pair.partition("=")[0] for pair in self.seen["Config"].get("Env") or []), given)

    @contextlib.contextmanager
    def converse(
        self,
        argv: t.Sequence[str],
        *,
        env: t.Mapping[str, str] | None = None,
        act: bool = False,
        purpose: str = "look",
    ) -> t.Iterator[process.Conversation]:
        """See :meth:`Runtime.converse`."""
        if act or not self.state.steady:
            with self._one_off(argv, env or {}, purpose) as conversation:
                yield conversation
            return
        self.where = f"container {self.container}"
        words = self.docker.exec_argv(self.container, argv, env=env or {}, workdir=self._workdir)
        with process.Conversation(words, env=env) as conversation:
            yield conversation

    @contextlib.contextmanager
    def _one_off(
        self, argv: t.Sequence[str], env: t.Mapping[str, str], purpose: str
    ) -> t.Iterator[process.Conversation]:
        name = one_off_name(self._run_id, purpose)
        self.where = f"one-off container {name} (image and configuration of {self.container})"
        task = one_off_like(self.docker, self.seen, name=name, argv=argv, run_id=self._run_id)
        options = list(task.options) + (["--workdir", self._workdir] if self._workdir else [])
        task = dataclasses.replace(task, env={**task.env, **env}, options=options)
        try:
            with process.Conversation(self.docker.create(task)) as conversation:
                yield conversation
        finally:
            self.docker.remove(name)


def one_off_name(run_id: str, purpose: str) -> str:
    """The name of a one-off container: the same for the same run and purpose, so that it can be found and ended."""
    return f"alembic-recovery-{run_id}-{purpose}"


def read_environment_file(path: str) -> dict[str, str]:
    """Variables from a file of `NAME=value` lines: comments, blank lines, and quotes as systemd reads them.

    :raises StackError: the file cannot be read, or a line is no assignment (its number is given, never its text).
    """
    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise StackError(f"The environment file {path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        name, equals, value = text.partition("=")
        name = name[len("export ") :] if name.startswith("export ") else name
        if not equals or not name.strip().isidentifier():
            raise StackError(f"{path}, line {number}: expected NAME=value.")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def collect(
    runtime: Runtime,
    argv: t.Sequence[str],
    *,
    stdin: str = "",
    env: t.Mapping[str, str] | None = None,
    timeout: float = 120.0,
    act: bool = False,
    purpose: str = "look",
) -> process.Completed:
    """Run a program in a runtime to its end, whatever its exit code.

    :param timeout: seconds without a line of output, and for its end.
    :raises RecoveryError: it could not be started, or ran out of time.
    """
    lines: list[str] = []
    with runtime.converse(argv, env=env, act=act, purpose=purpose) as conversation:
        conversation.send(stdin)
        conversation.close_stdin()
        while True:
            line = conversation.read_line(timeout)
            if line is None:
                break
            lines.append(line)
        rc = conversation.wait(timeout)
    return process.Completed(list(argv), rc, "\n".join(lines), conversation.said, 0.0)
