"""Ports for servers that are started in a moment."""

from __future__ import annotations

import contextlib
import random
import socket

# Linux gives away those from 32768 on (net.ipv4.ip_local_port_range): to whoever binds none, and to connections.
# Tests that run side by side have those below, each worker its own (tests/conftest.py): the port of a server that is
# down for a moment looks free.
_ports = range(30_000, 32_000)


def choose_from(ports: range) -> None:
    """From which ports this process takes."""
    global _ports  # noqa: PLW0603 (one for the process, as the worker that it is)
    _ports = ports


def free_port() -> int:
    """A port of the loopback address that nobody listens on, and that nobody gets by chance until it is bound.

    Returns:
        The port.
    """
    while True:
        port = random.choice(_ports)  # noqa: S311 (no secret)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
