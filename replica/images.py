"""The replica's images: built from the distribution's packages, because no registry may be assumed.

An image's tag is a hash of its recipe. What is there already is used as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import requests

from replica import application
from replica.errors import ReplicaError, checked

RECIPES = Path(__file__).parent / "images"
CACHE = Path(__file__).parent.parent / ".cache"
REPOSITORY = "alembic-recovery"
PYTHON = "3.11"  # what the base distribution has
PULL_SECONDS = 20
PULLED = "debian:bookworm-slim"
SUITE = "bookworm"
# The names that pip and the engine have for the same processors.
WHEEL_PLATFORMS = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Images:
    """Names of images that are there.

    Attributes:
        postgres: PostgreSQL 15.
        edge: Redis and nginx.
        app: The application.
    """

    postgres: str
    edge: str
    app: str


def ensure(client: docker.DockerClient, report: Report = lambda _: None) -> Images:
    """Build what is missing.

    Args:
        client: The engine.
        report: Gets a line for each image that has to be built.

    Returns:
        The images' names.

    Raises:
        ReplicaError: An image could not be built.
    """
    app_files = {f"app/{name}": content for name, content in _tree(application.SOURCE).items()}
    with _one_at_a_time():
        base = _base(client, report)
        return Images(
            postgres=_image(client, "postgres", base, _tree(RECIPES / "postgres"), report=report),
            edge=_image(client, "edge", base, _tree(RECIPES / "edge"), report=report),
            app=_image(client, "app", base, {**_tree(RECIPES / "app"), **app_files}, report=report, further=_wheels),
        )


def server(client: docker.DockerClient, report: Report = lambda _: None) -> str:
    """Build the image of the server on which the containers run, if it is missing.

    Args:
        client: The engine.
        report: Gets a line for each image that has to be built.

    Returns:
        The image's name.

    Raises:
        ReplicaError: It could not be built.
    """
    with _one_at_a_time():
        return _image(client, "server", _base(client, report), _tree(RECIPES / "server"), report=report)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Of several processes that miss an image, one builds it; the others wait, and find it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _File:
    """A file of a build context."""

    content: bytes
    mode: int


Files = Mapping[str, _File]


def _tree(directory: Path) -> dict[str, _File]:
    """A directory's files by their relative names, without what a run of them leaves behind."""
    files: dict[str, _File] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and "__pycache__" not in name.parts and not path.name.startswith("."):
            executable = bool(path.stat().st_mode & 0o100)
            files[name.as_posix()] = _File(path.read_bytes(), 0o755 if executable else 0o644)
    return files


def _hash(*parts: str | bytes) -> str:
    """A short hash of a recipe."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:12]


def _exists(client: docker.DockerClient, name: str) -> bool:
    """Whether the engine has an image."""
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        return False
    return True


def _image(
    client: docker.DockerClient,
    name: str,
    base: str,
    files: Files,
    *,
    report: Report,
    further: Callable[[docker.DockerClient, Report], Files] = lambda *_: {},
) -> str:
    """An image, built if it is missing; further files come in only then."""
    parts = [part for path, file in sorted(files.items()) for part in (path, str(file.mode), file.content)]
    tag = f"{REPOSITORY}/{name}:{_hash(base, *parts)}"
    if _exists(client, tag):
        return tag
    report(f"building {tag}")
    context = _archive({**files, **further(client, report)})
    try:
        client.images.build(
            fileobj=context,
            custom_context=True,
            encoding="gzip",
            tag=tag,
            buildargs={"BASE": base},
            rm=True,
            forcerm=True,
        )
    except docker.errors.BuildError as error:
        said = "".join(line.get("stream", "") for line in error.build_log)
        raise ReplicaError(f"could not build {tag}: {error.msg}; the end of what was said:\n{said[-3000:]}") from error
    return tag


def _archive(files: Files) -> io.BytesIO:
    """A build context."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(file.content), file.mode
            archive.addfile(entry, io.BytesIO(file.content))
    buffer.seek(0)
    return buffer


@functools.cache
def _processor(client: docker.DockerClient) -> str:
    """The engine's processor, as pip calls it."""
    name = str(client.version()["Arch"])
    if name not in WHEEL_PLATFORMS:
        raise ReplicaError(f"the engine's processor is {name}; expected one of {sorted(WHEEL_PLATFORMS)}")
    return WHEEL_PLATFORMS[name]


def _wheels(client: docker.DockerClient, report: Report) -> Files:
    """The application's packages, fetched by this machine's own pip for the image's Python."""
    requirements = application.SOURCE / "requirements.txt"
    processor = _processor(client)
    directory = CACHE / f"wheels-{_hash(requirements.read_bytes(), PYTHON, processor)}"
    if not directory.is_dir():
        report("fetching the application's packages")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as fetched:
            platforms = [
                f"--platform={name}_{processor}" for name in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
            ]
            command = [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
                *(f"--python-version={PYTHON}", "--implementation=cp", *platforms, "--platform=any"),
                *("--requirement", str(requirements), "--dest", fetched),
            ]
            checked(
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False),
                "fetch the application's packages",
            )
            whole = Path(fetched).with_suffix(".whole")
            shutil.copytree(fetched, whole)
            whole.rename(directory)
    return {f"wheels/{path.name}": _File(path.read_bytes(), 0o644) for path in sorted(directory.glob("*.whl"))}


def _base(client: docker.DockerClient, report: Report) -> str:
    """The base image: pulled if that works quickly, else made with debootstrap."""
    tag = f"{SUITE}-{_hash(SUITE, PULLED, _processor(client))}"
    name = f"{REPOSITORY}/base:{tag}"
    if _exists(client, name):
        return name
    if _pull():
        report(f"using {PULLED} as {name}")
        client.images.get(PULLED).tag(f"{REPOSITORY}/base", tag)
    else:
        report(f"building {name} with debootstrap, because {PULLED} cannot be pulled")
        _debootstrap(client, tag)
    return name


def _pull() -> bool:
    """Whether the ordinary base image is there or can be fetched."""
    client = docker.from_env(timeout=PULL_SECONDS)
    try:
        if not _exists(client, PULLED):
            client.images.pull(*PULLED.split(":"))
    except (docker.errors.APIError, requests.exceptions.RequestException):
        return False
    finally:
        client.close()
    return True


def _debootstrap(client: docker.DockerClient, tag: str) -> None:
    """The base image from the distribution's packages."""
    if os.geteuid() != 0:
        raise ReplicaError(
            f"{PULLED} cannot be pulled, and only root can build a base image from packages; run this once as root"
        )
    if shutil.which("debootstrap") is None:
        command = ["apt-get", "install", "-qy", "--no-install-recommends", "debootstrap"]
        checked(
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False),
            "install debootstrap",
        )
    with tempfile.TemporaryDirectory(prefix="replica-base-", dir="/var/tmp") as directory:
        root = Path(directory) / "root"
        # The mirror is the one that debootstrap knows for the suite.
        command = ["debootstrap", "--variant=minbase", SUITE, str(root)]
        checked(
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False),
            "make a base system",
        )
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        archive = Path(directory) / "root.tar"
        command = ["tar", "--numeric-owner", "-C", str(root), "-cf", str(archive), "."]
        checked(subprocess.run(command, capture_output=True, text=True, check=False), "pack the base system")
        client.api.import_image_from_file(str(archive), repository=f"{REPOSITORY}/base", tag=tag)
