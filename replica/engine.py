"""What is on a Docker Engine that others use at the same time."""

from __future__ import annotations

from typing import Any

import docker
from docker.models.containers import Container


def containers(client: docker.DockerClient, **filters: Any) -> list[Container]:
    """Return all containers, running or not, that match filters.

    The SDK (7.2) lists identifiers first and asks about each one afterwards; without `ignore_removed` a container
    that goes between the two, of whoever, makes the call fail.

    Args:
        client: The engine.
        filters: Those of `docker ps`: `label`, `name`, `status`.

    Returns:
        Those that were still there when they were asked about.
    """
    found: list[Container] = client.containers.list(all=True, filters=filters, ignore_removed=True)
    return found
