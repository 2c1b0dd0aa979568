"""The application's files, its migrations, and the states a database of it can be in."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from replica import seed
from replica.errors import checked

SOURCE = Path(__file__).parent / "song_api"
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

BASE = "7a1c4e90d2b3"
BROKEN = "0f864573b58a"
ENCODED = "234ea0f4b6c3"
HEAD = "d4641a241b98"

DATABASE = "aiproxy"
USER = "aiuser"


class State(enum.StrEnum):
    """What a database of the application looks like.

    ``untouched`` and ``rewritten`` are the two variants of the broken state: version 0f864573b58a, and the
    rows of lyric_parsing_rules as they were, or already rewritten by a migration that then lost the rest of
    its work.
    """

    UNTOUCHED = "untouched"
    REWRITTEN = "rewritten"
    HEALTHY = "healthy"


def copy_to(directory: Path) -> Path:
    """Deploy the application's files.

    Args:
        directory: Where to; must not exist yet.

    Returns:
        The same directory, with alembic.ini in it.
    """
    shutil.copytree(SOURCE, directory, ignore=SKIPPED)
    return directory


def database_url(*, user: str, password: str, database: str, host: str = "", socket_dir: Path | None = None) -> str:
    """The application's DATABASE_URL.

    Args:
        user: Role that logs in.
        password: Its password; any characters.
        database: Name of the database.
        host: ``name:port`` for TCP.
        socket_dir: Directory of the Unix socket, instead of a host.

    Returns:
        A URL for SQLAlchemy with psycopg 3.
    """
    query = "" if socket_dir is None else f"?host={quote(str(socket_dir), safe='/')}"
    return f"postgresql+psycopg://{quote(user, safe='')}:{quote(password, safe='')}@{host}/{database}{query}"


def environment(url: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of an application's process on this machine.

    Args:
        url: DATABASE_URL.
        extra: Further variables.

    Returns:
        A whole environment: this one's, without what would change how Python or libpq behave, and the
        interpreter's own directory first on PATH.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTHON", "ALEMBIC"))}
    bin_dir = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([bin_dir, kept.get("PATH", os.defpath)])
    kept["PYTHONUNBUFFERED"] = "1"
    kept["DATABASE_URL"] = url
    kept.update(extra or {})
    return kept


def run_alembic(directory: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The ordinary ``alembic`` command, as somebody would type it in the application's directory.

    Args:
        directory: A deployed application.
        url: Its DATABASE_URL.
        arguments: For example ``upgrade``, ``head``.

    Returns:
        The finished command, whatever it ended with, with both outputs as text.
    """
    alembic = Path(sys.executable).parent / "alembic"
    return subprocess.run(
        [str(alembic), *arguments],
        cwd=directory,
        env=environment(url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def bring_to(
    state: State,
    alembic: Callable[..., subprocess.CompletedProcess[str]],
    load: Callable[[Iterable[bytes]], None],
    data: seed.Size,
) -> None:
    """Build the application's schema and data in an empty database.

    Args:
        state: What it is to look like.
        alembic: Runs Alembic with the arguments given, in the application's own surroundings.
        load: Feeds a script to psql.
        data: How much data.

    Raises:
        ReplicaError: A command failed.
    """
    checked(alembic("upgrade", BROKEN), "build the schema")
    load(seed.script(data))
    if state is State.REWRITTEN:
        # Ends with 0 and moves nothing but the rows: that is the incident.
        checked(alembic("upgrade", "head"), "rewrite the rows")
    elif state is State.HEALTHY:
        # One command cannot do it: the revision's own commit loses the version. So: rows, version, the rest.
        checked(alembic("upgrade", ENCODED), "rewrite the rows")
        checked(alembic("stamp", ENCODED), "note the version")
        checked(alembic("upgrade", "head"), "apply the last revision")
