"""Whom PostgreSQL is asked as, and what its refusals and psql's mean to a person."""

from __future__ import annotations

import dataclasses
import re

from ansible.module_utils.alembic_recovery.errors import DatabaseError

_SQLSTATE = re.compile(r"^(?:psql:[^\n]*?)?(ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}): (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Login:
    """Whom to ask as, and where: `host` is a host name or the directory of a Unix socket, or nothing.

    `session` is the `application_name` by which others, and a later run, can tell whose session it is.
    """

    database: str
    user: str
    host: str | None = None
    port: int | None = None
    password: str | None = None
    session: str = "alembic-recovery"

    def options(self) -> list[str]:
        """The connection options of PostgreSQL's programs; the password is not among them."""
        # As a connection string, for a name with `=` in it would be taken for one.
        name = self.database.replace("\\", "\\\\").replace("'", "\\'")
        options = [f"--dbname=dbname='{name}'", f"--username={self.user}"]
        options += [f"--host={self.host}"] if self.host else []
        return options + ([f"--port={self.port}"] if self.port else [])

    def secrets(self) -> dict[str, str]:
        """What belongs into the environment of PostgreSQL's programs, and nowhere else."""
        return {"PGPASSWORD": self.password} if self.password else {}


def refused(said: str, login: Login, where: str) -> DatabaseError:
    """What psql wrote before it ended, as an exception; its verbose form starts with the SQLSTATE."""
    match = _SQLSTATE.search(said)
    if match is not None and match.group(1) == "ERROR":
        return DatabaseError(f"PostgreSQL refused a question: {match.group(3)}", sqlstate=match.group(2))
    return no_connection(said, login, where)


def no_connection(said: str, login: Login, where: str) -> DatabaseError:
    """The exception for a connection that was not made, with what to look at next."""
    text = " ".join(said.split()) or "psql ended without a word"
    text += "" if text.endswith((".", "?", "!")) else "."
    hint = "Is the server running, and are the names in recovery_stack.database right?"
    if "does not exist" in text and "database" in text:
        hint = f"Correct recovery_stack.database.name (psql --list --username {login.user} lists those that are there)."
    elif "role" in text and "does not exist" in text:
        hint = "Correct recovery_stack.database.user."
    elif "password" in text:
        hint = (
            "Is recovery_stack.database.user right? Set recovery_stack.database.password (from Ansible Vault), or "
            "correct it."
        )
    elif "command not found" in text or "executable file not found" in text:
        hint = "The container has no psql: is it the database's container? Correct recovery_stack.database.container."
    return DatabaseError(f"No connection to database {login.database} as {login.user} in {where}: {text} {hint}")
