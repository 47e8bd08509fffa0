"""An engine for `make docker-test`, with the image of the nodes in it: the machine's own if one answers, or else one
that is started here and ended again.

    with engine():
        ...                     # DOCKER_HOST and CAREQUORUM_IMAGE lead there

From nothing, on Debian as root: packages are installed, dockerd is started on folders of its own, the base image is
made of Debian packages where none can be pulled (kept as build/base-image.tar), and the image is built with this
machine's pip settings and certificates lent to the build as secrets. Where installing docker.io starts Debian's own
service, that is the engine.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from carequorum.devnet import DevnetError, containers
from tests.testnets import lent

PACKAGES = {"dockerd": "docker.io", "docker-compose": "docker-compose", "iptables": "iptables", "ip": "iproute2"}
BASE, SUITE = "python:3.11-slim-bookworm", "bookworm"
# In an engine that is not ours nothing is called what it is not.
BASE_ELSEWHERE = "carequorum-base:bookworm"
BASE_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
IMAGE = "carequorum:docker-test"
BUILD = containers.PROJECT / "build"
CACHE = BUILD / "base-image.tar"
DEBIAN = Path("/etc/debian_version")

INSTALL_TIMEOUT_S = 600.0
PULL_TIMEOUT_S = 30.0
BOOTSTRAP_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 40.0
_POLL_S = 0.1

_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# What dockerd leaves in iptables: table, chain that it hooks into.
_HOOKS = (("filter", "FORWARD"), ("nat", "PREROUTING"), ("nat", "OUTPUT"))


def unavailable() -> str | None:
    """Why there can be no engine here, in one line; None if there can."""
    if platform.system() != "Linux":
        return "containers need Linux"
    if os.geteuid() != 0:
        return "an engine, and faults on its wires, need root"
    if not answers() and not DEBIAN.exists():
        return "no Docker engine answers, and only on Debian one can be installed"
    return None


def answers() -> bool:
    """Whether `docker info` reaches an engine."""
    client = shutil.which("docker")
    if client is None:
        return False
    try:
        return containers.attempt([client, "info"], timeout_s=ANSWER_TIMEOUT_S).returncode == 0
    except DevnetError:
        return False


@contextmanager
def engine() -> Iterator[None]:
    """An engine with the image built from the project. What this started and made ends with it, but for build/.

    Raises DevnetError.
    """
    before = {name: os.environ.get(name) for name in ("DOCKER_HOST", containers.IMAGE_VARIABLE, "PATH")}
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM])
    try:
        with ExitStack() as ending:
            _install(compose_only=answers())
            own = not answers()
            if own:
                ending.enter_context(_own_engine())
            base = _base_image(own=own)
            os.environ[containers.IMAGE_VARIABLE] = IMAGE
            with lent.to_builds() as secrets:
                containers.build(base, secrets, network="host")
            if not own:
                ending.callback(containers.attempt, [containers.docker(), "image", "rm", IMAGE])
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def image_bytes() -> int:
    """The size of the image that `engine` built. Raises DevnetError."""
    return int(containers.run([containers.docker(), "image", "inspect", "--format={{.Size}}", IMAGE]))


def _install(*, compose_only: bool) -> None:
    """The programs that are missing, as Debian packages."""
    wanted = {"docker-compose": "docker-compose"} if compose_only else PACKAGES
    lacking = [package for program, package in wanted.items() if shutil.which(program) is None]
    if compose_only and lacking:
        # The plugin does as well.
        if containers.attempt([containers.docker(), "compose", "version"]).returncode == 0:
            return
        if not DEBIAN.exists():
            raise DevnetError("there is neither `docker compose` nor docker-compose")
    _apt(lacking)


def _apt(packages: Sequence[str]) -> None:
    if not packages:
        return
    print(f"installing {', '.join(packages)}", flush=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        containers.run(["apt-get", *words], quiet, INSTALL_TIMEOUT_S)
    # What was looked for before is there only now.
    containers.docker.cache_clear()
    containers.compose.cache_clear()


# the engine


@contextmanager
def _own_engine() -> Iterator[None]:
    """dockerd with folders, socket and containerd of its own; all of it is gone afterwards. DOCKER_HOST names it."""
    BUILD.mkdir(exist_ok=True)
    with ExitStack() as ending:
        data = Path(tempfile.mkdtemp(prefix="engine-", dir=BUILD))
        # Short, for the names of sockets are.
        place = Path(tempfile.mkdtemp(prefix="carequorum-engine-"))
        ending.callback(_remove, data, place)
        ending.callback(_restore_host, _host_rules(), _FORWARD.read_text())
        log = BUILD / "dockerd.log"
        words = ["dockerd", f"--data-root={data}", f"--exec-root={place / 'exec'}", f"--pidfile={place / 'pid'}"]
        # The networks are compose.yaml's; a default one would choose its addresses itself.
        words += [f"--host=unix://{place / 'docker.sock'}", "--bridge=none", "--log-level=warn"]
        with log.open("w") as output:
            # In a session of its own: Ctrl-C ends the containers first, and then, from here, the engine.
            daemon = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        ending.callback(_end, daemon, place)
        os.environ["DOCKER_HOST"] = f"unix://{place / 'docker.sock'}"
        _await(daemon, log)
        yield


def _await(daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers():
        if daemon.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise DevnetError(f"dockerd ended with {daemon.returncode}: {said[-1][:300]}")
        if time.monotonic() > deadline:
            raise DevnetError(f"dockerd did not answer within {START_TIMEOUT_S:g} s; see {log}")
        time.sleep(_POLL_S)


def _end(daemon: subprocess.Popen[bytes], place: Path) -> None:
    """Containers and networks, then the engine; it ends its containerd. Whoever is impatient waits."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        if daemon.poll() is None:
            _empty()
            daemon.terminate()
        try:
            daemon.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        _end_containerd(place / "exec" / "containerd")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _empty() -> None:
    """Nobody else knows of this engine, so every container in it is ours, and every network but its own. It would
    leave their interfaces and rules behind.
    """
    try:
        ids = containers.run([containers.docker(), "ps", "--all", "--quiet", "--no-trunc"]).split()
        if ids:
            containers.run([containers.docker(), "rm", "--force", "--volumes", *ids])
        containers.run([containers.docker(), "network", "prune", "--force"])
    except DevnetError as error:
        print(f"docker-test: {error}", file=sys.stderr)


def _end_containerd(folder: Path) -> None:
    """If dockerd was killed, its containerd is still there: the one whose configuration is in `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(folder / "containerd.toml") in words or os.fsencode(folder / "containerd.sock") in words:
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


def _remove(*folders: Path) -> None:
    """With what is mounted below them."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed(mounts):
        if any(Path(mount).is_relative_to(folder) for folder in folders):
            containers.attempt(["umount", "--lazy", mount])
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _host_rules() -> dict[str, list[str]]:
    """The rules of this machine that dockerd adds to, by table."""
    return {table: containers.run(["iptables", "-w", "-t", table, "-S"]).splitlines() for table in ("filter", "nat")}


def _restore_host(before: dict[str, list[str]], forward: str) -> None:
    """Take out what dockerd put into iptables, which it leaves there, unless an engine had put it there before."""
    if any("DOCKER" in rule for rules in before.values() for rule in rules):
        return
    for table, hook in _HOOKS:
        tool = ["iptables", "-w", "-t", table]
        for rule in containers.attempt([*tool, "-S", hook]).stdout.splitlines():
            if rule.startswith("-A") and "DOCKER" in rule:
                containers.attempt([*tool, "-D", *rule.split()[1:]])
        policy = next((rule.split() for rule in before[table] if rule.startswith(f"-P {hook} ")), None)
        if policy is not None:
            containers.attempt([*tool, *policy])
    for table in before:
        tool = ["iptables", "-w", "-t", table]
        rules = containers.attempt([*tool, "-S"]).stdout.splitlines()
        chains = [rule.split()[1] for rule in rules if rule.startswith("-N DOCKER")]
        for verb in ("-F", "-X"):
            for chain in chains:
                containers.attempt([*tool, verb, chain])
    _FORWARD.write_text(forward)


# the base image


def _base_image(*, own: bool) -> str:
    """What the image is built from: the official one, or one made of Debian packages."""
    if containers.has_image(BASE):
        return BASE
    name = BASE if own else BASE_ELSEWHERE
    if not CACHE.exists():
        if not own and containers.has_image(name):
            return name
        if _pulled():
            return BASE
        _bootstrap()
    containers.run([containers.docker(), "import", str(CACHE), name])
    return name


def _pulled() -> bool:
    try:
        return (
            containers.attempt([containers.docker(), "pull", "--quiet", BASE], timeout_s=PULL_TIMEOUT_S).returncode
            == 0
        )
    except DevnetError:
        return False


def _bootstrap() -> None:
    """Make CACHE of Debian packages, from where apt has its own."""
    if not DEBIAN.exists():
        raise DevnetError(f"{BASE} cannot be pulled, and only on Debian it can be made")
    _apt([] if shutil.which("debootstrap") else ["debootstrap"])
    print(f"making {BASE} of Debian packages", flush=True)
    BUILD.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="base-", dir=BUILD))
    try:
        words = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE, str(root)]
        containers.run(words + _mirror(), _proxy(), BOOTSTRAP_TIMEOUT_S)
        partial = CACHE.with_suffix(".new")
        # What apt keeps for itself only makes it larger.
        left_out = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
        containers.run(
            ["tar", "-C", str(root), "--one-file-system", *left_out, "-cf", str(partial), "."],
            timeout_s=BOOTSTRAP_TIMEOUT_S,
        )
        partial.replace(CACHE)
    finally:
        _remove(root)


def _mirror() -> list[str]:
    """Where apt has the suite from; debootstrap's own default where it does not say."""
    listed = containers.attempt(["apt-get", "indextargets", "--format=$(RELEASE) $(SITE)", "Created-By: Packages"])
    sites = [line.split() for line in listed.stdout.splitlines() if line.count(" ") == 1]
    return next(([site] for release, site in sites if release == SUITE), [])


def _proxy() -> dict[str, str]:
    said = containers.attempt(["apt-config", "--format=%v%n", "dump", "Acquire::http::Proxy"])
    proxy = said.stdout.strip()
    return {"http_proxy": proxy} if proxy else {}
