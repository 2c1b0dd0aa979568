"""The command line: ``python -m replica host up --dir DIR``, ``python -m replica docker up`` and the like."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from replica import docker, host, server
from replica.errors import ReplicaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: By default the process's own.

    Returns:
        0, or 1 if it could not be done.
    """
    parser = argparse.ArgumentParser(prog="python -m replica", description="A small production to break and repair.")
    forms = parser.add_subparsers(dest="form", required=True)
    host.add_commands(forms.add_parser("host", help="processes on this machine with an embedded PostgreSQL"))
    docker.add_commands(forms.add_parser("docker", help="containers named as in production"))
    server.add_commands(forms.add_parser("server", help="a server with ssh for the containers"))
    parsed = parser.parse_args(arguments)
    try:
        sys.stdout.write(_run(parsed))
    except ReplicaError as error:
        sys.stderr.write(f"replica: {error}\n")
        return 1
    return 0


def _run(parsed: argparse.Namespace) -> str:
    """What the chosen form has to say."""
    if parsed.form == "host":
        return host.run(parsed)
    if parsed.form == "docker":
        return docker.run(parsed, _report)
    return server.run(parsed, _report)


def _report(line: str) -> None:
    """Tell at once what takes long."""
    sys.stderr.write(f"replica: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
