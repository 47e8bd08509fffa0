"""The engine's programs: the docker client and whichever Compose there is; found, run, their errors in one line."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from carequorum.devnet.errors import DevnetError

PROJECT = Path(__file__).resolve().parents[2]
FILES = PROJECT / "configs" / "docker"
IMAGE_VARIABLE = "CAREQUORUM_IMAGE"
IMAGE = "carequorum:local"
TIMEOUT_S = 60.0
COMPOSE_TIMEOUT_S = 180.0
BUILD_TIMEOUT_S = 1800.0
_SAID_MAX = 300


class State(msgspec.Struct, frozen=True, rename="pascal"):
    """What `docker inspect` says of a container's daemon. `pid` is 0 while there is none."""

    running: bool
    paused: bool
    pid: int
    exit_code: int
    error: str


def image() -> str:
    """The image of the nodes, as compose.yaml chooses it."""
    return os.environ.get(IMAGE_VARIABLE) or IMAGE


def has_image(name: str) -> bool:
    """Whether the engine has it. Raises DevnetError if no engine answers."""
    ended = attempt([docker(), "image", "ls", "--quiet", name])
    return bool(_checked(ended, "docker image ls").strip())


def build(
    base_image: str | None = None, secrets: Mapping[str, Path] | None = None, network: str | None = None
) -> None:
    """Build the image of the nodes from the project.

    `base_image` replaces the Dockerfile's; `secrets` lends files to the build, by id (pip_conf, ca), of which the
    image keeps nothing; `network` is what the build's own commands use ("host"). Raises DevnetError.
    """
    dockerfile = FILES / "Dockerfile"
    if not dockerfile.is_file():
        raise DevnetError(f"the image is built from a clone of the project: {dockerfile} is missing")
    command = [builder(), "build", "--file", str(dockerfile), "--tag", image(), "--progress", "plain"]
    if base_image is not None:
        command += ["--build-arg", f"BASE_IMAGE={base_image}"]
    for name, path in (secrets or {}).items():
        command += ["--secret", f"id={name},src={path}"]
    if network is not None:
        command += ["--network", network]
    run([*command, str(PROJECT)], {"DOCKER_BUILDKIT": "1"}, BUILD_TIMEOUT_S)


@cache
def docker() -> str:
    """The client. Raises DevnetError."""
    path = shutil.which("docker")
    if path is None:
        raise DevnetError("there is no docker here (Debian: apt-get install docker.io docker-compose)")
    return path


@cache
def compose() -> tuple[str, ...]:
    """How Compose is called: the client's plugin, or the program of its own. Raises DevnetError."""
    if attempt([docker(), "compose", "version"]).returncode == 0:
        return (docker(), "compose")
    path = shutil.which("docker-compose")
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
            ended = attempt([path, "build", "--help"], {"DOCKER_BUILDKIT": "1"})
            if ended.returncode == 0 and "--secret" in ended.stdout:
                return path
    raise DevnetError(f"{docker()} cannot build with BuildKit: install its buildx plugin, or Debian's docker.io")


def run(command: Sequence[str], settings: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """What it wrote. Raises DevnetError with the last thing it said if it fails."""
    return _checked(attempt(command, settings, timeout_s), short(command))


def attempt(
    command: Sequence[str], settings: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """How it ended. `settings` are added to its environment. Raises DevnetError if it does not start or end."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(settings or {})},
        )
    except subprocess.TimeoutExpired:
        raise DevnetError(f"{short(command)} did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise DevnetError(f"{short(command)}: {error.strerror}") from None


def short(command: Sequence[str]) -> str:
    """Which tool does what, without its options."""
    words = [word for word in command[1:] if not word.startswith("-") and "/" not in word]
    return " ".join([Path(command[0]).name, *words[:2]])


def _checked(ended: subprocess.CompletedProcess[str], what: str) -> str:
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        raise DevnetError(f"{what}: {said[-1][:_SAID_MAX] if said else f'it ended with {ended.returncode}'}")
    return ended.stdout
