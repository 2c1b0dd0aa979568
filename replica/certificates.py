"""A certificate authority of the replica's own, and a certificate of its server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """Where the files are.

    Attributes:
        authority: What a client needs to check the server.
        chain: The server's certificate.
        key: The server's private key.
    """

    authority: Path
    chain: Path
    key: Path


def write_private(path: Path, content: bytes) -> Path:
    """Write a file that nobody else can read, not even while it is written.

    Args:
        path: The file; replaced if it is there.
        content: What goes into it.

    Returns:
        The same path.
    """
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return path


def make(directory: Path, *names: str) -> Certificates:
    """Make an authority and a certificate.

    Args:
        directory: Where the files go; must exist.
        names: Host names and addresses for which the certificate is good.

    Returns:
        Where the files are.
    """
    authority = trustme.CA(organization_name="Replica")
    server = authority.issue_cert(*names)
    files = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    files.authority.write_bytes(authority.cert_pem.bytes())
    files.chain.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    write_private(files.key, server.private_key_pem.bytes())
    return files
