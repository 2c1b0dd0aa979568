"""Ports for servers that are started in a moment."""

from __future__ import annotations

import contextlib
import random
import socket

# Linux gives away those from 32768 on (net.ipv4.ip_local_port_range): to whoever binds none, and to connections.
_NOT_GIVEN_AWAY = range(20_000, 32_000)


def free_port() -> int:
    """A port of the loopback address that nobody listens on, and that nobody gets by chance until it is bound.

    Returns:
        The port.
    """
    while True:
        port = random.choice(_NOT_GIVEN_AWAY)  # noqa: S311 (no secret)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
