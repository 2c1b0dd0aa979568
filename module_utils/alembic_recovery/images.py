"""Where else the code is that a database is ahead of: the images of this host, looked into without running anything.

From each image a container is made, and never started: the directories of the revisions are copied out of it as they
lie there, and the container is removed. Nothing is pulled, no network is joined, no process of the image runs.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import tarfile
import typing as t

from ansible.module_utils.alembic_recovery import process
from ansible.module_utils.alembic_recovery.docker_cli import DockerCli, OneOff
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, one_off_name

# Half a second for each: a status of a database that is ahead may take so much longer, and no more.
_LOOKED_INTO = 12
_TIMEOUT_S = 30.0
# A container of a look that was killed: it was never started, so its --rm never acts. A look takes seconds.
_LEFT_BEHIND = datetime.timedelta(minutes=10)
# No revision is larger; what is, is not read.
_LARGEST = 1 << 20
_PURPOSE = "search"
_PROJECT = "com.docker.compose.project"


@dataclasses.dataclass(frozen=True)
class Image:
    """A local image: its id, and repository and tag, empty where it has none."""

    image_id: str
    repository: str = ""
    tag: str = ""

    @property
    def name(self) -> str:
        """What to call it by."""
        return f"{self.repository}:{self.tag}" if self.repository and self.tag else self.image_id


def in_order(images: t.Sequence[Image], own: Image, same_project: t.Container[str]) -> list[Image]:
    """Which to look into, the likeliest first: of the same repository, of the same Compose project, then the others.

    :param images: all of them, the newest first.
    :param own: the application's own image, which is left out.
    :param same_project: ids of images of the same Compose project.
    """

    def rank(image: Image) -> int:
        if image.repository and image.repository == own.repository:
            return 0
        return 1 if image.image_id in same_project else 2

    found: dict[str, Image] = {}
    for image in sorted(images, key=rank):
        if image.image_id != own.image_id:
            found.setdefault(image.image_id, image)
    return list(found.values())[:_LOOKED_INTO]


def declares(source: str, revision: str) -> bool:
    """Whether the text of a Python file declares a revision.

    >>> declares("revision: str = 'a1'", "a1"), declares("down_revision = 'a1'", "a1")
    (True, False)
    """
    return bool(re.search(r"^revision\s*(?::[^=\n]+)?=\s*(['\"])" + re.escape(revision) + r"\1", source, re.MULTILINE))


def having(runtime: DockerRuntime, places: t.Sequence[str], revisions: t.Sequence[str], *, run_id: str) -> list[str]:
    """The names of those local images that have files of all these revisions, the likeliest first.

    :param places: the directories of the application's own revisions, in its container.
    :raises RecoveryError: the Engine does not answer.
    """
    docker, config = runtime.docker, runtime.seen["Config"]
    remove_left_behind(docker, _LEFT_BEHIND)
    local = [Image(*row) for row in docker.images()]
    project = (config.get("Labels") or {}).get(_PROJECT)
    same_project = {row[0] for row in docker.images(label=f"{_PROJECT}={project}")} if project else set()
    # The name may have gone to a newer image meanwhile.
    named = config.get("Image", "").partition("@")[0]
    repository = named.rpartition(":")[0] if ":" in named.rpartition("/")[2] else named
    own = Image(runtime.images[runtime.container], repository)
    found = []
    for image in in_order(local, own, same_project):
        sources = _sources(docker, image, places, one_off_name(run_id, _PURPOSE), run_id)
        if all(any(declares(source, revision) for source in sources) for revision in revisions):
            found.append(image.name)
    return found


def remove_left_behind(docker: DockerCli, age: datetime.timedelta) -> None:
    """Remove the containers of looks that were killed, if they are older than that.

    :raises RecoveryError: the Engine does not answer.
    """
    for name in docker.created_before(datetime.datetime.now(datetime.timezone.utc) - age, f"-{_PURPOSE}"):
        docker.remove(name)


def _sources(docker: DockerCli, image: Image, places: t.Sequence[str], name: str, run_id: str) -> list[str]:
    """The texts of the Python files in these directories of an image; none where they are not there."""
    found: list[str] = []
    try:
        docker.create(OneOff(name, image.image_id, ["/bin/true"], run_id, network="none", options=["--read-only"]))
        for place in places:
            words = [docker.path, "cp", f"{name}:{place}", "-"]
            with process.Source(words, timeout=_TIMEOUT_S) as source:
                found.extend(_python_files(source.stream))
    except RecoveryError:  # removed meanwhile, or it cannot be made into a container here: another one may have it
        return []
    finally:
        docker.remove(name)
    return found


def _python_files(stream: t.IO[bytes]) -> list[str]:
    """The texts of the Python files in a tar archive that comes over a pipe; of one that ends early, what has come."""
    found: list[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".py") and member.size <= _LARGEST:
                    file = archive.extractfile(member)
                    found.append(file.read().decode("utf-8", "replace") if file else "")
    except tarfile.TarError:  # there is no such directory in this image
        pass
    return found
