"""The server that a replica in containers runs on, to be reached as production is: over ssh, by a user who is not root.

It is a container itself, with Python, sudo and a Docker client, and speaks with the engine of this machine. No port is
opened for it: ssh's own connection goes through ``docker exec``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import docker.errors
from docker.models.containers import Container

from replica import images
from replica.docker import PREFIX, DockerReplica
from replica.engine import containers
from replica.errors import ReplicaError, checked
from replica.host import dump_inventory

OWNER = "org.alembic-recovery.server"
HOSTNAME = "production-server"
SOCKET = "/var/run/docker.sock"
CLIENT = "/usr/local/libexec/docker"
FILES = ("key", "key.pub", "known_hosts", "inventory.yml")
#: Who can log in: one becomes root by sudo, the other is in the group that may use the engine.
USERS = ("deploy", "engineer")


class Server:
    """A server for one replica.

    Args:
        replica: The replica in containers; it has to be there before the server, and may go after it only.
        directory: Where the key and the inventory are kept on this machine.
    """

    def __init__(self, replica: DockerReplica, *, directory: Path | str | None = None) -> None:
        self.replica = replica
        self.directory = Path(directory or images.CACHE / "replica-server" / replica.prefix).resolve()

    @property
    def name(self) -> str:
        """The container's name, which is what ssh is told."""
        return f"{self.replica.prefix}-server"

    @property
    def volume(self) -> str:
        """The name of the volume for backups."""
        return f"{self.name}-backups"

    @property
    def inventory_file(self) -> Path:
        """The inventory that ``up`` leaves."""
        return self.directory / "inventory.yml"

    @property
    def container(self) -> Container:
        """The container.

        Raises:
            ReplicaError: There is none.
        """
        try:
            return self.replica.client.containers.get(self.name)
        except docker.errors.NotFound as error:
            raise ReplicaError(
                f"there is no container {self.name}; run: server up --prefix {self.replica.prefix}"
            ) from error

    @property
    def backups(self) -> str:
        """The directory for backups: one path on the server and for the engine, which mounts it into containers."""
        path: str = self.replica.client.volumes.get(self.volume).attrs["Mountpoint"]
        return path

    def up(self, *, report: images.Report = lambda _: None) -> Server:
        """Make the server and start it.

        Args:
            report: Gets a line for each step that takes long.

        Returns:
            This server.

        Raises:
            ReplicaError: Something of its name is there already, or it did not start; nothing is left then.
        """
        client = self.replica.client
        with contextlib.suppress(docker.errors.NotFound):
            raise ReplicaError(
                f"there is a container {client.containers.get(self.name).name} already; run: server down"
            )
        _need_ssh()
        image = images.server(client, report)
        self.down()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._start(image)
            self._prepare()
            self._make_keys()
            self.inventory_file.write_text(dump_inventory(self.inventory()))
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Remove container, backups and files; nothing happens if there is no such server."""
        client, mine = self.replica.client, {"label": f"{OWNER}={self.replica.prefix}"}
        for container in containers(client, **mine):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)
        for volume in client.volumes.list(filters=mine):
            with contextlib.suppress(docker.errors.NotFound):
                volume.remove()
        for name in FILES:
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or something else in it
            self.directory.rmdir()

    def execute(self, *command: str, user: str = "root") -> str:
        """Run a command on the server.

        Args:
            command: Program and arguments.
            user: As whom.

        Returns:
            What it wrote to its standard output.

        Raises:
            ReplicaError: It did not end with 0.
        """
        code, (out, err) = self.container.exec_run(list(command), user=user, demux=True)
        done = subprocess.CompletedProcess(command, code, (out or b"").decode(), (err or b"").decode())
        return checked(done, f"run a command on {self.name}").stdout

    def inventory(self, user: str = "deploy") -> dict[str, Any]:
        """An inventory with the server as ``production-server`` in group ``prod``.

        Args:
            user: Who logs in: ``deploy``, who becomes root, or ``engineer``, who does not.

        Returns:
            What an inventory file in YAML holds.
        """
        variables = dict(self.replica.inventory()["prod"]["hosts"][HOSTNAME])
        del variables["ansible_connection"]
        options = (
            # %n is the name that ssh was given.
            "ProxyCommand=docker exec -i %n /usr/sbin/sshd -i",
            f'UserKnownHostsFile="{self.directory / "known_hosts"}"',
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
        )
        variables.update(
            ansible_host=self.name,
            ansible_user=user,
            ansible_become=user == "deploy",
            ansible_python_interpreter="/usr/bin/python3",
            ansible_ssh_private_key_file=str(self.directory / "key"),
            ansible_ssh_common_args=" ".join(f"-o {shlex.quote(option)}" for option in options),
            recovery_directory=self.backups,
        )
        return {"prod": {"hosts": {HOSTNAME: variables}}}

    def _start(self, image: str) -> None:
        """The container, with the engine's socket and a volume that has the same path inside and outside of it."""
        client, labels = self.replica.client, {OWNER: self.replica.prefix}
        client.volumes.create(self.volume, labels=labels)
        socket = os.environ.get("DOCKER_HOST", "").removeprefix("unix://")
        mounts = {
            socket if socket.startswith("/") else SOCKET: {"bind": SOCKET, "mode": "rw"},
            self.volume: {"bind": self.backups, "mode": "rw"},
        }
        # This machine's own client fits its engine, if it runs in there; the packaged one may be too old for it.
        own = shutil.which("docker")
        if own is not None:
            mounts[os.path.realpath(own)] = {"bind": CLIENT, "mode": "ro"}
        client.containers.run(
            image,
            name=self.name,
            hostname=HOSTNAME,
            extra_hosts={HOSTNAME: "127.0.0.1"},
            network_mode="none",
            labels=labels,
            volumes=mounts,
            init=True,
            detach=True,
        )

    def _prepare(self) -> None:
        """What an administrator has done before: host keys, a group for the engine, a place for backups."""
        self.execute("mkdir", "-p", "/run/sshd")
        self.execute("ssh-keygen", "-q", "-A")
        group = self.execute("stat", "-c", "%g", SOCKET).strip()
        self.execute("groupadd", "--non-unique", "--gid", group, "engine")
        self.execute("usermod", "--append", "--groups", "engine", "engineer")
        self.execute("chmod", "0711", self.backups)
        if self.container.exec_run([CLIENT, "version"])[0] == 0:
            self.execute("ln", "-s", CLIENT, "/usr/local/bin/docker")

    def _make_keys(self) -> None:
        """The key to log in with, and the server's own key as the only one to be believed."""
        key = self.directory / "key"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "replica", "-f", str(key)]
        checked(subprocess.run(command, capture_output=True, text=True, check=False), "make a key")
        public = key.with_suffix(".pub").read_text().strip()
        script = 'printf "%s\\n" "$1" >/etc/ssh/authorized_keys'
        self.execute("sh", "-c", script, "sh", public)
        host_key = self.execute("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
        (self.directory / "known_hosts").write_text(f"{self.name} {' '.join(host_key)}\n")


def _need_ssh() -> None:
    """Make sure of ssh and ssh-keygen on this machine."""
    if shutil.which("ssh") and shutil.which("ssh-keygen"):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ReplicaError("there is no ssh on this machine; run: apt-get install openssh-client")
    command = ["apt-get", "install", "-qy", "--no-install-recommends", "openssh-client"]
    checked(
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False), "install ssh"
    )


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Describe the commands of the server.

    Args:
        parser: Gets a sub-command each for up and down.
    """
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "make a server for a replica that runs"), ("down", "remove it, with all backups")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--prefix", default=PREFIX, help=f"the Compose project's name ({PREFIX})")
        command.add_argument("--dir", type=Path, help="where the key and the inventory are kept")


def run(arguments: argparse.Namespace, report: images.Report) -> str:
    """Do what the command line says.

    Args:
        arguments: Parsed by a parser that add_commands() has described.
        report: Gets a line for each step that takes long.

    Returns:
        What to print.

    Raises:
        ReplicaError: It cannot be done.
    """
    server = Server(DockerReplica(arguments.prefix), directory=arguments.dir)
    if arguments.command == "up":
        server.up(report=report)
        return f"{server.name} runs; its inventory is {server.inventory_file}\n"
    server.down()
    return f"nothing is left of {server.name}\n"
