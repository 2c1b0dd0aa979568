"""Files that hold a database, or what is known of one: private from the first byte, and never half there."""

from __future__ import annotations

import hashlib
import os
import stat
import typing as t

from ansible.module_utils.alembic_recovery.errors import StackError

_CHUNK = 1 << 20


def login_owner() -> tuple[int, int]:
    """User and group id to own our files: the login user, also where sudo has made us root.

    A dump that only root can read could not be copied off the server by sftp; and through `become` Ansible's own
    `fetch` holds the whole file in memory, several times.
    """
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit():
        return int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", "0"))
    return os.geteuid(), os.getegid()


def private_directory(path: str) -> None:
    """Make a directory that only its owner can read, or accept such a one.

    :raises StackError: it belongs to somebody else, is a link, is open to others, or cannot be made.
    """
    if not os.path.lexists(path):
        try:
            _make_way(os.path.dirname(path))
            os.mkdir(path, 0o700)
            os.chmod(path, 0o700)
            os.chown(path, *login_owner())
        except OSError as error:
            raise StackError(f"{path} cannot be made: {error.strerror}. Choose another place for it.") from error
    problem = privacy_problem(path)
    if problem:
        raise StackError(problem)


def _make_way(path: str) -> None:
    """Make the directories above a private one. Whatever the umask is, others can neither write in them (they could put
    something else in its place), nor can the login user not pass them where sudo has made us root.
    """
    if os.path.isdir(path):
        return
    _make_way(os.path.dirname(path))
    if os.path.isdir(path):  # it ends with `..`
        return
    os.mkdir(path, 0o711)
    os.chmod(path, 0o711)  # noqa: S103 (others may pass, and neither look nor write)


def privacy_problem(path: str) -> str | None:
    """Why a directory must not be used for dumps, if so; a directory that is not there yet is no problem."""
    if not os.path.lexists(path):
        return None
    seen = os.lstat(path)
    if not stat.S_ISDIR(seen.st_mode):
        return f"{path} is not a directory (links are not followed). Choose another place for it."
    if seen.st_uid not in (os.geteuid(), login_owner()[0]):
        return f"{path} belongs to user {seen.st_uid}, not to the login user. Choose another place for it."
    if seen.st_mode & 0o077:
        mode = stat.S_IMODE(seen.st_mode)
        return f"{path} is open to others (mode {mode:04o}); it holds whole databases. Close it: chmod 0700 {path}"
    return None


def open_private(path: str) -> t.TextIO:
    """Open a new text file that only its owner can read, for writing.

    :raises StackError: something is there already (nothing is ever overwritten), or the directory is not.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StackError(f"{path} cannot be made: {error.strerror}.") from error
    os.fchown(descriptor, *login_owner())
    return os.fdopen(descriptor, "w", encoding="utf-8")


def private_opener(path: str, flags: int) -> int:
    """For `open()`: a file that only its owner can read, and that belongs to the login user."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if os.fstat(descriptor).st_uid == os.geteuid():
        os.fchown(descriptor, *login_owner())
    return descriptor


def replace_private(path: str, text: str) -> None:
    """Give a file a new content as a whole, on the disk before this returns; only its owner can read it."""
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8", opener=private_opener) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sha256(path: str) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            piece = file.read(_CHUNK)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)


def settle(partial: str, final: str) -> None:
    """Give a file its final name once it is on the disk, and make the name durable, too.

    :raises StackError: there is something of that name.
    """
    if os.path.lexists(final):
        raise StackError(f"{final} is there already; nothing is overwritten. Was the run id used before?")
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.chmod(partial, 0o600)
    os.rename(partial, final)
    directory = os.open(os.path.dirname(final), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def free_bytes(path: str) -> int:
    """The free space, for us, of the file system on which `path` is or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize


def shown_size(count: int) -> str:
    """A number of bytes for people.

    >>> shown_size(1536), shown_size(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
