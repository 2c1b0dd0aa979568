"""What the engine and this machine are asked to start while a run is watched."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import docker
import docker.errors

from replica.docker import DockerReplica
from tests.docker.observation import ONE_OFF_LABEL, places
from tests.support.command_lines import Watch


@dataclass
class Started:
    """What was seen of a run.

    Attributes:
        one_offs: What `docker inspect` said of each container that the run has made, while it ran, in order.
        execs: What the engine knows of each program started in a running container, health checks included.
        secrets: Command lines of this machine's processes with the marker in them.
    """

    one_offs: list[dict[str, Any]] = field(default_factory=list)
    execs: list[dict[str, Any]] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    def all_of(self, purpose: str, *, rehearsed: bool = False) -> list[dict[str, Any]]:
        """Those that were made for a purpose, such as ``look``, beside production or in the rehearsal's network."""
        return [
            seen
            for seen in self.one_offs
            if seen["Name"].endswith(f"-{purpose}")
            and seen["HostConfig"]["NetworkMode"].endswith("-rehearsal") is rehearsed
        ]

    def one_off(self, purpose: str, *, rehearsed: bool = False) -> dict[str, Any]:
        """The only one of them."""
        (found,) = self.all_of(purpose, rehearsed=rehearsed)
        return found

    def programs(self, container: str) -> list[list[str]]:
        """The command lines that were started in a running container (its id)."""
        return [
            [seen["ProcessConfig"]["entrypoint"], *(seen["ProcessConfig"]["arguments"] or [])]
            for seen in self.execs
            if seen["ContainerID"] == container
        ]


@contextlib.contextmanager
def watch(replica: DockerReplica, marker: str) -> Iterator[Started]:
    """Watch until the context ends.

    Args:
        replica: Whose containers are watched, and the one-off containers beside them.
        marker: A part of each secret, to be looked for in command lines.
    """
    client = docker.from_env()
    started = Started()
    events = client.events(decode=True, filters={"type": "container"})
    with ThreadPoolExecutor(1) as asking:
        listener = threading.Thread(target=_listen, args=(client, events, started, places(replica), asking))
        listener.start()
        try:
            with Watch(marker, pause=0.02) as lines:
                started.secrets = lines.found
                yield started
        finally:
            time.sleep(3)  # what the Engine has told until then; it tells with a delay
            events.close()
            listener.join(timeout=120)
            assert not listener.is_alive()
    client.close()


def _listen(client: docker.DockerClient, events: Any, started: Started, beside: set[str], asking: Executor) -> None:
    """Take down each container and each program at its start.

    Programs are asked for by somebody else, one after the other: there are many, and a container that is asked for too
    late is gone.

    Which runs are this replica's is known from their first container, which is beside it; the rehearsal's are not.
    """
    ours, runs = {place.removeprefix("container:") for place in beside}, set()
    known: dict[str, dict[str, Any]] = {}
    answers: list[Future[dict[str, Any]]] = []
    for event in events:
        attributes, action, identity = event["Actor"]["Attributes"], event["Action"], event["Actor"]["ID"]
        one_off = ONE_OFF_LABEL in attributes
        if one_off and action in ("create", "start"):
            # Some live for a second, and on a full machine we are late: then what it was at first has to do.
            with contextlib.suppress(docker.errors.NotFound):
                known[identity] = client.api.inspect_container(identity)
        with contextlib.suppress(docker.errors.NotFound):
            if one_off and action == "start" and identity in known:
                seen = known[identity]
                if seen["HostConfig"]["NetworkMode"] in beside:
                    runs.add(attributes[ONE_OFF_LABEL])
                if attributes[ONE_OFF_LABEL] in runs:
                    started.one_offs.append(seen)
                    ours.add(identity)
            elif action.startswith("exec_create") and identity in ours:
                answers.append(asking.submit(_program, identity, attributes["execID"], action))
    started.execs = [answer.result() for answer in answers]


def _program(container: str, exec_id: str, action: str) -> dict[str, Any]:
    """What the engine knows of a program; of one that is gone with its container, what the event has told."""
    with contextlib.closing(docker.from_env()) as client:
        try:
            seen: dict[str, Any] = client.api.exec_inspect(exec_id)
        except docker.errors.NotFound:
            program, *arguments = action.partition(": ")[2].split()
            process = {"entrypoint": program, "arguments": arguments, "tty": None}
            return {"ContainerID": container, "ProcessConfig": process}
        return seen
