"""What the replica's tests share: the fixtures that it offers to everybody."""

from __future__ import annotations

from replica.fixtures import broken_database, databases, embedded_postgres

__all__ = ["broken_database", "databases", "embedded_postgres"]
