"""Where a command runs: in a container, in a one-off container made like it, or as a process on the target.

Exec to look, one-off containers to act: a killed `docker exec` leaves its process running in the container, a killed
one-off leaves nothing.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import pwd
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
        user: str | None = None,
    ) -> None:
        """:param environment_file: `NAME=value` lines, as systemd reads them.
        :param user: whose processes they are, if not those of whoever runs the module.

        :raises StackError: the working directory or the file cannot be read, or there is no such user.
        """
        if workdir and not os.path.isdir(workdir):
            raise StackError(f"The working directory {workdir} is not there. Correct app.workdir in recovery_stack.")
        self._workdir = workdir
        self._identity = _identity(user) if user else None
        at_home = {"HOME": self._identity.pw_dir, "USER": user, "LOGNAME": user} if user and self._identity else {}
        from_file = read_environment_file(environment_file) if environment_file else {}
        self._env = {**at_home, **from_file, **(env or {})}

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
        whole = {**self._env, **(env or {})}
        with process.Conversation(argv, env=whole, cwd=self._workdir, identity=self._identity) as conversation:
            yield conversation


class DockerRuntime(Runtime):
    """A container, running or not: in it to look while it is steady, else in a one-off container made like it."""

    def __init__(
        self,
        docker: DockerCli,
        container: str,
        *,
        run_id: str,
        workdir: str | None = None,
        network: str | None = None,
        image: str | None = None,
        env: t.Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """:param network: work in isolation: always in a one-off container, which is in this network alone.
        :param image: other code in the container's place: always in a one-off container, of this image.
        :param env: variables on top of the container's own.
        :param user: whose processes they are, if not those of the container's own user.

        :raises DockerError: no such container or image, or no Engine.
        """
        self.docker = docker
        self.container = container
        self.seen = docker.inspect(container)
        self.state = container_state(self.seen)
        self._run_id = run_id
        self._workdir = workdir
        self._network = network
        self._image = docker.image_id(image) if image else None
        self._env = dict(env or {})
        self._user = user
        self.where = f"container {container}"

    @property
    def images(self) -> dict[str, str]:
        """The image of the container, or the one that stands in for it."""
        return {self.container: self._image or self.state.image_id}

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
        whole = {**self._env, **(env or {})}
        if act or self._network or self._image or not self.state.steady:
            with self._one_off(argv, whole, purpose) as conversation:
                yield conversation
            return
        self.where = f"container {self.container}"
        words = self.docker.exec_argv(self.container, argv, env=whole, workdir=self._workdir, user=self._user)
        with process.Conversation(words, env=whole) as conversation:
            yield conversation

    @contextlib.contextmanager
    def _one_off(
        self, argv: t.Sequence[str], env: t.Mapping[str, str], purpose: str
    ) -> t.Iterator[process.Conversation]:
        name = one_off_name(self._run_id, purpose)
        image = f"image {self._image[:19]}, configuration" if self._image else "image and configuration"
        self.where = f"one-off container {name} ({image} of {self.container})"
        task = one_off_like(
            self.docker, self.seen, name=name, argv=argv, run_id=self._run_id, image=self._image, network=self._network
        )
        options = list(task.options) + (["--workdir", self._workdir] if self._workdir else [])
        options += ["--user", self._user] if self._user else []
        task = dataclasses.replace(task, env={**task.env, **env}, options=options)
        try:
            with process.Conversation(self.docker.create(task)) as conversation:
                yield conversation
        finally:
            self.docker.remove(name)


def _identity(user: str) -> pwd.struct_passwd:
    """The operating system's entry for a user whose processes can be started.

    :raises StackError: there is no such user, or only root may start its processes.
    """
    try:
        found = pwd.getpwnam(user)
    except KeyError as error:
        raise StackError(
            f"This host has no user {user}. Correct app.system_user in recovery_stack: the user that the application "
            "runs as."
        ) from error
    if os.geteuid() not in (0, found.pw_uid):
        raise StackError(
            f"Only root can start processes of user {user}. Log in as that user, or set ansible_become: true."
        )
    return found


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
