"""The engine's programs, the docker client and whichever Compose there is; and the image of the nodes."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import msgspec

from carequorum.devnet.errors import DevnetError
from carequorum.devnet.programs import attempt, find, run

PROJECT = Path(__file__).resolve().parents[2]
FILES = PROJECT / "configs" / "docker"
IMAGE_VARIABLE = "CAREQUORUM_IMAGE"
IMAGE = "carequorum:local"
TIMEOUT_S = 60.0
COMPOSE_TIMEOUT_S = 180.0
BUILD_TIMEOUT_S = 1800.0

# What the Dockerfile copies, and itself; of folders all but what Python keeps there.
SOURCES = (
    "configs/docker/Dockerfile",
    "configs/docker/Dockerfile.dockerignore",
    "configs/docker/requirements.lock",
    "configs/docker/build.lock",
    "pyproject.toml",
    "README.md",
    "ledger",
    "consensus",
    "storage",
    "network",
    "node",
    "carequorum",
)
# Of an image that was built here: `sources_hash` at that time.
SOURCES_LABEL = "carequorum.sources"


class State(msgspec.Struct, frozen=True, rename="pascal"):
    """What `docker inspect` says of a container's daemon. `pid` is 0 while there is none."""

    running: bool
    paused: bool
    pid: int
    exit_code: int


def image() -> str:
    """The image of the nodes, as compose.yaml chooses it."""
    return os.environ.get(IMAGE_VARIABLE) or IMAGE


def has_image(name: str) -> bool:
    """Whether the engine has it. Raises DevnetError if no engine answers."""
    return bool(run([docker(), "image", "ls", "--quiet", name], timeout_s=TIMEOUT_S).strip())


def ensure_image() -> None:
    """Build the image of the nodes where there is none, or where it was built of other sources than are here now. One
    that CAREQUORUM_IMAGE names is taken as it is. Raises DevnetError.
    """
    name = image()
    if not has_image(name):
        build()
    elif not os.environ.get(IMAGE_VARIABLE) and _label(name) != sources_hash():
        try:
            build()
        except DevnetError as error:
            # Chosen by name it can still be used.
            raise DevnetError(
                f"{name} is older than the project and cannot be built anew ({error}); with {IMAGE_VARIABLE}={name} "
                "it is used as it is"
            ) from None


def sources_hash(project: Path = PROJECT) -> str:
    """Of the names and contents of everything that the image is built from, in hex. Raises DevnetError."""
    found = hashlib.sha256()
    try:
        for path in _sources(project):
            content = path.read_bytes()
            found.update(f"{path.relative_to(project)}\0{len(content)}\0".encode() + content)
    except OSError as error:
        raise DevnetError(f"the image is built from a clone of the project: {error.filename} is missing") from None
    return found.hexdigest()


def _sources(project: Path) -> Iterator[Path]:
    for name in SOURCES:
        path = project / name
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
        else:
            yield path


def _label(name: str) -> str:
    """Empty where the image has no such label."""
    words = ["image", "inspect", f'--format={{{{index .Config.Labels "{SOURCES_LABEL}"}}}}', name]
    return run([docker(), *words], timeout_s=TIMEOUT_S).strip()


def build(
    base_image: str | None = None, secrets: Mapping[str, Path] | None = None, network: str | None = None
) -> None:
    """Build the image of the nodes from the project.

    `base_image` replaces the Dockerfile's; `secrets` lends files to the build, by id (pip_conf, ca), of which the
    image keeps nothing; `network` is what the build's own commands use ("host"). Raises DevnetError.
    """
    label = f"{SOURCES_LABEL}={sources_hash()}"
    command = [builder(), "build", "--file", str(FILES / "Dockerfile"), "--tag", image(), "--label", label]
    command += ["--progress", "plain"]
    if base_image is not None:
        command += ["--build-arg", f"BASE_IMAGE={base_image}"]
    for name, path in (secrets or {}).items():
        command += ["--secret", f"id={name},src={path}"]
    if network is not None:
        command += ["--network", network]
    run([*command, str(PROJECT)], settings={"DOCKER_BUILDKIT": "1"}, timeout_s=BUILD_TIMEOUT_S)


@cache
def docker() -> str:
    """The client. Raises DevnetError."""
    path = find("docker")
    if path is None:
        raise DevnetError("there is no docker here (Debian: apt-get install docker.io docker-compose)")
    return path


@cache
def compose() -> tuple[str, ...]:
    """How Compose is called: the client's plugin, or the program of its own. Raises DevnetError."""
    if attempt([docker(), "compose", "version"]).returncode == 0:
        return (docker(), "compose")
    path = find("docker-compose")
    if path is None:
        raise DevnetError(
            "there is neither `docker compose` nor docker-compose (Debian: apt-get install docker-compose)"
        )
    return (path,)


@cache
def builder() -> str:
    """A client that lends secrets to a build, which needs BuildKit; not every one can. Raises DevnetError."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = shutil.which("docker", path=folder)
        if path is not None:
            ended = attempt([path, "build", "--help"], settings={"DOCKER_BUILDKIT": "1"})
            if ended.returncode == 0 and "--secret" in ended.stdout:
                return path
    raise DevnetError(f"{docker()} cannot build with BuildKit: install its buildx plugin, or Debian's docker.io")
