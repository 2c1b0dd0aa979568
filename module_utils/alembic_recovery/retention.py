"""Which backups may go: decided by manifests, never by file names or file times, and never the newest good ones."""

from __future__ import annotations

import dataclasses
import datetime
import os
import typing as t

from ansible.module_utils.alembic_recovery import dump
from ansible.module_utils.alembic_recovery.errors import StackError

MANIFEST_SUFFIX = ".manifest.json"


@dataclasses.dataclass(frozen=True)
class Kept:
    """One backup: its manifest's path, when it was made, of which database, and why it is not good, if it is not."""

    path: str
    created_at: datetime.datetime
    database: str
    problem: str | None = None


def survey(directory: str, database: str) -> list[Kept]:
    """The backups of a database in a directory, newest first. What has no readable manifest is not looked at.

    :param database: its name; a directory may hold backups of several.
    """
    found: list[Kept] = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        if not name.endswith(MANIFEST_SUFFIX):
            continue
        try:
            manifest = dump.read_manifest(path)
        except StackError:
            continue
        if manifest["database"]["name"] == database:
            found.append(Kept(path, _moment(manifest["created_at"]), database, _problem(path)))
    return sorted(found, key=lambda kept: kept.created_at, reverse=True)


def removable(
    backups: t.Sequence[Kept], *, keep: int, keep_days: int, now: datetime.datetime, protected: t.Container[str] = ()
) -> list[Kept]:
    """Those that may be removed: older than `keep_days`, good, and not among the `keep` newest good ones.

    A backup that is not good is left alone: a person has to look at it.

    :param protected: manifests (paths) that stay in any case.
    """
    good = [kept for kept in backups if kept.problem is None]
    good.sort(key=lambda kept: kept.created_at, reverse=True)
    limit = now - datetime.timedelta(days=keep_days)
    return [kept for kept in good[max(keep, 1) :] if kept.created_at < limit and kept.path not in protected]


def proved(backups: t.Sequence[Kept], *, keep: int) -> list[Kept]:
    """The same backups, the `keep` newest good ones with their hashes compared: the others may go because of them.

    :param backups: as :func:`survey` gives them.
    """
    found: list[Kept] = []
    for kept in backups:
        good = sum(1 for other in found if other.problem is None)
        if kept.problem is None and good < max(keep, 1):
            kept = dataclasses.replace(kept, problem=_problem(kept.path, hashes=True))  # noqa: PLW2901
        found.append(kept)
    return found


def remove(kept: Kept) -> list[str]:
    """Remove the files of one backup, the manifest first: what is left of a removal cut off is no backup any more.

    :returns: the paths that were removed.
    """
    manifest = dump.read_manifest(kept.path)
    directory = os.path.dirname(kept.path)
    parts = [manifest["file"], manifest["globals"]]
    paths = [kept.path, *(os.path.join(directory, os.path.basename(part["name"])) for part in parts if part)]
    for path in paths:
        os.unlink(path)
    return paths


def _problem(path: str, *, hashes: bool = False) -> str | None:
    try:
        dump.intact(path, hashes=hashes)
    except StackError as error:
        return error.message
    return None


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
