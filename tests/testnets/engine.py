"""An engine for `make docker-test`, with the image of the nodes in it: the machine's own if one answers, or else one
that is started here and ended again.

    with engine():
        ...                     # DOCKER_HOST and CAREQUORUM_IMAGE lead there

From nothing, on Debian as root: packages are installed, dockerd is started on folders of its own, the base image is
made of Debian packages where none can be pulled (kept as build/base-image-*.tar), and the image is built with this
machine's pip settings and certificates lent to the build as secrets. Where installing docker.io starts Debian's own
service, that is the engine, and it is stopped in the end.
"""

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from carequorum.devnet import DevnetError, containers, programs
from carequorum.devnet.programs import attempt, run
from tests.testnets import lent

TOOLS = {"iptables": "iptables", "ip": "iproute2"}
ENGINE = {"dockerd": "docker.io", "docker-compose": "docker-compose"}
BASE, SUITE = "python:3.11-slim-bookworm", "bookworm"
BASE_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
# Of a base image: what apt keeps for itself only makes it larger, and debootstrap copies what is this machine's own.
LEFT_OUT = (
    "./etc/apt/sources.list",
    "./etc/hostname",
    "./etc/resolv.conf",
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
    "./var/log/*",
)
# Another one is made when any of it changes.
RECIPE = hashlib.sha256("\n".join([SUITE, BASE_PACKAGES, *LEFT_OUT]).encode()).hexdigest()[:12]
# In an engine that is not ours nothing is called what it is not.
BASE_ELSEWHERE = f"carequorum-base:{SUITE}-{RECIPE}"
IMAGE = "carequorum:docker-test"
BUILD = containers.PROJECT / "build"
CACHE = BUILD / f"base-image-{RECIPE}.tar"
DEBIAN = Path("/etc/debian_version")

INSTALL_TIMEOUT_S = 600.0
PULL_TIMEOUT_S = 30.0
BOOTSTRAP_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 40.0
_POLL_S = 0.1

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# What dockerd leaves in iptables: table, chain that it hooks into.
_HOOKS = (("filter", "FORWARD"), ("nat", "PREROUTING"), ("nat", "OUTPUT"))
# Where compose.yaml has its networks.
_SUBNETS = ip_network("198.19.0.0/16")


class _Address(msgspec.Struct, frozen=True):
    """Of `ip -json address`, what is needed here."""

    local: str = "0.0.0.0"  # noqa: S104


class _Bridge(msgspec.Struct, frozen=True):
    ifname: str = ""
    addr_info: list[_Address] = []


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
        return attempt([client, "info"], timeout_s=ANSWER_TIMEOUT_S).returncode == 0
    except DevnetError:
        return False


@contextmanager
def engine() -> Iterator[None]:
    """An engine with the image built from the project. What this started and made ends with it, but for build/.

    Raises DevnetError.
    """
    before = {name: os.environ.get(name) for name in ("DOCKER_HOST", containers.IMAGE_VARIABLE, "PATH")}
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *programs.SYSTEM])
    try:
        with ExitStack() as ending:
            own = not answers()
            if own:
                own = _installed(ending)
            else:
                _install_compose()
            if own:
                ending.enter_context(_own_engine())
            base = _base_image(own=own)
            os.environ[containers.IMAGE_VARIABLE] = IMAGE
            with lent.to_builds() as secrets:
                containers.build(base, secrets, network="host")
            if not own:
                ending.callback(attempt, [containers.docker(), "image", "rm", IMAGE])
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def image_bytes() -> int:
    """The size of the image that `engine` built. Raises DevnetError."""
    return int(run([containers.docker(), "image", "inspect", "--format={{.Size}}", IMAGE]))


def _installed(ending: ExitStack) -> bool:
    """Install an engine where there is none; `ending` leaves the machine as it was. False if it runs already:
    Debian's own service, which came with the package.
    """
    _apt(_lacking(TOOLS))
    ending.callback(_restore_host, _host_rules(), _FORWARD.read_text())
    lacking = _lacking(ENGINE)
    if ENGINE["dockerd"] in lacking:
        # Before it is installed, for a failed installation may have started it, too.
        ending.callback(_stop_service)
    _apt(lacking)
    return not answers()


def _install_compose() -> None:
    """Beside an engine that was there, unless it has the plugin."""
    lacking = _lacking({"docker-compose": ENGINE["docker-compose"]})
    if not lacking or attempt([containers.docker(), "compose", "version"]).returncode == 0:
        return
    if not DEBIAN.exists():
        raise DevnetError("there is neither `docker compose` nor docker-compose")
    _apt(lacking)


def _lacking(wanted: Mapping[str, str]) -> list[str]:
    """The packages of those programs that are not here."""
    return [package for program, package in wanted.items() if programs.find(program) is None]


def _stop_service() -> None:
    """Debian's own engine, where it runs. Its socket would start it again."""
    systemctl, service = programs.find("systemctl"), programs.find("service")
    if systemctl is not None and Path("/run/systemd/system").exists():
        attempt([systemctl, "stop", "docker.socket", "docker.service", "containerd.service"], timeout_s=END_TIMEOUT_S)
    elif service is not None:
        for name in ("docker", "containerd"):
            attempt([service, name, "stop"], timeout_s=END_TIMEOUT_S)


def _apt(packages: Sequence[str]) -> None:
    if not packages:
        return
    print(f"installing {', '.join(packages)}", flush=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        run(["apt-get", *words], settings=quiet, timeout_s=INSTALL_TIMEOUT_S)
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
        killed = daemon.poll() is not None
        if not killed:
            _empty()
            daemon.terminate()
        try:
            daemon.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            killed = True
            daemon.kill()
            daemon.wait()
        if killed:
            _end_left(place / "exec" / "containerd")
            _delete_bridges()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _empty() -> None:
    """Nobody else knows of this engine, so every container in it is ours, and every network but its own. It would
    leave their interfaces and rules behind.
    """
    docker, timeout_s = containers.docker(), containers.TIMEOUT_S
    try:
        ids = run([docker, "ps", "--all", "--quiet", "--no-trunc"]).split()
        if ids:
            run([docker, "rm", "--force", "--volumes", *ids], timeout_s=timeout_s)
        run([docker, "network", "prune", "--force"], timeout_s=timeout_s)
    except DevnetError as error:
        print(f"docker-test: {error}", file=sys.stderr)


def _end_left(folder: Path) -> None:
    """What a dockerd that was killed leaves: its containerd, whose files are in `folder`, the shims, and what these
    run, a container's first process among it; the kernel ends all others of its pid namespace.
    """
    own = (os.fsencode(folder / "containerd.toml"), os.fsencode(folder / "containerd.sock"))
    serving, parents = set(), {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            stat = (process / "stat").read_text()
        except OSError:
            continue
        pid = int(process.name)
        parents[pid] = int(stat[stat.rindex(")") + 2 :].split()[1])
        if any(word in words for word in own):
            serving.add(pid)
    # Who serves first, so that nothing is started again.
    for pid in [*sorted(serving), *(pid for pid, parent in parents.items() if parent in serving)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _delete_bridges() -> None:
    """Of networks that nobody took down. The names are the engine's, the subnets compose.yaml's."""
    said = attempt(["ip", "-json", "-4", "address", "show", "type", "bridge"]).stdout
    for bridge in msgspec.json.decode(said or "[]", type=list[_Bridge]):
        if bridge.ifname.startswith("br-") and any(ip_address(a.local) in _SUBNETS for a in bridge.addr_info):
            attempt(["ip", "link", "del", "dev", bridge.ifname])


def _remove(*folders: Path) -> None:
    """With what is mounted below them."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed(mounts):
        if any(Path(mount).is_relative_to(folder) for folder in folders):
            attempt(["umount", "--lazy", mount])
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _host_rules() -> dict[str, list[str]]:
    """The rules of this machine that dockerd adds to, by table."""
    return {table: run(["iptables", "-w", "-t", table, "-S"]).splitlines() for table in ("filter", "nat")}


def _restore_host(before: Mapping[str, list[str]], forward: str) -> None:
    """Policies and forwarding as they were; and what dockerd put into iptables, which it leaves there, is taken out,
    unless an engine had put it there before.
    """
    another = any("DOCKER" in rule for rules in before.values() for rule in rules)
    for table, hook in _HOOKS:
        tool = ["iptables", "-w", "-t", table]
        for rule in [] if another else attempt([*tool, "-S", hook]).stdout.splitlines():
            if rule.startswith("-A") and "DOCKER" in rule:
                attempt([*tool, "-D", *rule.split()[1:]])
        policy = next((rule.split() for rule in before[table] if rule.startswith(f"-P {hook} ")), None)
        if policy is not None:
            attempt([*tool, *policy])
    for table in [] if another else before:
        tool = ["iptables", "-w", "-t", table]
        rules = attempt([*tool, "-S"]).stdout.splitlines()
        chains = [rule.split()[1] for rule in rules if rule.startswith("-N DOCKER")]
        for verb in ("-F", "-X"):
            for chain in chains:
                attempt([*tool, verb, chain])
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
    run([containers.docker(), "import", str(CACHE), name], timeout_s=BOOTSTRAP_TIMEOUT_S)
    return name


def _pulled() -> bool:
    try:
        return attempt([containers.docker(), "pull", "--quiet", BASE], timeout_s=PULL_TIMEOUT_S).returncode == 0
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
        run(words + _mirror(), settings=_proxy(), timeout_s=BOOTSTRAP_TIMEOUT_S)
        partial = CACHE.with_suffix(".new")
        run(_packing(root, partial), timeout_s=BOOTSTRAP_TIMEOUT_S)
        for outdated in BUILD.glob("base-image*.tar"):
            outdated.unlink()
        partial.replace(CACHE)
    finally:
        _remove(root)


def _packing(root: Path, archive: Path) -> list[str]:
    """The command that makes `archive` of a system's root."""
    excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    return ["tar", "-C", str(root), "--one-file-system", "--anchored", *excluded, "-cf", str(archive), "."]


def _mirror() -> list[str]:
    """Where apt has the suite from; debootstrap's own default where it does not say."""
    listed = attempt(["apt-get", "indextargets", "--format=$(RELEASE) $(SITE)", "Created-By: Packages"])
    sites = [line.split() for line in listed.stdout.splitlines() if line.count(" ") == 1]
    return next(([site] for release, site in sites if release == SUITE), [])


def _proxy() -> dict[str, str]:
    said = attempt(["apt-config", "--format=%v%n", "dump", "Acquire::http::Proxy"])
    proxy = said.stdout.strip()
    return {"http_proxy": proxy} if proxy else {}
