"""The target's `docker` command line: containers looked at, spoken with, and made for one task.

The command line and not the Engine's API, because it follows Docker contexts (Colima, Docker Desktop, rootless) and
because nothing has to be installed on a target for it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import shutil
import time
import typing as t

from ansible.module_utils.alembic_recovery import process
from ansible.module_utils.alembic_recovery.errors import CommandError, DockerError

# Where `docker` is, but a login without a terminal does not look (docker/for-mac#4382, docker/cli#2115).
_USUAL_PLACES = (
    "/usr/bin",
    "/usr/local/bin",
    "/opt/homebrew/bin",
    "~/.docker/bin",
    "~/.orbstack/bin",
    "/Applications/Docker.app/Contents/Resources/bin",
    "/snap/bin",
)
# Marks every container that this product makes, so that what a killed run left behind can be found by label.
RUN_LABEL = "alembic-recovery.run"
# For so many seconds the Engine's own removal of a container is waited for.
_REMOVAL_S = 30.0
# The docker client reads these itself: a container's own value of them must not reach it.
_CLIENT_READS = re.compile(r"^(HOME|PATH|DOCKER_.*|BUILDKIT_.*|LD_.*|(HTTPS?|NO|FTP|ALL)_PROXY|SSL_.*)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ContainerState:
    """What `docker inspect` says of a container's life: times in UTC, `health` empty without a health check."""

    name: str
    running: bool
    restarting: bool
    restart_count: int
    health: str
    started_at: datetime.datetime
    image_id: str
    exit_code: int

    @property
    def steady(self) -> bool:
        """Whether a process can be started in it and will not be torn away by the next restart.

        A container that restarts in a loop is "running" for a moment each time; only one that has never been
        restarted by its policy, or has stayed up for a minute since, is trusted.
        """
        if not self.running or self.restarting:
            return False
        age = (datetime.datetime.now(datetime.timezone.utc) - self.started_at).total_seconds()
        return self.restart_count == 0 or age > 60


@dataclasses.dataclass(frozen=True)
class OneOff:
    """A container made for one task: what `docker create` is told, all by argument list.

    `env` is given to the Engine over standard input, so that no secret is in a process list or a file.
    """

    name: str
    image: str
    argv: t.Sequence[str]
    run_id: str
    env: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    network: str = "none"
    more_networks: t.Sequence[str] = ()
    options: t.Sequence[str] = ()


class DockerCli:
    """The `docker` command of the machine that this runs on."""

    def __init__(self, path: str | None = None) -> None:
        """:param path: the command; searched in PATH and in the usual places without it.

        :raises DockerError: there is none.
        """
        if path and shutil.which(path) is None:
            raise DockerError(
                f"{path} cannot be executed on this host: there is no such program, or this user may not. Correct "
                "docker_cli in recovery_stack, or leave it out: then PATH and the usual places are searched."
            )
        self.path = path or find_docker()

    def inspect(self, container: str) -> dict[str, t.Any]:
        """Everything the Engine knows of a container.

        :raises DockerError: no such container, or no Engine.
        """
        done = self._docker("container", "inspect", "--", container, expected=None)
        if done.rc == 0:
            return t.cast("dict[str, t.Any]", json.loads(done.stdout)[0])
        if "no such" in done.stderr.lower():
            raise DockerError(
                f"There is no container named {container}. The Engine has: {self._names()}. "
                "Correct the name in recovery_stack, or look with: docker ps --all",
                container=container,
            )
        raise self._trouble(done)

    def state(self, container: str) -> ContainerState:
        """A container's life in short.

        :raises DockerError: no such container, or no Engine.
        """
        return container_state(self.inspect(container))

    def find_service(self, project: str, service: str) -> str:
        """The name of the one container of a Compose service, by Compose's labels.

        :raises DockerError: there is none, or there are several.
        """
        names = self._docker(
            "container", "ls", "--all", "--format", "{{.Names}}",
            "--filter", f"label=com.docker.compose.project={project}",
            "--filter", f"label=com.docker.compose.service={service}",
            "--filter", "label=com.docker.compose.oneoff=False",
        ).stdout.split()  # fmt: skip
        if len(names) == 1:
            return names[0]
        seen = f"{len(names)} containers ({', '.join(names)})" if names else "no container"
        raise DockerError(
            f"Compose project {project}, service {service}: {seen}, expected exactly one. The Engine has: "
            f"{self._names()}. Name the container itself in recovery_stack (container: NAME)."
        )

    def exec_argv(
        self,
        container: str,
        argv: t.Sequence[str],
        *,
        env: t.Iterable[str] = (),
        workdir: str | None = None,
        user: str | None = None,
    ) -> list[str]:
        """The command line that runs `argv` in a running container, with its standard input, without a terminal.

        :param env: *names* of variables; their values come from the client's environment and so stay out of argv.
        """
        words = [self.path, "exec", "--interactive"]
        for name in env:
            words += ["--env", name]
        if workdir:
            words += ["--workdir", workdir]
        if user:
            words += ["--user", user]
        return [*words, container, *argv]

    def create(self, task: OneOff) -> list[str]:
        """Make a one-off container, and return the command line that starts it with its standard streams attached.

        :raises DockerError: the Engine did not make it.
        """
        words = ["create", "--interactive", "--rm", "--name", task.name, "--label", f"{RUN_LABEL}={task.run_id}"]
        # A one-off acts once and under our eyes: nothing starts it again and nothing probes it.
        words += ["--restart", "no", "--no-healthcheck", "--network", task.network, *task.options]
        single = {name: value for name, value in task.env.items() if "\n" not in value}
        spanning = {name: value for name, value in task.env.items() if "\n" in value}
        for name in spanning:
            if _CLIENT_READS.match(name):
                raise DockerError(f"The variable {name} of {task.name} has several lines; docker cannot be given it.")
            words += ["--env", name]
        words += ["--env-file", "/dev/stdin", "--entrypoint", task.argv[0], task.image, *task.argv[1:]]
        env_file = "".join(f"{name}={value}\n" for name, value in single.items())
        done = self._docker(*words, stdin=env_file, env=spanning, expected=None)
        if done.rc != 0:
            raise self._trouble(done)
        for network in task.more_networks:
            self._docker("network", "connect", network, task.name)
        return [self.path, "start", "--attach", "--interactive", task.name]

    def remove(self, container: str) -> None:
        """End and remove a container of our own, by name; none is fine, too.

        One that has just ended may be in the middle of the Engine's own removal (`--rm`): its name is taken, and its
        volumes are in use, until that is over. It is waited for.
        """
        deadline = time.monotonic() + _REMOVAL_S
        while True:
            done = self._docker("rm", "--force", "--volumes", container, expected=None)
            if "already in progress" not in done.stderr or time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def left_by_runs(self) -> dict[str, dict[str, list[str]]]:
        """What runs have made and not removed: `{run id: {container|network|volume: names}}`, by our label.

        :raises DockerError: no Engine.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for kind, name in (("container", "Names"), ("network", "Name"), ("volume", "Name")):
            form = '{{.Label "' + RUN_LABEL + '"}}\t{{.' + name + "}}"
            every = ["--all"] if kind == "container" else []
            listed = self._docker(kind, "ls", *every, "--filter", f"label={RUN_LABEL}", "--format", form).stdout
            for line in listed.splitlines():
                run_id, _tab, thing = line.partition("\t")
                found.setdefault(run_id, {}).setdefault(kind, []).append(thing)
        return found

    def created_before(self, moment: datetime.datetime, ending: str) -> list[str]:
        """The names of our containers that were made before a moment and never started, and whose names end so."""
        form = "{{.Names}}\t{{.CreatedAt}}"
        ours = ["--filter", f"label={RUN_LABEL}", "--filter", "status=created", "--format", form]
        found = []
        for line in self._docker("ps", "--all", *ours).stdout.splitlines():
            name, _tab, made = line.partition("\t")
            # 2025-10-21 03:15:00 +0000 UTC
            try:
                when = datetime.datetime.strptime(" ".join(made.split()[:3]), "%Y-%m-%d %H:%M:%S %z")
            except ValueError:  # of an engine that writes times in another way, nothing is taken for old
                continue
            if name.endswith(ending) and when < moment:
                found.append(name)
        return found

    def remove_left(self, things: t.Mapping[str, t.Sequence[str]]) -> None:
        """Remove what :meth:`left_by_runs` has found of one run; it may be gone meanwhile."""
        for kind in ("container", "network", "volume"):
            for name in things.get(kind, ()):
                if kind == "container":
                    self.remove(name)
                else:
                    self._docker(kind, "rm", name, expected=None)

    def logs_since(self, container: str, since: datetime.datetime, limit_lines: int) -> list[str]:
        """The last log lines of a container since a moment, standard output and error in the order of the Engine."""
        done = self._docker("logs", "--since", since.isoformat(), "--tail", str(limit_lines), container, timeout=60.0)
        return [*done.stdout.splitlines(), *done.stderr.splitlines()]

    def act(self, verb: str, container: str, *, stop_timeout: int) -> None:
        """Start or restart a container (`verb` is ``start`` or ``restart``)."""
        words = [verb] if verb == "start" else [verb, "--time", str(stop_timeout)]
        self._docker(*words, container, timeout=stop_timeout + 120.0)

    def image_name(self, image_id: str) -> str:
        """An image's first tag, or its id where it has none."""
        done = self._docker("image", "inspect", "--format", "{{json .RepoTags}}", image_id, expected=None)
        tags = json.loads(done.stdout) if done.rc == 0 else None
        return tags[0] if tags else image_id

    def images(self, *, label: str | None = None) -> list[tuple[str, str, str]]:
        """The images that are here, the newest first: id, repository and tag; empty where it has none of these.

        :param label: only those with this label, as `name=value`.
        :raises DockerError: no Engine.
        """
        chosen = ["--filter", f"label={label}"] if label else []
        form = "{{.ID}}\t{{.Repository}}\t{{.Tag}}"
        listed = self._docker("image", "ls", "--no-trunc", *chosen, "--format", form).stdout.splitlines()
        rows = [line.replace("<none>", "").split("\t") for line in listed]
        return [(image_id, repository, tag) for image_id, repository, tag in rows]

    def image_environment(self, image_id: str) -> list[str]:
        """The `NAME=value` pairs that an image brings itself."""
        done = self._docker("image", "inspect", "--format", "{{json .Config.Env}}", image_id)
        return json.loads(done.stdout) or []

    def image_id(self, image: str) -> str:
        """The id of an image that is here, by its name or id; nothing is pulled.

        :raises DockerError: it is not here, or no Engine.
        """
        done = self._docker("image", "inspect", "--format", "{{.Id}}", "--", image, expected=None)
        if done.rc == 0:
            return done.stdout.strip()
        if "no such image" in done.stderr.lower():
            raise DockerError(
                f"There is no image {image} on this host. Nothing is pulled in the middle of an incident: docker image "
                "ls shows those that are here; docker pull brings others."
            )
        raise self._trouble(done)

    def _names(self) -> str:
        names = self._docker("container", "ls", "--all", "--format", "{{.Names}}", expected=None).stdout.split()
        return ", ".join(sorted(names)) or "no containers"

    def _docker(
        self,
        *words: str,
        stdin: str | None = None,
        env: t.Mapping[str, str] | None = None,
        timeout: float = 120.0,
        expected: t.Container[int] | None = (0,),
    ) -> process.Completed:
        done = process.run([self.path, *words], stdin=stdin, env=env, timeout=timeout, expected=None)
        if expected is not None and done.rc not in expected:
            raise self._trouble(done)
        return done

    def _trouble(self, done: process.Completed) -> DockerError:
        said = done.stderr.strip()
        low = said.lower()
        if "cannot connect to the docker daemon" in low or "error during connect" in low:
            return DockerError(
                f"The Docker Engine does not answer: {said} Is it running on this host? Look with: docker info"
            )
        if "permission denied" in low and "docker" in low:
            return DockerError(
                f"The login user may not talk to the Docker Engine: {said} Let it be in the group `docker`, or set "
                "ansible_become: true for this host."
            )
        return DockerError(process.failure(done).message, rc=done.rc)


def find_docker() -> str:
    """The path of the `docker` command.

    :raises DockerError: there is none in PATH or in the usual places.
    """
    places = [os.path.expanduser(place) for place in _USUAL_PLACES]
    found = shutil.which("docker") or shutil.which("docker", path=os.pathsep.join(places))
    if found is None:
        raise DockerError(
            f"There is no `docker` command on this host: not in PATH ({os.environ.get('PATH', '')}), not in "
            f"{', '.join(places)}. The stack says runtime: docker. Set docker_cli in recovery_stack to its path."
        )
    return found


def container_state(seen: t.Mapping[str, t.Any]) -> ContainerState:
    """A container's life in short, from `docker inspect`."""
    state = seen["State"]
    return ContainerState(
        name=seen["Name"].lstrip("/"),
        running=bool(state["Running"]),
        restarting=bool(state["Restarting"]),
        restart_count=int(seen.get("RestartCount", 0)),
        health=(state.get("Health") or {}).get("Status", "").replace("none", ""),
        started_at=parse_time(state["StartedAt"]),
        image_id=seen["Image"],
        exit_code=int(state.get("ExitCode", 0)),
    )


def parse_time(text: str) -> datetime.datetime:
    """A Docker time stamp (RFC 3339 with nanoseconds, always UTC there) with microseconds.

    >>> parse_time("2025-10-21T03:04:05.123456789Z").isoformat()
    '2025-10-21T03:04:05.123456+00:00'
    """
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$", text)
    if match is None:
        raise CommandError(f"The Docker Engine gave a time that cannot be read: {text!r}.")
    zone = "+00:00" if match.group(3) == "Z" else match.group(3)
    fraction = (match.group(2) or "0")[:6].ljust(6, "0")
    return datetime.datetime.fromisoformat(f"{match.group(1)}.{fraction}{zone}").astimezone(datetime.timezone.utc)


def one_off_like(
    docker: DockerCli,
    seen: t.Mapping[str, t.Any],
    *,
    name: str,
    argv: t.Sequence[str],
    run_id: str,
    image: str | None = None,
    network: str | None = None,
) -> OneOff:
    """The one-off container that sees what a service's container sees: image, environment, networks, mounts.

    And nothing else of it: no entrypoint or command (they may migrate), no ports, no restart policy, no Compose
    labels, no health check.

    :param seen: `docker inspect` of the service's container, which need not be running.
    :param image: another image than the service's, by its id: other code in the same place.
    :param network: for work in isolation: the only network it is in. It then sees the volumes read-only, and is told
        no addresses or name servers of the service's.
    """
    config, host = seen["Config"], seen["HostConfig"]
    inherited = set(docker.image_environment(seen["Image"]))
    env = dict(pair.split("=", 1) for pair in config.get("Env") or [] if pair not in inherited and "=" in pair)
    options = ["--volumes-from", f"{seen['Id']}:ro" if network else seen["Id"]]
    if config.get("User"):
        options += ["--user", config["User"]]
    if config.get("WorkingDir"):
        options += ["--workdir", config["WorkingDir"]]
    named = (("--add-host", "ExtraHosts"), ("--dns", "Dns"), ("--dns-search", "DnsSearch"), ("--group-add", "GroupAdd"))
    for option, key in named:
        if option == "--group-add" or not network:
            for value in host.get(key) or []:
                options += [option, value]
    image = image or seen["Image"]
    if network:
        return OneOff(name, image, argv, run_id, env, network, (), options)
    mode = host.get("NetworkMode") or "default"
    networks = list((seen.get("NetworkSettings") or {}).get("Networks") or {})
    if mode in ("host", "none") or mode.startswith("container:"):
        networks = []
    elif mode in networks:
        networks.remove(mode)
    return OneOff(name, image, argv, run_id, env, mode, networks, options)
