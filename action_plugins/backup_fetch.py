"""Copy the files of a backup to the controller: in constant memory, private, compared by hash, named last.

`ansible.builtin.fetch` writes straight to the final name, with whatever mode the umask gives, and through `become` it
holds several copies of the file in memory. Here the connection's own file transfer writes to a temporary name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

_ATTEMPTS = 3
_RESERVE = 64 << 20
_SIGN_OF_LIFE_S = 20.0


class ActionModule(ActionBase):
    """`backup_fetch: {files: [{path, sha256, size_bytes}], directory: …}`; documented in `library/backup_fetch.py`."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Copy what is not there yet; without files, only see whether the directory can take them.

        Returns:
            The task's result: `changed`, `files` (paths on the controller), `copied` (those that were not there).

        Raises:
            AnsibleActionFail: the directory is not private, a file could not be copied, or is not the one that was
                asked for.
        """
        super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            {
                "files": {"type": "list", "elements": "dict", "required": True},
                "directory": {"type": "path", "required": True},
                "run_directory": {"type": "path"},
            }
        )
        directory = Path(args["directory"]).expanduser()
        if os.path.lexists(directory):
            _refuse_unless_private(directory)
        wanted = [(entry, directory / Path(entry["path"]).name) for entry in args["files"]]
        with self._sign_of_life():
            missing = [(entry, final) for entry, final in wanted if not _is(final, entry["sha256"])]
        for entry, final in missing:
            if final.exists():
                raise AnsibleActionFail(f"{final} is there already, and is another file; nothing is overwritten.")
            if not self._task.check_mode:
                _private_directory(directory)
                _check_space(directory, int(entry["size_bytes"]))
                self._copy(entry, final)
        return {
            "changed": bool(missing),
            "files": [str(final) for _entry, final in wanted],
            "copied": [str(final) for _entry, final in missing],
        }

    def _copy(self, entry: dict[str, Any], final: Path) -> None:
        """One file, tried a few times: a connection may be cut in the middle."""
        partial = final.with_name(f"{final.name}.partial")
        reason = ""
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                partial.unlink(missing_ok=True)
                # Private from the first byte on; the transfer keeps the mode of a file that is there.
                os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                with self._sign_of_life():
                    reason = self._transfer(entry, partial)
                    if not reason:
                        _settle(partial, final)
                        return
                Display().warning(f"{final.name}, attempt {attempt} of {_ATTEMPTS}: {reason}")
        finally:
            partial.unlink(missing_ok=True)
        raise AnsibleActionFail(
            f"The backup could not be copied to {final} in {_ATTEMPTS} attempts: {reason} It is still on the target: "
            f"{entry['path']}. Nothing else has been changed."
        )

    def _transfer(self, entry: dict[str, Any], partial: Path) -> str:
        """Copy to a temporary name; why that is not the file, or nothing where it is."""
        if self._connection.transport == "ssh":
            # `smart` falls back to `piped`, which reads the whole file into memory.
            self._connection.set_option("ssh_transfer_method", "sftp")
        try:
            self._connection.fetch_file(entry["path"], str(partial))
        except (AnsibleConnectionFailure, AnsibleError, OSError) as error:
            self._connection.reset()
            return f"the transfer failed: {' '.join(str(error).split())[-300:]}."
        size = partial.stat().st_size
        if size != int(entry["size_bytes"]):
            return f"{size} of {entry['size_bytes']} bytes arrived."
        return "" if _is(partial, entry["sha256"]) else "its SHA-256 is not that of the file on the target."

    @contextlib.contextmanager
    def _sign_of_life(self) -> Iterator[None]:
        """Meanwhile no module runs on the target: tell the keeper of the run's lock that the run is alive."""
        directory = self._task.args.get("run_directory")
        over = threading.Event()

        def touch() -> None:
            while not over.wait(_SIGN_OF_LIFE_S):
                # Where the run has no directory, there is nothing to be kept.
                command = f"touch -c {shlex.quote(f'{directory}/alive')}"
                with contextlib.suppress(AnsibleError, OSError):
                    self._connection.exec_command(command, sudoable=False)

        thread = threading.Thread(target=touch, daemon=True)
        if directory:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if directory:
                thread.join(timeout=_SIGN_OF_LIFE_S)


def _is(path: Path, sha256: str) -> bool:
    """Whether a file is there with this hash."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _private_directory(directory: Path) -> None:
    """Make a directory that only its owner can read, or accept such a one."""
    if not os.path.lexists(directory):
        try:
            _make_way(directory.parent)
            directory.mkdir(mode=0o700)
            directory.chmod(0o700)
        except OSError as error:
            raise AnsibleActionFail(f"{directory} cannot be made on the controller: {error.strerror}.") from error
    _refuse_unless_private(directory)


def _refuse_unless_private(directory: Path) -> None:
    """Accept a directory of one's own that is closed to others, and nothing else."""
    seen = directory.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        raise AnsibleActionFail(
            f"{directory} on the controller is not a directory of one's own (links are not followed). "
            "Set recovery_controller_directory to another place."
        )
    mode = stat.S_IMODE(seen.st_mode)
    if mode & 0o077:
        raise AnsibleActionFail(
            f"{directory} on the controller is open to others (mode {mode:04o}); it holds whole databases. "
            f"Close it: chmod 0700 {directory}"
        )


def _make_way(directory: Path) -> None:
    """Make the directories above a private one; whatever the umask is, others cannot write in them."""
    if not directory.is_dir():
        _make_way(directory.parent)
        if not directory.is_dir():  # it ends with `..` otherwise
            directory.mkdir(mode=0o711)
            directory.chmod(0o711)


def _check_space(directory: Path, size: int) -> None:
    seen = os.statvfs(directory)
    free = seen.f_bavail * seen.f_frsize
    if free < size + _RESERVE:
        raise AnsibleActionFail(
            f"No room for the backup in {directory} on the controller: {free} bytes are free, {size} and a reserve of "
            f"{_RESERVE} are needed. Make room, or set recovery_controller_directory."
        )


def _settle(partial: Path, final: Path) -> None:
    """Give a file its final name once it is on the disk, and make the name durable, too."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.chmod(0o600)
    partial.rename(final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
