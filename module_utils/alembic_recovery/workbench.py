"""Where PostgreSQL's own programs of the server's version run, with a directory to write into."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
import typing as t

from ansible.module_utils.alembic_recovery import files, postgres, process
from ansible.module_utils.alembic_recovery.docker_cli import DockerCli, OneOff
from ansible.module_utils.alembic_recovery.errors import CommandError, DatabaseError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, Runtime, one_off_name

# Where the directory is inside of a one-off container.
_INSIDE = "/backup"
_SCRATCH = "/tmp"  # noqa: S108 (a tmpfs that lives as long as the container)


class Workbench:
    """Runs PostgreSQL's programs; paths are given as they are on the target and translated where that is needed."""

    def __init__(
        self,
        directory: str,
        wrap: t.Callable[[list[str], t.Mapping[str, str]], list[str]],
        translate: t.Callable[[str], str],
        login: postgres.Login,
    ) -> None:
        self.directory = directory
        self.login = login
        self._wrap = wrap
        self._translate = translate

    def start(self, program: str, *options: str, connect: bool = True) -> process.Conversation:
        """Start a program; use the result as a context manager.

        :param connect: give it the connection's options and password.
        """
        env = {"PGAPPNAME": self.login.session, "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C"}
        words = [program, *options]
        if connect:
            env.update(self.login.secrets())
            words += [*self.login.options(), "--no-password"]
        return process.Conversation(self._wrap(words, env), env=env)

    def read(self, program: str, *options: str, timeout: float) -> process.Source:
        """Start a program that needs no connection, to read what it writes; use the result as a context manager.

        :param timeout: seconds, then it is killed.
        """
        env = {"LC_ALL": "C"}
        return process.Source(self._wrap([program, *options], env), env=env, timeout=timeout)

    def run(self, program: str, *options: str, timeout: float, connect: bool = True) -> process.Completed:
        """Run a program to its end, whatever its exit code.

        :param timeout: seconds.
        :raises CommandError: it did not end in time.
        """
        with self.start(program, *options, connect=connect) as conversation:
            return finish(conversation, timeout)

    def inside(self, path: str) -> str:
        """A path in the directory, as the programs see it."""
        return self._translate(path)


def finish(conversation: process.Conversation, timeout: float) -> process.Completed:
    """Wait for the end of a program that says little on its standard output.

    :raises CommandError: it did not end within `timeout` seconds.
    """
    conversation.close_stdin()
    lines: list[str] = []
    while True:
        line = conversation.read_line(timeout)
        if line is None:
            break
        lines.append(line)
    rc = conversation.wait(timeout)
    return process.Completed(conversation.argv, rc, "\n".join(lines), conversation.said, 0.0)


def check_programs(runtime: Runtime, bin_dir: str | None) -> None:
    """Look whether the programs are there; a container has those of its image.

    :raises DatabaseError: one is not.
    """
    if not isinstance(runtime, DockerRuntime):
        for name in ("pg_dump", "pg_restore", "pg_dumpall"):
            postgres.find_program(name, bin_dir)


@contextlib.contextmanager
def open_workbench(
    runtime: Runtime,
    login: postgres.Login,
    directory: str,
    *,
    bin_dir: str | None,
    run_id: str,
    purpose: str = "backup",
    writable: bool = True,
) -> t.Iterator[Workbench]:
    """A workbench beside the server.

    On the host: its programs. In Docker: a named one-off container of the server's own image, in its network, that can
    do nothing but reach the server and write into the directory; it ends with this process, whatever happens to it.

    :param purpose: one word for the name of the container.
    :param writable: whether it may write into the directory.
    :raises RecoveryError: the programs are not there, or the server cannot be reached with them.
    """
    if isinstance(runtime, DockerRuntime):
        with _container_workbench(runtime, login, directory, one_off_name(run_id, purpose), run_id, writable) as bench:
            yield bench
        return

    def wrap(words: list[str], _env: t.Mapping[str, str]) -> list[str]:
        return [postgres.find_program(words[0], bin_dir), *words[1:]]

    yield Workbench(directory, wrap, str, login)


@contextlib.contextmanager
def _container_workbench(
    runtime: DockerRuntime, login: postgres.Login, directory: str, name: str, run_id: str, writable: bool
) -> t.Iterator[Workbench]:
    docker = runtime.docker
    mount = f"{directory}:{_INSIDE}{'' if writable else ':ro'}"
    uid, gid = files.login_owner()
    # `cat` waits on standard input, which is ours: when this process is killed, its end is the end of the container
    # and of every program in it. A killed `docker exec` in the server's container would leave pg_dump running.
    task = OneOff(
        name=name,
        image=runtime.state.image_id,
        argv=["cat"],
        run_id=run_id,
        env={"HOME": _SCRATCH},
        network=f"container:{runtime.seen['Id']}",
        options=[
            "--user", f"{uid}:{gid}", "--volume", mount, "--workdir", _INSIDE,
            "--read-only", "--tmpfs", _SCRATCH, "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--pids-limit", "64",
        ],
    )  # fmt: skip

    def wrap(words: list[str], env: t.Mapping[str, str]) -> list[str]:
        return docker.exec_argv(name, [*runtime.before_psql(env), *words], env=env)

    def translate(path: str) -> str:
        return os.path.join(_INSIDE, os.path.relpath(path, directory))

    try:
        with process.Conversation(docker.create(task)):
            _wait_until_running(docker, name)
            yield Workbench(directory, wrap, translate, _tcp_login(docker, name, runtime, login))
    finally:
        docker.remove(name)


def _wait_until_running(docker: DockerCli, name: str) -> None:
    """`docker start --attach` gives no sign when the container has started: try until a program runs in it."""
    deadline = time.monotonic() + 30
    while process.run(docker.exec_argv(name, ["true"]), expected=None).rc != 0:
        if time.monotonic() > deadline:
            raise CommandError(f"The one-off container {name} did not start within 30 s. Look with: docker logs {name}")
        time.sleep(0.1)


def _tcp_login(docker: DockerCli, name: str, runtime: DockerRuntime, login: postgres.Login) -> postgres.Login:
    """The login over loopback in the server's network: the socket is not in this container.

    The official image trusts loopback; where it does not, the password from the inventory, or the one that the
    server's container itself was given, is used.
    """
    given = dict(pair.split("=", 1) for pair in runtime.seen["Config"].get("Env") or [] if "=" in pair)
    password = login.password or given.get("POSTGRES_PASSWORD")
    tcp = dataclasses.replace(login, host="127.0.0.1", password=password)
    env = {"PGCONNECT_TIMEOUT": "10", **tcp.secrets()}
    probe = ["psql", "--no-psqlrc", "--no-password", "--quiet", *tcp.options(), "--command", "select 1"]
    words = [*runtime.before_psql(env), *probe]
    done = process.run(docker.exec_argv(name, words, env=env), env=env, expected=None)
    if done.rc != 0:
        raise DatabaseError(
            f"{login.user} cannot log in over 127.0.0.1 in the network of {runtime.container}, where pg_dump would "
            f"run: {' '.join(done.stderr.split())} Set recovery_stack.database.password (from Ansible Vault)."
        )
    return tcp


def first_error(done: process.Completed) -> str:
    """What a program of PostgreSQL said first, without the data and the statement that it adds in further lines."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wanted = [line for line in lines if re.search(r"\b(error|fatal|ERROR|FATAL)\b", line)] or lines
    said = wanted[0][:500].rstrip(".") if wanted else f"exit code {done.rc}, without a word"
    # The value that it does not like is somebody's.
    return re.sub(r'(invalid input syntax for type [^:]+|malformed [^:"]+|out of range): ".*', r'\1: "…"', said)
